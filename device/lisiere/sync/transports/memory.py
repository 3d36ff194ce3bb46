"""An in-process transport: a broker and its network in one object, for tests and for replay."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from lisiere.errors import Retryable
from lisiere.sync.transports.base import (
    JSON,
    MESSAGE_MAX_BYTES,
    Acked,
    Bell,
    Denied,
    Event,
    Listener,
    Lost,
    Received,
    Refused,
    Will,
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the broker saw it."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content: str = JSON
    expiry_s: float | None = None


@dataclass
class MemoryBroker:
    """What connections of `MemoryTransport` reach.

    Attributes:
        messages: all that arrived, in order.
        online: whether connecting succeeds.
        acknowledging: whether QoS 1 messages are acknowledged at once.
        most_unacknowledged: the most that were under way at any time while they were not.
        max_bytes: of a QoS 1 message; a larger one is refused.
        denied: topics that nobody may publish on.
        window: how many unacknowledged messages it says that it takes.
        poison: called with each QoS 1 message; one that it returns True for ends the connection.
    """

    messages: list[Message] = field(default_factory=list)
    online: bool = True
    acknowledging: bool = True
    most_unacknowledged: int = 0
    max_bytes: int | None = None
    denied: frozenset[str] = frozenset()
    window: int | None = None
    poison: Callable[[Message], bool] = lambda _message: False
    connections: list[MemoryTransport] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def cut(self) -> None:
        """Take the network away: every connection is lost, its will is published, and none is made."""
        self.online = False
        for connection in list(self.connections):
            connection.drop("The network was cut.")

    def restore(self) -> None:
        """Bring the network back."""
        self.online = True

    def of(self, topic: str) -> list[Message]:
        """Return what arrived on one topic."""
        return [message for message in self.messages if message.topic == topic]


class MemoryTransport:
    """One connection to a MemoryBroker."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._listener: Listener | None = None
        self._bell = Bell()
        self._will: Will | None = None
        self._token = 0
        self._waiting: list[int] = []
        self.window = broker.window
        self.max_bytes = MESSAGE_MAX_BYTES if broker.max_bytes is None else broker.max_bytes
        self.subscriptions: list[str] = []

    def connect(self, will: Will, listener: Listener) -> None:
        """Connect; see `Transport.connect`."""
        if not self._broker.online:
            raise Retryable("The broker is away.")

        def tell(event: Event) -> None:
            listener(event)
            self._bell.ring()

        self._listener, self._will = tell, will
        self._broker.connections.append(self)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content: str = JSON,
        expiry_s: float | None = None,
    ) -> int:
        """Publish; see `Transport.publish`."""
        if self._listener is None:
            raise Retryable("The connection is gone.")
        self._token += 1
        broker = self._broker
        if qos and broker.max_bytes is not None and len(payload) > broker.max_bytes:
            self._listener(Refused(self._token, "too_large", f"A message has {len(payload)} bytes."))
            return self._token
        if qos and topic in broker.denied:
            self._listener(Denied(self._token, f"Not on {topic}."))
            return self._token
        message = Message(topic, payload, qos, retain, content, expiry_s)
        if qos and broker.poison(message):
            self.drop("The broker ended the connection.")
            return self._token
        with broker.changed:
            broker.messages.append(message)
            if qos and not broker.acknowledging:
                self._waiting.append(self._token)
                broker.most_unacknowledged = max(broker.most_unacknowledged, len(self._waiting))
            broker.changed.notify_all()
        if qos and broker.acknowledging:
            self._listener(Acked(self._token))
        return self._token

    def subscribe(self, topic: str) -> None:
        """Subscribe; see `Transport.subscribe`."""
        if self._listener is None:
            raise Retryable("The connection is gone.")
        with self._broker.changed:
            self.subscriptions.append(topic)
            self._broker.changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Wait; see `Transport.wait`."""
        self._bell.wait(timeout)

    def wake(self) -> None:
        """End a wait; see `Transport.wake`."""
        self._bell.ring()

    def receive(self, topic: str, payload: bytes) -> None:
        """Let a message arrive from the broker, for tests."""
        if self._listener is not None:
            self._listener(Received(topic, payload))

    def acknowledge_all(self) -> None:
        """Acknowledge what has waited for it."""
        waiting, self._waiting = self._waiting, []
        for token in waiting:
            if self._listener is not None:
                self._listener(Acked(token))

    def drop(self, why: str) -> None:
        """Lose the connection as a network does: the listener hears of it, and the will goes out."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._broker.connections.remove(self)
        if self._will is not None:
            with self._broker.changed:
                self._broker.messages.append(Message(self._will.topic, self._will.payload, 1, True))
                self._broker.changed.notify_all()
        listener(Lost(why))

    def close(self) -> None:
        """Disconnect cleanly: no will."""
        if self._listener is not None:
            self._listener = None
            self._broker.connections.remove(self)
