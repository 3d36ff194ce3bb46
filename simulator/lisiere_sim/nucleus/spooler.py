"""The classic nucleus's spooler: publishes wait in memory until IoT Core has acknowledged them.

Source: the classic nucleus, `mqttclient/spool/Spool.java`. Full, it drops QoS 0 to make room, and refuses the new
message when that is not enough.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

from lisiere_sim.nucleus.limits import Refused

SPOOL_BYTES = int(2.5 * 1024 * 1024)
_MESSAGES_MAX = 100_000  # ours, since messages without a payload have no size


@dataclass(slots=True)
class Message:
    """One publish. `tries` counts how often sending it has failed."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    tries: int = 0


class Spooler:
    """Messages in the order in which they came; those under way still count for its size.

    Args:
        max_bytes: of payloads, with those under way.
        dropped: where what is dropped is counted.
    """

    def __init__(self, max_bytes: int, dropped: Counter[str]) -> None:
        self._max_bytes = max_bytes
        self._dropped = dropped
        self._waiting: deque[Message] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        """How many wait; those under way not counted."""
        return len(self._waiting)

    def store(self, message: Message) -> None:
        """Take a message in.

        Raises:
            Refused: there is no room; what was stored stays, but for QoS 0.
        """
        size = len(message.payload)
        if size > self._max_bytes:
            raise Refused("spooler_full", "Message is larger than the size of message spool.")
        if self._bytes + size > self._max_bytes:
            self.drop_qos_0("spooler_full", self._bytes + size - self._max_bytes)
        if self._bytes + size > self._max_bytes or len(self._waiting) >= _MESSAGES_MAX:
            raise Refused("spooler_full", "Message spool is full. Message could not be added.")
        self._bytes += size
        self._waiting.append(message)

    def first(self) -> Message | None:
        """The oldest message that waits."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Message:
        """Take the oldest one to send it; it counts until `forget` or `put_back`."""
        return self._waiting.popleft()

    def put_back(self, message: Message) -> None:
        """Put a message that was not delivered to the front again."""
        self._waiting.appendleft(message)

    def forget(self, message: Message) -> None:
        """Let go of a message that was delivered or given up."""
        self._bytes -= len(message.payload)

    def drop_qos_0(self, reason: str, needed: int | None = None) -> None:
        """Drop QoS 0 messages, oldest first, until `needed` bytes are free; all of them without it."""
        kept: deque[Message] = deque()
        for message in self._waiting:
            if message.qos == 0 and (needed is None or needed > 0):
                self.forget(message)
                self._dropped[reason] += 1
                needed = None if needed is None else needed - len(message.payload)
            else:
                kept.append(message)
        self._waiting = kept

    def drop_all(self, reason: str) -> int:
        """Drop what waits and return how many messages that were."""
        count = len(self._waiting)
        while self._waiting:
            self.forget(self._waiting.popleft())
        if count:
            self._dropped[reason] += count
        return count
