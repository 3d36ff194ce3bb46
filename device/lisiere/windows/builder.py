"""The window builder: when a reading counts, when a row is complete, and what happens when stamps make no sense.

Rows lie on a grid of `step_s` seconds that the first reading fixes. A reading counts for the nearest row. A row is
closed once the watermark, the newest stamp less the allowed lateness, lies in a later row; without lateness also when
every channel has a value, unless the sensor is known to send several a step. What is closed does not change.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import TS_MAX, TS_MIN
from lisiere.models.manifest import WindowInput
from lisiere.settings.window import WindowConfig
from lisiere.values import Reading, Readings, Window
from lisiere.windows.cells import Cells, Flags, Floats
from lisiere.windows.gaps import Gaps
from lisiere.windows.history import History

Fault = Literal["duplicate", "out_of_order", "not_a_number", "clock_restarted", "unfinished"]
FAULTS: dict[Fault, str] = {
    "duplicate": "a reading was left out because its step had one already",
    "out_of_order": "a reading was left out because it came too late",
    "not_a_number": "a reading was left out because nothing in it is a number, or its stamp is no time",
    "clock_restarted": "the sensor's clock was set back, so its windows start anew",
    "unfinished": "a row at the end filled no window",
}
_LARGEST = float(np.finfo(np.float32).max)  # a larger value is no number to the model; NaN compares as false too

_LATE_READINGS = 32  # at least so many late readings in a row are taken for a clock that was set back
_SPAN = 8192  # readings, and rows beyond what must be, that are worked on at once
_FARTHEST = 2.0**52  # rows from the first one; further ones a float cannot count


class WindowBuilder:
    """Gathers readings into windows of `length` rows, one every `stride` rows.

    Windows are the same whether readings come one by one or in blocks of any size. Memory is bounded by the window,
    the lateness and the largest gap that is filled, whatever the readings say.

    Attributes:
        faults: how many readings were left out, by the name of the fault; `unfinished` counts rows at the end of the
            stream that filled no window.
    """

    def __init__(self, how: WindowInput, source: str, config: WindowConfig | None = None) -> None:
        config = config or WindowConfig()
        self.faults: Counter[Fault] = Counter()
        self._channels = len(how.channels)
        self._step = how.step_s
        self._length = how.length
        self._lateness = config.lateness_s
        self._most_late = max(how.length, _LATE_READINGS)
        # Beyond so many empty rows a window of nothing has been told, and nothing is interpolated.
        self._longest = how.length + how.stride
        open_rows = math.ceil(config.lateness_s / how.step_s) + 1
        self._most_rows = _SPAN + self._longest + 2 * open_rows
        self._cells = Cells(self._channels, config.aggregate)
        self._gaps = Gaps(self._channels, min(how.max_gap, self._longest - 1))
        self._history = History(how, source)
        self._several = False  # whether the sensor is known to send several readings a step
        self._start(math.nan)

    def add(self, reading: Reading) -> list[Window]:
        """Take one reading and return the windows that it completes, usually none or one; see `add_block`."""
        if len(reading.values) != self._channels:
            self.faults["not_a_number"] += 1
            return []
        if self._next_alone(reading):
            return self._take_next(reading)
        if self._joins(reading):
            return []
        marks = {0: reading.faults} if reading.faults else {}
        return self.add_block(Readings(np.array([reading.ts]), np.array([reading.values], np.float64), "", marks))

    def add_all(self, readings: Sequence[Reading]) -> list[Window]:
        """Take readings in the order of arrival, at once if there are many; see `add_block`."""
        if len(readings) == 1:
            return self.add(readings[0])
        good = [reading for reading in readings if len(reading.values) == self._channels]
        self._count("not_a_number", len(readings) - len(good))
        values = np.array([reading.values for reading in good], np.float64).reshape(len(good), self._channels)
        marks = {at: reading.faults for at, reading in enumerate(good) if reading.faults}
        return self.add_block(Readings(np.array([reading.ts for reading in good], np.float64), values, "", marks))

    def add_block(self, block: Readings) -> list[Window]:
        """Take readings in the order of arrival and return the windows that they complete.

        Readings that are duplicates, late or not numbers are left out and counted in `faults`. After a window's worth
        of late ones in a row the grid starts anew: one stamp far in the future must not silence a sensor for good.
        """
        ts, values, marks = block.ts, block.values, block.faults
        numbers = np.abs(values) <= _LARGEST
        usable = (ts >= TS_MIN) & (ts <= TS_MAX)
        known: Flags | None = None
        if not numbers.all():
            known = numbers
            values = np.where(known, values, math.nan)
            usable &= known.any(axis=1)
        if usable.all():
            return self._take_all(ts, values, known, marks)
        self.faults["not_a_number"] += int((~usable).sum())
        windows: list[Window] = []
        first = 0
        # What is wrong with a reading that has no value is told by the row that it would have been in.
        for stop in [*sorted(at for at in marks if not usable[at]), len(ts)]:
            kept = np.flatnonzero(usable[first:stop]) + first
            told = {at: marks[old] for at, old in enumerate(kept.tolist()) if old in marks} if marks else marks
            windows += self._take_all(ts[kept], values[kept], None if known is None else known[kept], told)
            if stop < len(ts):
                self._mark_missing(float(ts[stop]), marks[stop])
            first = stop
        return windows

    def silent(self, seconds: float) -> list[Window]:
        """Return the windows that are over when no reading has come for so long, each once.

        What has come is closed. Windows beyond it are told ahead: readings that come for them after all still count,
        and then those windows are told again with what is in them.
        """
        if math.isnan(self._origin):
            return []
        windows = self._close_all()
        now = min(self._newest_ts + seconds, TS_MAX) - self._lateness
        return windows + self._history.ahead(self._origin, int(min(self._row(now), _FARTHEST)))

    def finish(self) -> list[Window]:
        """No more readings come: return the windows that are complete with what has come, and forget it all."""
        windows = []
        if not math.isnan(self._origin):
            windows = self._close_all()
            if untold := self._history.untold:
                self.faults["unfinished"] += untold
        self._start(math.nan)
        return windows

    def _start(self, origin: float) -> None:
        """Begin a grid whose row 0 is at `origin`; NaN: at the next reading."""
        self._origin = origin
        self._newest = -1  # the row of the newest reading
        self._newest_ts = -math.inf
        self._closed = -1  # the last row that does not change any more
        self._behind = 0  # how many readings in a row were too late
        self._cells.clear(0)
        self._gaps.clear()
        self._history.clear()

    def _row(self, ts: float) -> float:
        return float(np.rint((ts - self._origin) / self._step))

    def _mark_missing(self, ts: float, names: tuple[str, ...]) -> None:
        row = self._row(ts) if TS_MIN <= ts <= TS_MAX else math.nan
        if self._closed < row <= self._newest + self._longest:  # NaN without an origin
            self._history.mark(int(row), names)

    def _next_alone(self, reading: Reading) -> bool:
        """Whether nothing is to be decided: one reading, whole and good, for the row that comes next."""
        if self._lateness or self._several or reading.faults or self._closed < max(self._length - 2, 0):
            return False
        if len(self._cells) or self._gaps.pending or not TS_MIN <= reading.ts <= TS_MAX:
            return False
        row = round((reading.ts - self._origin) / self._step)
        if row != self._closed + 1 or row != self._newest + 1:
            return False
        return all(-_LARGEST <= value <= _LARGEST for value in reading.values)

    def _take_next(self, reading: Reading) -> list[Window]:
        """Do for a reading that `_next_alone` has found to be simple what `add_block` would, in a tenth of the time."""
        self._newest = self._closed = self._closed + 1
        self._newest_ts = reading.ts
        self._behind = 0
        self._cells.clear(self._newest + 1)
        windows = self._history.append_one(self._origin, reading.values)
        self._gaps.passed(self._history.newest)
        return windows

    def _joins(self, reading: Reading) -> bool:
        """Take one reading, whole and good, that is one more for the newest row and closes none; say whether it was."""
        if reading.faults or not (self._several or self._lateness) or self._newest <= self._closed:
            return False
        ts = reading.ts
        if not TS_MIN <= ts <= TS_MAX or round((ts - self._origin) / self._step) != self._newest:
            return False
        newest = max(ts, self._newest_ts)
        if self._lateness and round((newest - self._lateness - self._origin) / self._step) > self._closed + 1:
            return False
        if not all(-_LARGEST <= value <= _LARGEST for value in reading.values):
            return False
        if not self._cells.join(ts, reading.values):
            return False
        self._newest_ts = newest
        return True

    def _take_all(
        self, ts: Floats, values: Floats, known: Flags | None, marks: Mapping[int, tuple[str, ...]]
    ) -> list[Window]:
        """Take readings that are numbers; `known` says which of their values are, None that all are."""
        windows: list[Window] = []
        start = 0
        while start < len(ts):
            some = slice(start, start + _SPAN)
            told = {at - start: names for at, names in marks.items() if at >= start} if marks else marks
            start += self._take(ts[some], values[some], None if known is None else known[some], told, windows)
        return windows

    def _take(
        self,
        ts: Floats,
        values: Floats,
        known: Flags | None,
        marks: Mapping[int, tuple[str, ...]],
        windows: list[Window],
    ) -> int:
        """Take the first readings, up to where something changes for the rest, and return how many; perhaps none."""
        if math.isnan(self._origin):
            self._start(float(ts[0]))
        rows = np.rint((ts - self._origin) / self._step)
        newest = np.maximum.accumulate(rows)
        # The row that the watermark lies in once a reading has come: those before it are closed.
        watermark = newest
        if self._lateness:
            watermark = np.maximum.accumulate(np.rint((ts - self._lateness - self._origin) / self._step))
        before = np.maximum(np.concatenate([[-1.0], newest[:-1]]), self._newest)
        late = rows <= np.maximum(np.concatenate([[-1.0], watermark[:-1]]) - 1, self._closed)
        older = late & (rows < before)

        count = np.cumsum(older)
        behind = count - np.maximum.accumulate(np.where(rows > before, count, -self._behind))
        restarts = older & (behind >= self._most_late)
        jumps = watermark - 1 - before > self._longest
        far = newest > _FARTHEST
        span = newest - self._closed > self._most_rows
        cut = _first(restarts | jumps | far | span, len(ts))
        if cut == 0:
            if restarts[0]:
                self.faults["clock_restarted"] += 1
            if restarts[0] or far[0]:
                windows += self.finish()
                self._start(float(ts[0]))
            else:
                windows += self._close(int(watermark[0]) - 1)
            return 0

        same = late & ~older
        if not self._lateness and not self._several:
            if (same[:cut] & (ts[:cut] > self._newest_ts)).any():
                self._several = True
            else:
                clash = self._second(rows[:cut], ts[:cut], None if known is None else known[:cut], ~late[:cut])
                self._several = clash == 0
                cut = clash or cut
        self._count("duplicate", int(same[:cut].sum()))
        self._count("out_of_order", int(older[:cut].sum()))
        self._behind = int(behind[cut - 1])
        kept = np.flatnonzero(~late[:cut])
        if not len(kept):
            return cut
        at = rows[kept].astype(np.int64)
        twice = self._cells.put(at, ts[kept], values[kept], None if known is None else known[kept])
        if twice is not None:
            self._count("duplicate", int(twice.sum()))
        if marks:
            for number, place in enumerate(kept.tolist()):
                if place in marks and not (twice is not None and twice[number]):
                    self._history.mark(int(at[number]), marks[place])
        self._newest = max(self._newest, int(newest[cut - 1]))
        self._newest_ts = max(self._newest_ts, float(ts[kept].max()))
        closed = int(watermark[cut - 1]) - 1
        if not self._lateness and not self._several and self._newest >= self._length - 1 and self._cells.last_whole:
            closed = self._newest
        windows += self._close(closed)
        return cut

    def _second(self, rows: Floats, ts: Floats, known: Flags | None, taken: Flags) -> int | None:
        """The place of the first reading that is a second one for a cell, under another stamp; None without one."""
        kept = np.flatnonzero(taken)
        if not len(kept):
            return None
        if known is None and len(self._cells) == 0 and bool((np.diff(rows[kept]) > 0).all()):
            return None
        where = np.ones((len(kept), self._channels), np.bool_) if known is None else known[kept]
        before = self._cells.newest_before(rows[kept].astype(np.int64), ts[kept], where)
        second = (where & (before > -math.inf) & (before != ts[kept, None])).any(axis=1)
        found = _first(second, -1)
        return None if found < 0 else int(kept[found])

    def _close(self, last: int) -> list[Window]:
        """Close the rows up to `last`, and return the windows that this completes."""
        if last <= self._closed:
            return []
        values, real = self._cells.take(last + 1)
        windows = self._settle(values, real) if len(values) else []
        empty = last - self._closed - len(values)
        if empty > 0:
            rows = min(empty, self._longest)
            hole = np.full((rows, self._channels), np.nan, np.float32)
            windows += self._settle(hole, np.zeros(hole.shape, np.bool_))
            if empty > rows:
                self._gaps.clear()
                self._history.skip(last + 1)
        self._closed = last
        self._newest = max(self._newest, last)
        return windows

    def _close_all(self) -> list[Window]:
        """Close all rows that a reading has come for, and fill no more gaps."""
        windows = self._close(self._newest)
        if self._gaps.pending:
            nothing = np.empty((0, self._channels), np.float32)
            windows += self._settle(nothing, np.empty(nothing.shape, np.bool_), final=True)
        return windows

    def _settle(self, values: NDArray[np.float32], real: Flags, final: bool = False) -> list[Window]:
        values, real, filled = self._gaps.settle(values, real, final)
        return self._history.append(self._origin, values, real, filled) if len(values) else []

    def _count(self, fault: Fault, number: int) -> None:
        if number:
            self.faults[fault] += number


def _first(flags: Flags, default: int) -> int:
    """The index of the first that is set, or the default."""
    found = int(flags.argmax()) if len(flags) else 0
    return found if len(flags) and flags[found] else default
