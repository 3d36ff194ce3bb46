"""What AWS IoT Core does with a connection that publishes too fast: the excess is discarded, and nobody is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_PUBLISH = 3


class Discard:
    """Takes PUBLISH packets out of a connection's bytes: those beyond so many in any one second.

    Attributes:
        passed: when each message of QoS 1 passed, of those of the last second.
        discarded: how many were taken out.
        most: the most that came, passed or not, in any one second.

    Args:
        per_s: how many may pass in any one second.
        now: monotonic time.
    """

    def __init__(self, per_s: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._now = now
        self._rest = b""
        self._came: deque[float] = deque()
        self.passed: deque[float] = deque()
        self.discarded = 0
        self.most = 0

    def feed(self, data: bytes) -> bytes:
        """Take in bytes as they come, and return what goes on; a packet that is not whole yet is held back."""
        self._rest += data
        out: list[bytes] = []
        while (size := _packet_bytes(self._rest)) is not None and size <= len(self._rest):
            packet, self._rest = self._rest[:size], self._rest[size:]
            if packet[0] >> 4 != _PUBLISH or self._may_pass():
                out.append(packet)
        return b"".join(out)

    def _may_pass(self) -> bool:
        now = self._now()
        for times in (self._came, self.passed):
            while times and times[0] <= now - 1:
                times.popleft()
        self._came.append(now)
        self.most = max(self.most, len(self._came))
        if len(self.passed) >= self._per_s:
            self.discarded += 1
            return False
        self.passed.append(now)
        return True


def _packet_bytes(data: bytes) -> int | None:
    """Return how long the packet is that these bytes begin with, or None while that is not known (MQTT, 2.1.4)."""
    length = 0
    for at, byte in enumerate(data[1:5]):
        length |= (byte & 0x7F) << 7 * at
        if not byte & 0x80:
            return 2 + at + length
    return None
