"""The subscriber's connection: paho in a thread of its own, which connects again by itself, and a bounded inbox."""

from __future__ import annotations

import queue
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho

from lisiere.errors import Retryable
from lisiere.subscriber.events import Link

_INBOX_MAX = 1000
_CONNECT_S = 10.0
_PAUSE_S = 0.2
_RECONNECT_S = (1, 30)  # paho doubles from the first to the second


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came; `receipt` is what `Connection.acknowledge` wants."""

    topic: str
    payload: bytes
    retained: bool
    receipt: tuple[int, int, int]  # connection number, message id, QoS


@dataclass(frozen=True, slots=True)
class Broker:
    """Where the broker is, and how to get in.

    Attributes:
        tls: the context of a TLS connection; None for a plain one.
        client_id: with one, the broker keeps a session: what comes while the subscriber is away waits there.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None
    client_id: str | None = None


class Connection:
    """Connects, subscribes, and hands over what comes. Messages are acknowledged only when `acknowledge` is called.

    When nobody takes from the inbox the connection is not read any more, so that what is too much waits in the broker.

    Args:
        topics: filters to subscribe to, at most eight (AWS IoT Core takes so many in one packet).
    """

    def __init__(self, broker: Broker, topics: Sequence[str]) -> None:
        self.inbox: queue.Queue[Message | Link | None] = queue.Queue(_INBOX_MAX)
        self._broker = broker
        self._topics = topics
        self._granted = threading.Event()
        self._closing = False
        self._failure: str | None = None
        self._number = 0
        self._client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            broker.client_id or "",
            clean_session=broker.client_id is None,
            manual_ack=True,
        )
        self._client.connect_timeout = _CONNECT_S
        self._client.reconnect_delay_set(*_RECONNECT_S)
        if broker.username is not None:
            self._client.username_pw_set(broker.username, broker.password)
        if broker.tls is not None:
            self._client.tls_set_context(broker.tls)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message

    def open(self) -> None:
        """Connect for the first time, and return once the broker has granted what was asked for.

        Raises:
            Retryable: the broker cannot be reached or refuses. Later it is tried again and again.
        """
        where = f"{self._broker.host}:{self._broker.port}"
        try:
            self._client.connect(self._broker.host, self._broker.port)
        except ssl.SSLError as error:
            raise Retryable(f"TLS with the broker {where} failed: {error}") from error
        except OSError as error:
            raise Retryable(f"The broker {where} cannot be reached: {error}") from error
        self._client.loop_start()
        if not self._granted.wait(_CONNECT_S) or self._failure:
            self.close()
            why = self._failure or f"it did not answer within {_CONNECT_S:g} s"
            raise Retryable(f"The broker {where} does not grant the subscription: {why}.")

    def acknowledge(self, message: Message) -> None:
        """Tell the broker that a message need not come again; nothing is told of an earlier connection's."""
        number, mid, qos = message.receipt
        if number == self._number:
            self._client.ack(mid, qos)

    def publish(self, topic: str, payload: bytes) -> bool:
        """Publish with QoS 1, and return whether that could be begun."""
        if not self._client.is_connected():
            return False  # paho would keep it, and send it at a time when it is no longer true
        return bool(self._client.publish(topic, payload, 1).rc == paho.MQTT_ERR_SUCCESS)

    def close(self) -> None:
        """Disconnect and end the thread. Calling it twice does no harm."""
        self._closing = True
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._failure = str(reason)
            self._granted.set()
            return
        self._number += 1
        self._client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [topic for topic, reason in zip(self._topics, reasons, strict=False) if reason.is_failure]
        self._failure = f"it refuses {', '.join(refused)}" if refused else None
        if self._granted.is_set():
            self._put(Link(connected=not refused, why=self._failure or ""))
        self._granted.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._granted.is_set():
            self._failure = str(reason)
            self._granted.set()
        elif not self._closing:
            self._put(Link(connected=False, why=f"The broker closed the connection: {reason}."))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        receipt = self._number, message.mid, message.qos
        self._put(Message(message.topic, bytes(message.payload), bool(message.retain), receipt))

    def _put(self, item: Message | Link) -> None:
        while not self._closing:
            try:
                self.inbox.put(item, timeout=_PAUSE_S)
            except queue.Full:
                continue
            return
