"""IoT Core as a component sees it through a nucleus: the MQTT broker behind one connection, limits, and the spooler.

Classic: a publish that succeeds is *stored*, in memory, and sent when there is a connection; what IoT Core has not
acknowledged is sent again. Lite: a publish succeeds when the broker has acknowledged it, and without a connection it
is refused at once. Everything here runs on the nucleus's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from lisiere.errors import Retryable
from lisiere.health import worth_logging
from lisiere_sim.broker import Address
from lisiere_sim.nucleus.cloud.counters import Counters
from lisiere_sim.nucleus.cloud.limits import Bucket, Limits, Refused, covers
from lisiere_sim.nucleus.cloud.mqtt import Connection, MqttSettings
from lisiere_sim.nucleus.cloud.spooler import Message, Spooler
from lisiere_sim.nucleus.cloud.subscriptions import OnMessage, Subscription, Subscriptions
from lisiere_sim.nucleus.flavour import Flavour

_log = logging.getLogger(__name__)
_TICK_S = 0.25


@dataclass(slots=True)
class _UnderWay:
    message: Message
    sent_at: float
    done: asyncio.Future[None] | None = None  # who waits for the acknowledgement: lite alone


class IotCore:
    """The bridge between components and the broker.

    Args:
        address: the broker's.
        thing: the MQTT client id.
        limits: what IoT Core allows; `UNLIMITED` switches them off.

    Attributes:
        counters: what happened; read them at any time.
        upstream: the filters that are subscribed to at the broker.
    """

    def __init__(
        self,
        address: Address,
        thing: str,
        flavour: Flavour,
        limits: Limits | None = None,
        settings: MqttSettings | None = None,
    ) -> None:
        self.counters = Counters()
        self._address = address
        self._thing = thing
        self._flavour = flavour
        self._limits = limits or Limits()
        self._settings = settings or MqttSettings()
        self._window = self._settings.in_flight or flavour.in_flight
        self._spooler = Spooler(self._settings.spool_bytes, self.counters.dropped, self._settings.spool_file)
        self._rate = Bucket(self._limits.publishes_per_s)
        self._throughput = Bucket(self._limits.bytes_per_s)
        self._link: Connection | None = None
        self._under_way: dict[int, _UnderWay] = {}
        self._subscriptions = Subscriptions()
        self.upstream: Set[str] = self._subscriptions.upstream
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wanted = asyncio.Event()
        self._attempted = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        self._said = ""

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the broker."""
        return self._link is not None

    @property
    def held(self) -> int:
        """How many publishes wait in the spooler or for their acknowledgement."""
        return len(self._spooler) + len(self._under_way)

    def status(self) -> dict[str, Any]:
        """Return the counters and the state, as `lisiere nucleus status` shows them."""
        counters = self.counters
        return {
            "connected": self.connected,
            "online": self._wanted.is_set(),
            "published": counters.published,
            "acknowledged": counters.acknowledged,
            "received": counters.received,
            "unclaimed": counters.unclaimed,
            "connects": counters.connects,
            "spooled": len(self._spooler),
            "in_flight": len(self._under_way),
            "subscriptions": sorted(self.upstream),
            "refused": dict(counters.refused),
            "dropped": dict(counters.dropped),
        }

    async def start(self) -> None:
        """Begin to connect, and return after the first attempt, whether it succeeded or not."""
        self._wanted.set()
        self._spawn(self._stay_connected())
        self._spawn(self._watch_acknowledgements())
        await self._attempted.wait()

    async def stop(self, drain_s: float = 5.0) -> int:
        """Send what is held if that succeeds in time, disconnect, and return how many publishes were dropped."""
        until = asyncio.get_running_loop().time() + drain_s
        while self.held and self._link is not None and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)
        self._wanted.clear()
        if self._pause is not None:
            self._pause.cancel()
        if self._link is not None:
            self._link.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._said = "The nucleus stops."  # no news
        self._forget_link(self._said)
        dropped = self._spooler.close("nucleus_stopped")
        if dropped:
            _log.warning(
                "IoT Core: %d accepted publishes are dropped, because the nucleus stops and its spooler is in memory.",
                dropped,
            )
        return dropped

    def online(self, wanted: bool) -> None:
        """Let the connection go away and stay away (False), or come back (True)."""
        if wanted:
            self._wanted.set()
            return
        self._wanted.clear()
        if self._link is not None:
            self._link.abort("The nucleus was told to be offline.")

    async def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        """Publish for a component.

        Returns once the message is stored (classic) or acknowledged (lite).

        Raises:
            Refused: it is neither; the message of the error says why.
        """
        try:
            self._limits.check_publish(topic, payload)
            message = Message(topic, payload, qos, retain)
            if self._flavour.spools:
                self._store(message)
            else:
                await self._send_and_wait(message)
        except Refused as refusal:
            self._refuse(refusal)
            raise
        self.counters.published += 1

    async def subscribe(self, text: str, callback: OnMessage) -> Callable[[], None]:
        """Have `callback` called with topic and payload of what matches a filter, from now on.

        Filters that another one covers are not subscribed to at the broker; all of them are again after a reconnect.

        Returns:
            What ends the subscription; calling it twice does no harm.

        Raises:
            Refused: the filter is wrong, the broker is away, or it refuses.
        """
        subscription = Subscription(text, callback)
        try:
            await self._admit(subscription)
        except BaseException as error:  # being cancelled is no reason to stay subscribed
            self._unsubscribe(subscription)
            if isinstance(error, Refused):
                self._refuse(error)
            raise
        return lambda: self._unsubscribe(subscription)

    async def _admit(self, subscription: Subscription) -> None:
        text = subscription.filter
        # Here one connection is enough for all that classic opens: the broker has no such limit.
        most = None if self._flavour.opens_connections else self._limits.subscriptions
        self._limits.check_filter(text)
        self._subscriptions.add(subscription)
        if most is not None and len(self._subscriptions.needed()) > most:
            raise Refused("too_many_subscriptions", f"A connection to IoT Core has {most} subscriptions at most.")
        try:
            await self._subscriptions.reconcile(self._link)
        except Retryable as error:
            raise Refused("offline", str(error)) from error
        if not any(covers(wide, text) for wide in self.upstream):
            raise Refused("subscription", f"The broker does not grant a subscription to {text}.")

    def _refuse(self, refusal: Refused) -> None:
        self.counters.refused[refusal.reason] += 1
        if worth_logging(count := self.counters.refused[refusal.reason]):
            _log.info("IoT Core refuses (%s, %d so far): %s", refusal.reason, count, refusal)

    # What classic does: store, and send as the connection, the window and the rate allow.

    def _store(self, message: Message) -> None:
        if message.qos == 0 and self._link is None and not self._settings.keep_qos_0:
            raise Refused("offline", "Device is offline. Dropping QoS 0 message.")
        self._spooler.store(message)
        self._pump()

    def _pump(self) -> None:
        """Send what the spooler holds, for as long as connection, window and rate allow."""
        while (link := self._link) is not None and not link.lost.done() and len(self._under_way) < self._window:
            message = self._spooler.first()
            if message is None:
                return
            loop = asyncio.get_running_loop()
            now, size = loop.time(), len(message.payload)
            wait = max(self._rate.wait_s(now, 1), self._throughput.wait_s(now, size))
            if wait > 0:  # the classic nucleus has its own throttle, so IoT Core has nothing to discard
                if self._pause is None:
                    self._pause = loop.call_later(wait, self._resume)
                return
            self._rate.take(1)
            self._throughput.take(size)
            self._spooler.take()
            packet = link.publish(message.topic, message.payload, message.qos, message.retain)
            if packet is None:
                self._spooler.put_back(message)
                return
            if message.qos == 0:
                self._spooler.forget(message)
                self.counters.acknowledged += 1
            else:
                self._under_way[packet] = _UnderWay(message, now)

    def _resume(self) -> None:
        self._pause = None
        self._pump()

    # What lite does: send now or refuse, and wait for the acknowledgement.

    async def _send_and_wait(self, message: Message) -> None:
        loop = asyncio.get_running_loop()
        if self._link is None:
            raise Refused("offline", "There is no connection to IoT Core.")
        if len(self._under_way) >= self._window:
            raise Refused("in_flight", f"{self._window} publishes wait for their acknowledgement, which is the most.")
        if self._rate.wait_s(loop.time(), 1) > 0:
            raise Refused(
                "throttled",
                f"IoT Core discards what exceeds {self._limits.publishes_per_s:g} publishes a second on a connection.",
            )
        self._rate.take(1)
        size = len(message.payload)
        if (wait := self._throughput.wait_s(loop.time(), size)) > 0:
            await asyncio.sleep(wait)
        self._throughput.take(size)
        packet = (
            None
            if self._link is None
            else self._link.publish(message.topic, message.payload, message.qos, message.retain)
        )
        if packet is None:
            raise Refused("offline", "The connection to IoT Core is gone.")
        if message.qos == 0:
            self.counters.acknowledged += 1
            return
        done: asyncio.Future[None] = loop.create_future()
        self._under_way[packet] = _UnderWay(message, loop.time(), done)
        await done

    # The connection.

    async def _stay_connected(self) -> None:
        shortest, longest = self._settings.reconnect_s
        pause = shortest
        while True:
            await self._wanted.wait()
            link = Connection(
                self._address, self._thing, self._acknowledged, self._received, keepalive_s=self._settings.keepalive_s
            )
            try:
                await link.open()
                if not self._wanted.is_set():
                    link.abort("The nucleus was told to be offline.")
                    continue
                await self._take_up(link)
                pause = shortest
                why = await link.lost
            except Retryable as error:
                why = str(error)
            finally:
                self._attempted.set()
                link.abort("The nucleus lets go of the connection.")
            self._forget_link(why)
            if self._wanted.is_set():
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)

    async def _take_up(self, link: Connection) -> None:
        """Subscribe again, and send what has waited."""
        self._link = link
        self._subscriptions.upstream.clear()
        self.counters.connects += 1
        self._said = ""
        _log.info("IoT Core: connected to %s:%d as %s.", *self._address, self._thing)
        self._attempted.set()
        await self._subscriptions.reconcile(self._link)
        self._pump()

    def _forget_link(self, why: str) -> None:
        if why != self._said:
            self._said = why
            _log.warning("IoT Core: offline. %s", why)
        self._link = None
        self._subscriptions.upstream.clear()
        under_way, self._under_way = list(self._under_way.values()), {}
        for one in reversed(under_way):  # the oldest ends up in front
            if one.done is not None:
                if not one.done.done():
                    one.done.set_exception(Refused("unacknowledged", f"IoT Core has not acknowledged it. {why}"))
                continue
            one.message.tries += 1
            if one.message.tries > self._settings.retries:
                self._spooler.forget(one.message)
                self.counters.dropped["retries"] += 1
                _log.warning(
                    "IoT Core: a publish to %r is dropped after %d tries.", one.message.topic, one.message.tries
                )
            else:
                self._spooler.put_back(one.message)
        if self._flavour.spools and not self._settings.keep_qos_0:
            self._spooler.drop_qos_0("offline")

    async def _watch_acknowledgements(self) -> None:
        """Give a connection up on which the broker acknowledges nothing."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_TICK_S, self._settings.ack_timeout_s / 2))
            oldest = next(iter(self._under_way.values()), None)
            limit = self._settings.ack_timeout_s
            if oldest is not None and self._link is not None and loop.time() - oldest.sent_at > limit:
                self._link.abort(f"The broker has not acknowledged a publish within {limit:g} s.")

    def _acknowledged(self, packet: int) -> None:
        one = self._under_way.pop(packet, None)
        if one is None:
            return  # QoS 0, which paho reports as well
        self.counters.acknowledged += 1
        if one.done is None:
            self._spooler.forget(one.message)
            self._pump()
        elif not one.done.done():
            one.done.set_result(None)

    # Subscriptions.

    def _received(self, topic: str, payload: bytes) -> None:
        self.counters.received += 1
        if not self._subscriptions.dispatch(topic, payload):
            self.counters.unclaimed += 1

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._subscriptions.remove(subscription) and self._link is not None:
            self._spawn(self._reconcile_later())

    async def _reconcile_later(self) -> None:
        with contextlib.suppress(Retryable):  # the next connection subscribes to what is needed then
            await self._subscriptions.reconcile(self._link)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
