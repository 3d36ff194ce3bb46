"""Pacing: letting recorded input arrive at the rate of a live one."""

from __future__ import annotations

import threading

from lisiere.clock import Clock


class Pacer:
    """Waits until an item is due, by monotonic time; a late consumer is not hurried to catch up.

    Args:
        stop: ends a wait early.
    """

    def __init__(self, clock: Clock, stop: threading.Event) -> None:
        self._clock = clock
        self._stop = stop
        self._next = clock.monotonic()

    def wait(self, interval: float) -> bool:
        """Wait until `interval` seconds after the previous item was due; return False when stopped."""
        now = self._clock.monotonic()
        self._next = max(self._next + interval, now - interval)
        # An event cannot wait for longer than TIMEOUT_MAX, which is centuries.
        return not self._stop.wait(min(max(0.0, self._next - now), threading.TIMEOUT_MAX))


class Thinning:
    """Says of each live frame whether it is wanted: at most `fps` a second are, however fast they come.

    Args:
        fps: None wants all of them.
    """

    def __init__(self, clock: Clock, fps: float | None) -> None:
        self._clock = clock
        self._interval = 1 / fps if fps else 0.0
        self._due = clock.monotonic()

    def wanted(self) -> bool:
        """Whether the frame that has come now is wanted."""
        now = self._clock.monotonic()
        if now < self._due:
            return False
        # Not later than one interval from now: a camera that was slow is not hurried afterwards.
        self._due = max(self._due + self._interval, now)
        return True
