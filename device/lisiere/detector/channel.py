"""One channel: five views of what is unusual about its newest value, each with a tail of its own."""

from __future__ import annotations

import math

from lisiere.detector.tail import Tail

_MEMORY = 2000  # values that levels and scales rest on
_SETTLE = 50  # values before outliers are held back from them
_DAY_S, _SLOT_S = 86_400.0, 1_800.0
_WEEK_S, _HOUR_S = 604_800.0, 3_600.0
_MONDAY_S = 345_600.0  # 1970 began on a Thursday
_TINY = 1e-9  # of the level: less is no difference


class ChannelDetector:
    """Scores one value after another; higher is rarer. A view alone gives minus log10 of the chance, 12 at most.

    What is expected is the slow level, or what the time of day or of the week has shown before, whichever has erred
    least. The views: a jump against the last values; a short mean that has left the level; a short mean that has left
    the time of day; a longer mean that has left the best expectation; and a value beyond all before. Everything is an
    exponential mean, so memory is bounded: 48 slots of the day and 168 hours of the week.
    """

    __slots__ = (
        "_best40",
        "_count",
        "_day",
        "_day12",
        "_day_error",
        "_day_scale",
        "_error",
        "_fast",
        "_high",
        "_jump",
        "_level",
        "_low",
        "_mean12",
        "_offset",
        "_resumed",
        "_tails",
        "_week",
        "_week_error",
    )

    def __init__(self) -> None:
        self._count = 0
        self._level = self._fast = self._mean12 = self._low = self._high = 0.0
        self._error = self._jump = self._day_error = self._week_error = self._day_scale = 0.0
        self._day12 = self._best40 = self._offset = 0.0
        self._resumed = False
        self._day: dict[int, float] = {}
        self._week: dict[int, float] = {}
        self._tails = tuple(Tail() for _ in range(5))

    def __call__(self, ts: float, value: float) -> float:
        """Return how unusual a value is at its time (seconds since 1970), and learn from it."""
        count = self._count
        if count == 0:
            self._level = self._fast = self._mean12 = self._low = self._high = value
        if self._resumed:
            self._resumed = False
            self._fast = self._mean12 = value
            self._day12 = self._best40 = 0.0
        self._count = count + 1
        tiny = _TINY * abs(self._level) + 1e-30
        rate = 1.0 / (count + 1 if count < _MEMORY else _MEMORY)
        settled = count > _SETTLE
        # A jump against the last values.
        step = value - self._fast
        size = abs(step)
        scale = self._jump
        jump = size / (scale + tiny) if scale > 0.0 else 0.0
        self._jump = scale + rate * ((min(size, 8.0 * scale) if settled else size) - scale)
        self._fast += 0.3 * step
        # A short mean against the slow level.
        level, error = self._level, self._error
        away = value - level
        size = abs(away)
        most = 6.0 * error if settled else math.inf
        self._error = error = error + rate * (min(size, most) - error)
        self._mean12 += (value - self._mean12) / 12.0
        left = abs(self._mean12 - level) / (error + tiny)
        near = 4.0 * error
        self._level = level + rate * (away if size < near or not settled else math.copysign(near, away))
        # What the time of day and of the week have shown before.
        best, least = away, error
        slot = int(ts % _DAY_S // _SLOT_S)
        hour = int((ts - _MONDAY_S) % _WEEK_S // _HOUR_S)
        known = self._day.get(slot)
        offset = self._offset
        daily = 0.0
        if known is None:
            self._day[slot] = value
            self._day_error = error
        else:
            residual = value - known - offset
            size = abs(residual)
            self._day[slot] = known + 0.07 * (value - known)
            self._day_error += rate * (min(size, most) - self._day_error)
            self._day12 += (residual - self._day12) / 12.0
            scale = self._day_scale
            daily = abs(self._day12) / (scale + tiny) if scale > 0.0 else 0.0
            self._day_scale = scale + rate * ((min(size, 6.0 * scale) if count > 300 else size) - scale)
            if self._day_error < least:
                best, least = residual, self._day_error
        known = self._week.get(hour)
        if known is None:
            self._week[hour] = value
            self._week_error = error
        else:
            residual = value - known - offset
            self._week[hour] = known + 0.2 * (value - known)
            self._week_error += rate * (min(abs(residual), most) - self._week_error)
            if self._week_error < least:
                best, least = residual, self._week_error
        # A longer mean against whichever expectation errs least.
        long = 0.0
        if settled:
            self._best40 += (best - self._best40) / 40.0
            long = abs(self._best40) / (least + tiny)
        limit = 6.0 * least
        self._offset = 0.995 * (offset + 0.005 * (best if abs(best) < limit else math.copysign(limit, best)))
        # Beyond all before.
        beyond = 0.0
        low, high = self._low, self._high
        if value > high:
            beyond = (value - high) / (high - low) if high > low else 0.0
            self._high = value
        elif value < low:
            beyond = (low - value) / (high - low) if high > low else 0.0
            self._low = value
        tails = self._tails
        a, b, c, d, e = tails[0](jump), tails[1](left), tails[2](daily), tails[3](long), tails[4](beyond)
        # The rarest view, and a little more for each that agrees: it is one score, and no longer quite a chance.
        return 0.8 * max(a, b, c, d, e) + 0.2 * (a + b + c + d + e)

    def resume(self) -> None:
        """There was a gap: begin the short means anew with the next value."""
        self._resumed = True
