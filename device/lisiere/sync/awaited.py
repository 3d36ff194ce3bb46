"""What a transport has taken and a consumer has yet to acknowledge, where `consumer_ack` is on.

"Taken by the nucleus" is not "arrived": a row stays in the spool until `cmd/ack` names it, and is sent again when
nobody did for too long.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from lisiere.clock import Clock

_MOST = 4096  # rows; beyond that the drain waits for consumers


class Awaited:
    """Seqs and when each was taken; at most 4,096. Every method may be called from any thread.

    Args:
        wait_s: how long an acknowledgement is waited for.
    """

    def __init__(self, wait_s: float, clock: Clock) -> None:
        self._wait_s = wait_s
        self._clock = clock
        self._lock = threading.Lock()
        self._since: dict[int, float] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, seq: int) -> bool:
        return seq in self._since

    @property
    def full(self) -> bool:
        """Whether so many wait for a consumer that nothing more should be sent."""
        return len(self._since) >= _MOST

    def add(self, seqs: Iterable[int]) -> None:
        """Begin to wait for a consumer."""
        now = self._clock.monotonic()
        with self._lock:
            for seq in seqs:
                self._since.pop(seq, None)
                self._since[seq] = now

    def acknowledged(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        """Take out and return what is awaited and lies in one of these inclusive ranges; anything else is ignored."""
        with self._lock:
            found = [seq for first, last in ranges for seq in self._since if first <= seq <= last]
            return [seq for seq in found if self._since.pop(seq, None) is not None]

    def clear(self) -> None:
        """Forget all: the spool is another one, whose seqs mean other rows."""
        with self._lock:
            self._since.clear()

    def overdue(self) -> list[int]:
        """Take out and return what has been waited for in vain."""
        before = self._clock.monotonic() - self._wait_s
        with self._lock:
            late = []
            for seq, since in self._since.items():
                if since > before:
                    break
                late.append(seq)
            for seq in late:
                del self._since[seq]
            return late

    def next_s(self) -> float | None:
        """Return in how many seconds the next is overdue, or None where nothing is awaited."""
        with self._lock:
            oldest = next(iter(self._since.values()), None)
        return None if oldest is None else max(0.0, oldest + self._wait_s - self._clock.monotonic())
