"""The seam between the drain and the network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Acked:
    """The broker has acknowledged the message with this token."""

    token: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is gone; `why` is a sentence."""

    why: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The message with this token was not sent and never can be; `why` is a sentence."""

    token: int
    reason: Literal["too_large", "refused"]
    why: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The message with this token may not be sent at present: its topic is not allowed. `why` is a sentence."""

    token: int
    why: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message came on a topic that was subscribed to."""

    topic: str
    payload: bytes


Event = Acked | Lost | Refused | Denied | Received
# Called from any thread, in `wait` or beside it; must return at once.
Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says in the device's name when it vanishes: retained, QoS 1."""

    topic: str
    payload: bytes


MESSAGE_MAX_BYTES = 128 * 1024  # AWS IoT Core ends the connection of who sends more, and so do other brokers
JSON = "application/json"


class Bell:
    """What ends a wait: rung from any thread, heard by one. For transports that others carry on with."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def ring(self) -> None:
        """End the wait that is under way, or the next one."""
        self._rung.set()

    def wait(self, timeout: float) -> None:
        """Wait until it is rung; for so many seconds at most."""
        self._rung.wait(timeout)
        self._rung.clear()


class Transport(Protocol):
    """One connection, used by one thread."""

    @property
    def window(self) -> int | None:
        """How many unacknowledged messages the other end takes; None where it does not say. Known once connected."""

    @property
    def max_bytes(self) -> int:
        """The largest payload that the other end takes, as far as is known. Known once connected."""

    def connect(self, will: Will, listener: Listener) -> None:
        """Connect, and return once the other end has accepted.

        Raises:
            Retryable: it is away, refuses, or does not answer in time.
            Permanent: the configuration cannot work, such as a certificate that cannot be read.
        """

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
        """Send one message and return its token; for QoS 1 an `Acked`, a `Refused` or a `Denied` with it follows.

        It may leave as late as with the next `wait`.

        `content` is the payload's MIME type, and `expiry_s` after how many seconds it is worth nothing any more; both
        are told where the protocol has a place for them.

        Raises:
            Retryable: the connection is gone.
        """

    def subscribe(self, topic: str) -> None:
        """Have what comes on a topic (wildcards allowed) told as `Received`, for as long as the connection lives.

        Raises:
            Retryable: it is not allowed, or the connection is gone. The connection can still be used where it is there.
        """

    def wait(self, timeout: float) -> None:
        """Carry on with the connection until something is told or `wake` is called; for so many seconds at most."""

    def wake(self) -> None:
        """End the `wait` that is under way, or the next one. May be called from any thread."""

    def close(self) -> None:
        """Disconnect. What is not acknowledged by now never will be. Calling it twice does no harm."""
