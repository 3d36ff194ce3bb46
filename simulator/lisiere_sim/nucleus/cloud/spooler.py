"""The classic nucleus's spooler: publishes wait, in memory and if asked on disk, until IoT Core has acknowledged them.

Source: the classic nucleus, `mqttclient/spool/Spool.java`. Full, it drops QoS 0 to make room, and refuses the new
message when that is not enough.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from lisiere_sim.nucleus.cloud.limits import Refused
from lisiere_sim.nucleus.cloud.spoolfile import SpoolFile

SPOOL_BYTES = int(2.5 * 1024 * 1024)
_MESSAGES_MAX = 100_000  # ours, since messages without a payload have no size


@dataclass(slots=True)
class Message:
    """One publish. `tries` counts how often sending it has failed; `number` is its place on disk, if it has one."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    tries: int = 0
    number: int | None = None


class Spooler:
    """Messages in the order in which they came; those under way still count for its size.

    Args:
        max_bytes: of payloads, with those under way.
        dropped: where what is dropped is counted.
        file: where the messages are, too; what it holds from before comes first.
    """

    def __init__(self, max_bytes: int, dropped: Counter[str], file: Path | None = None) -> None:
        self._max_bytes = max_bytes
        self._dropped = dropped
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._file = SpoolFile(file) if file is not None else None
        for number, topic, payload, qos, retain in self._file.rows if self._file is not None else ():
            self._waiting.append(Message(topic, payload, qos, bool(retain), number=number))
            self._bytes += len(payload)

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
        if self._file is not None:
            message.number = self._file.add(message.topic, message.payload, message.qos, message.retain)
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
        if self._file is not None and message.number is not None:
            self._file.remove(message.number)

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

    def close(self, reason: str) -> int:
        """Drop what is in memory alone, for this reason, and return how many messages that were."""
        lost = sum(message.number is None for message in self._waiting)
        self._waiting.clear()
        self._bytes = 0
        if lost:
            self._dropped[reason] += lost
        if self._file is not None:
            self._file.close()
            self._file = None
        return lost
