"""From readings to windows, in event time.

Readings are put on a grid of `step_s` seconds by their own stamps. Short gaps are interpolated, long ones
stay holes, and every window says how much of it is real.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import TS_MAX, TS_MIN
from lisiere.models.manifest import WindowInput
from lisiere.values import Reading, Window

Fault = Literal["duplicate", "out_of_order", "not_a_number", "clock_restarted"]
_LARGEST = float(np.finfo(np.float32).max)  # a larger value is no number to the model; NaN compares as false too


_LATE_ROWS = 32  # at least so many late readings in a row are taken for a clock that was set back


class WindowBuilder:
    """Gathers readings into windows of `length` rows, one every `stride` rows.

    The first reading fixes the grid. Memory is bounded by `length` rows whatever the readings say.

    Attributes:
        faults: how many readings were left out, by the name of the fault.
    """

    def __init__(self, how: WindowInput, source: str) -> None:
        self.faults: Counter[Fault] = Counter()
        self._how = how
        self._source = source
        channels = len(how.channels)
        # Twice the length, so that the rows move once a length and not once a reading.
        self._rows = np.full((2 * how.length, channels), np.nan, np.float32)
        self._real = np.zeros(2 * how.length, np.bool_)
        self._filled = 0
        self._origin = math.nan
        self._last = -1  # grid index of the newest row
        self._behind = 0  # how many readings in a row were not newer than that
        self._due = how.length - 1  # grid index whose arrival completes the next window

    def add(self, reading: Reading) -> list[Window]:
        """Take one reading and return the windows that it completes, usually none or one.

        A reading that is a duplicate, late or not a number is left out and counted in `faults`. After a
        window's worth of late ones in a row the grid starts anew: one stamp far in the future must not silence a
        sensor for good.
        """
        if len(reading.values) != len(self._how.channels) or not TS_MIN <= reading.ts <= TS_MAX:
            self.faults["not_a_number"] += 1
            return []
        if not any(abs(value) <= _LARGEST for value in reading.values):
            self.faults["not_a_number"] += 1
            return []
        values = np.asarray([value if abs(value) <= _LARGEST else math.nan for value in reading.values], np.float32)
        if self._last < 0:
            self._origin = reading.ts
        index = round((reading.ts - self._origin) / self._how.step_s)
        if index <= self._last:
            self._behind += 1
            if self._behind < max(self._how.length, _LATE_ROWS):
                self.faults["duplicate" if index == self._last else "out_of_order"] += 1
                return []
            # So many from the past: the clock was set back, or one stamp was far ahead of all others.
            self.faults["clock_restarted"] += 1
            self._origin, self._filled, self._last, self._due = reading.ts, 0, -1, self._how.length - 1
            index = 0
        self._behind = 0
        windows = self._fill_gap(index, values)
        self._push(values, real=True)
        self._last = index
        if index == self._due:
            windows.append(self._window())
        return windows

    def _fill_gap(self, index: int, after: NDArray[np.float32]) -> list[Window]:
        """Fill the rows between the newest one and `index`, and return the windows that end in the gap."""
        gap = index - self._last - 1
        if self._last < 0 or gap == 0:
            return []
        length, stride = self._how.length, self._how.stride
        if gap >= length + stride:
            # So long that windows would hold nothing at all: one such window tells it, then start afresh.
            self._rows[:] = np.nan
            self._real[:] = False
            self._filled = length
            self._last = index - 1
            self._due = index + stride - 1
            return [self._window()]
        windows = []
        before = self._rows[self._filled - 1].copy()
        interpolate = gap <= self._how.max_gap
        for step in range(1, gap + 1):
            share = np.float32(step / (gap + 1))
            row = before * (1 - share) + after * share  # never beyond the two, so it cannot overflow
            self._push(row if interpolate else np.full_like(before, np.nan), real=False)
            self._last += 1
            if self._last == self._due:
                windows.append(self._window())
        return windows

    def _push(self, values: NDArray[np.float32], real: bool) -> None:
        length = self._how.length
        if self._filled == len(self._rows):
            self._rows[:length] = self._rows[length:]
            self._real[:length] = self._real[length:]
            self._filled = length
        self._rows[self._filled] = values
        self._real[self._filled] = real
        self._filled += 1

    def _window(self) -> Window:
        """The window that ends at the newest row; the next one is due a stride later."""
        length, step = self._how.length, self._how.step_s
        self._due = max(self._due, self._last + self._how.stride)
        rows = self._rows[self._filled - length : self._filled].copy()
        real = self._real[self._filled - length : self._filled]
        end = self._origin + self._last * step
        return Window(
            values=rows,
            start=end - (length - 1) * step,
            end=end,
            step_s=step,
            coverage=float(real.mean()),
            imputed=int((~real & np.isfinite(rows).all(axis=1)).sum()),
            source=self._source,
            real=real[:, np.newaxis] & np.isfinite(rows),
        )
