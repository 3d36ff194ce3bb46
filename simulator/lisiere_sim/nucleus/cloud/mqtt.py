"""One MQTT connection on the nucleus's own loop.

paho's thread is not used: its parser and writer are called when the socket is ready, so that everything that it
reports arrives on the loop and nothing has to be locked or handed over. Only connecting blocks, in a thread.
A connection lives once: paho would send what it holds again by itself, and that is the spooler's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from lisiere.errors import Retryable
from lisiere_sim.broker import Address
from lisiere_sim.nucleus.cloud.spooler import SPOOL_BYTES

_FILTERS_A_PACKET = 8  # IoT Core's limit
_MISC_S = 1.0


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """The nucleus's own `mqtt` settings.

    Attributes:
        in_flight: unacknowledged publishes at most; the flavour's own number when None.
        ack_timeout_s: how long the broker may take to acknowledge; then the connection is given up. Both nuclei have
            30 s.
        retries: how often a publish is tried again before the spooler drops it.
        spool_bytes: of payloads in the spooler.
        spool_file: where the spooler's messages are, too, so that they outlive the nucleus; None: in memory alone.
        keep_qos_0: whether QoS 0 is spooled while offline.
        keepalive_s: how long the broker may say nothing.
        reconnect_s: the first pause before connecting again, and the longest; classic has 1 and 120 s, lite 5 and
            300 s, which is much on a laptop.
    """

    in_flight: int | None = None
    ack_timeout_s: float = 30.0
    retries: int = 100
    spool_bytes: int = SPOOL_BYTES
    spool_file: Path | None = None
    keep_qos_0: bool = False
    keepalive_s: int = 15
    reconnect_s: tuple[float, float] = (1.0, 2.0)


OnAcknowledged = Callable[[int], None]
OnMessage = Callable[[str, bytes], None]


class Connection:
    """A connection to the broker, from `open` until `lost` is done.

    Args:
        client_id: the thing's name; a broker closes an older connection of the same id.
        keepalive_s: a broker that says nothing for so long is given up.

    Attributes:
        lost: done once the connection has ended; the result says why.
    """

    def __init__(
        self,
        address: Address,
        client_id: str,
        on_acknowledged: OnAcknowledged,
        on_message: OnMessage,
        *,
        keepalive_s: int = 30,
        timeout_s: float = 5.0,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self._accepted: asyncio.Future[str | None] = self._loop.create_future()
        self._granted: dict[int, asyncio.Future[list[Any]]] = {}  # packet id -> reason codes
        self._misc: asyncio.TimerHandle | None = None
        self._elsewhere = False  # whether paho is at work in a thread, where nothing of the loop may be touched
        self._reading = False  # whether paho is reporting; what is published meanwhile is written afterwards
        self._on_acknowledged, self._on_message = on_acknowledged, on_message
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id, clean_session=True, reconnect_on_failure=False
        )
        client.connect_timeout = timeout_s
        client.max_inflight_messages_set(0)  # the window is held above
        client.on_connect = self._connected
        client.on_publish = self._published
        client.on_message = self._received
        client.on_subscribe = client.on_unsubscribe = self._answered
        client.on_disconnect = self._disconnected
        client.on_socket_close = self._closing
        self._client = client

    async def open(self) -> None:
        """Connect and wait until the broker accepts.

        Raises:
            Retryable: it does not answer, or refuses.
        """
        host, port = self._address
        # Not `await`ed bare: when this task is cancelled, the thread's socket must be waited for and closed.
        self._elsewhere = True
        connecting = self._loop.run_in_executor(None, self._client.connect, host, port, self._keepalive_s)
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await connecting
            self._elsewhere = False
            self._drop()
            raise
        except OSError as error:
            raise Retryable(f"The broker {host}:{port} cannot be reached: {error}") from error
        finally:
            self._elsewhere = False
        self._watch()
        try:
            refusal = await asyncio.wait_for(asyncio.shield(self._accepted), self._timeout_s)
        except asyncio.TimeoutError:
            self._drop()
            raise Retryable(f"The broker {host}:{port} did not answer within {self._timeout_s:g} s.") from None
        except asyncio.CancelledError:
            self._drop()
            raise
        if refusal is not None:
            self._drop()
            raise Retryable(f"The broker {host}:{port} refuses the connection: {refusal}.")
        self._tick()

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> int | None:
        """Send one message; return its packet id, or None when the connection is gone."""
        info = self._client.publish(topic, payload, qos, retain)
        self._flush()
        return int(info.mid) if info.rc == paho.MQTT_ERR_SUCCESS else None

    async def subscribe(self, filters: list[str]) -> list[str]:
        """Subscribe with QoS 1, and return the filters that the broker refuses.

        Raises:
            Retryable: the connection is gone, or the broker does not answer in time.
        """
        refused: list[str] = []
        for start in range(0, len(filters), _FILTERS_A_PACKET):
            some = filters[start : start + _FILTERS_A_PACKET]
            reasons = await self._ask(self._client.subscribe([(one, 1) for one in some]))
            refused += [one for one, reason in zip(some, reasons, strict=False) if reason.is_failure]
        return refused

    async def unsubscribe(self, filters: list[str]) -> None:
        """Unsubscribe.

        Raises:
            Retryable: the connection is gone, or the broker does not answer in time.
        """
        for start in range(0, len(filters), _FILTERS_A_PACKET):
            await self._ask(self._client.unsubscribe(filters[start : start + _FILTERS_A_PACKET]))

    def close(self) -> None:
        """Take leave of the broker. Calling it twice does no harm."""
        self._client.disconnect()
        self._drop()

    def abort(self, why: str) -> None:
        """End the connection without a word, as a network does. Calling it twice does no harm."""
        self._end(why)
        self._drop()

    def _drop(self) -> None:
        link = self._client.socket()
        if link is None:
            return
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)
        # Reading to the end lets paho close the socket and forget it, which it has no public method for.
        while self._client.socket() is not None:
            self._client.loop_read()

    def _watch(self) -> None:
        link = self._client.socket()
        if link is None:
            self._end("The broker closed the connection.")
            return
        self._loop.add_reader(link, self._readable)
        self._flush()

    def _readable(self) -> None:
        self._reading = True
        try:
            self._client.loop_read()
        finally:
            self._reading = False
        self._flush()

    def _flush(self) -> None:
        """Write what waits, now if the socket takes it, else when it does."""
        if self._reading or not self._client.want_write():
            return
        self._client.loop_write()
        if self._client.want_write() and (link := self._client.socket()) is not None:
            self._loop.add_writer(link, self._writable)

    def _writable(self) -> None:
        self._client.loop_write()
        if (link := self._client.socket()) is not None and not self._client.want_write():
            self._loop.remove_writer(link)

    def _tick(self) -> None:
        """Let paho send its pings and miss their answers."""
        self._client.loop_misc()
        self._flush()
        if not self.lost.done():
            self._misc = self._loop.call_later(_MISC_S, self._tick)

    async def _ask(self, sent: tuple[Any, int | None]) -> list[Any]:
        """Wait for the answer to a SUBSCRIBE or UNSUBSCRIBE."""
        code, packet = sent
        self._flush()
        if code != paho.MQTT_ERR_SUCCESS or packet is None:
            raise Retryable("The connection to the broker is gone.")
        answer = self._granted[packet] = self._loop.create_future()
        await asyncio.wait([answer, self.lost], timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        del self._granted[packet]
        if not answer.done():
            answer.cancel()
            raise Retryable(f"The broker has not answered a subscription within {self._timeout_s:g} s.")
        reasons: list[Any] = answer.result()
        return reasons

    def _end(self, why: str) -> None:
        if self._misc is not None:
            self._misc.cancel()
        if not self._accepted.done():
            self._accepted.set_result(why)
        if not self.lost.done():
            self.lost.set_result(why)

    def _connected(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._accepted.done():
            self._accepted.set_result(str(reason) if reason.is_failure else None)

    def _published(self, _client: paho.Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._on_acknowledged(mid)

    def _received(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self._on_message(message.topic, message.payload)

    def _answered(self, _client: paho.Client, _data: Any, mid: int, reasons: Any, _properties: Any) -> None:
        if (answer := self._granted.get(mid)) is not None and not answer.done():
            answer.set_result(list(reasons))

    def _disconnected(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._elsewhere:  # else `open` finds no socket and says so
            self._end(f"The broker's connection ended: {reason}.")

    def _closing(self, _client: paho.Client, _data: Any, link: Any) -> None:
        if not self._elsewhere:
            self._loop.remove_reader(link)
            self._loop.remove_writer(link)
