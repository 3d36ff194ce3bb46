"""Pacing: letting recorded input arrive at the rate of a live one, and asking live input at regular times."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lisiere.clock import Clock
from lisiere.sources.base import FaultReport
from lisiere.values import Reading


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


class Arrival(NamedTuple):
    """When a frame had come whole, by both clocks: before it is decoded, since its age begins here."""

    ts: float
    captured: float

    @classmethod
    def now(cls, clock: Clock) -> Arrival:
        """Return this moment."""
        return cls(clock.now(), clock.monotonic())


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


def polled(
    ask: Callable[[], Sequence[float]],
    interval: float,
    name: str,
    clock: Clock,
    fault: FaultReport,
    stop: threading.Event,
) -> Iterator[Reading]:
    """Yield a reading of what `ask` returns now and every `interval` seconds, until stopped; stamped when it is asked.

    The times are those of one schedule in monotonic time, so what an answer takes does not add up. Turns that have
    passed when they would be due are left out, and counted together as one `poll_late`: a device that is slow is not
    asked in haste.
    """
    start = clock.monotonic()
    turn = 0
    while not stop.is_set():
        stamp = clock.now()
        values = tuple(ask())
        if stop.is_set():
            return  # in the middle of asking, perhaps
        yield Reading(stamp, values, name)
        due = turn + 1
        turn = max(due, math.ceil((clock.monotonic() - start) / interval))
        if turn > due:
            fault("poll_late", f"Reading took longer than the {interval:g} s between two; {turn - due} were left out.")
        if stop.wait(min(max(0.0, start + turn * interval - clock.monotonic()), threading.TIMEOUT_MAX)):
            return
