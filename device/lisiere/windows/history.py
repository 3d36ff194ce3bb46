"""History: the settled rows of a grid, and the windows that are cut out of them.

A window is a view of rows that are never written to again, so cutting one copies nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisiere.models.manifest import WindowInput
from lisiere.values import Window

Values = NDArray[np.float32]
Flags = NDArray[np.bool_]

_ROWS = 2048  # a chunk of rows holds as many windows' ends at least


class History:
    """The last rows, at most twice the window's length and `_ROWS` more.

    Of windows that hold nothing at all, one is told, and the next once there is something again.
    """

    def __init__(self, how: WindowInput, source: str) -> None:
        self._how = how
        self._source = source
        self._capacity = how.length + max(how.length, _ROWS)
        self.clear()

    def clear(self) -> None:
        """Begin anew: the next row is row 0 of a grid."""
        self._open_chunk()
        self._first = 0  # grid index of the chunk's first row
        self._used = 0
        self._due = self._how.length - 1  # the row that ends the next window
        self._marks: dict[int, set[str]] = {}
        self._empty_told = False
        # What `ahead` has told: up to which row, and how much there was then. `_ahead_empty`: the last held nothing.
        self._told = -1
        self._told_sum = 0
        self._ahead_empty = False

    @property
    def end(self) -> int:
        """Grid index of the row that comes next."""
        return self._first + self._used

    @property
    def newest(self) -> Values:
        """The last row: float32, [1, channels]."""
        return self._values[self._used - 1 : self._used]

    @property
    def untold(self) -> int:
        """How many rows are in no window so far."""
        last = self._due - self._how.stride
        return self.end - 1 - last if last >= self._how.length - 1 else self.end

    def mark(self, row: int, names: tuple[str, ...]) -> None:
        """Remember what was wrong with a reading of a row, for the windows that hold it."""
        self._marks.setdefault(row, set()).update(names)

    def append(self, origin: float, values: Values, real: Flags, filled: Flags | None) -> list[Window]:
        """Add rows, and return the windows that they complete.

        Args:
            origin: event time of row 0.
            values: float32, [n, channels], NaN where there is none.
            real: bool, [n, channels]: where a value was measured.
            filled: bool, [n, channels]: where it is interpolated; None: nowhere.
        """
        rows, height = values.shape
        if rows == 1 and filled is None:
            # The usual way: one row at a time.
            measured = height if real.all() else int(real.sum())
            self._ahead_empty = self._ahead_empty and measured == 0
            return self._append_one(origin, values, real, measured)
        measured = real.sum(axis=1)
        imputed = np.zeros(rows, np.bool_) if filled is None else np.asarray(filled.any(axis=1))
        holes = (measured if filled is None else measured + filled.sum(axis=1)) < height
        windows: list[Window] = []
        at = 0
        while at < rows:
            if self._used == self._capacity:
                self._roll()
            to = min(rows, at + self._capacity - self._used)
            start, stop = self._used, self._used + to - at
            self._values[start:stop] = values[at:to]
            self._real[start:stop] = real[at:to]
            self._sums[start + 1 : stop + 1, 0] = measured[at:to]
            self._sums[start + 1 : stop + 1, 1] = imputed[at:to]
            self._sums[start + 1 : stop + 1, 2] = holes[at:to]
            np.cumsum(self._sums[start : stop + 1], axis=0, out=self._sums[start : stop + 1])
            self._used = stop
            self._cut(origin, windows)
            at = to
        if measured.any():
            self._ahead_empty = False
        return windows

    def append_one(self, origin: float, values: tuple[float, ...]) -> list[Window]:
        """Add one row that is real throughout; see `append`."""
        self._ahead_empty = False
        return self._append_one(origin, values, True, len(values))

    def _append_one(
        self, origin: float, values: Values | tuple[float, ...], real: Flags | bool, measured: int
    ) -> list[Window]:
        if self._used == self._capacity:
            self._roll()
        used = self._used
        self._values[used] = values
        self._real[used] = real
        a, b, c = self._sums[used].tolist()
        self._sums[used + 1] = a + measured, b, c + (measured < self._values.shape[1])
        self._used = used + 1
        windows: list[Window] = []
        if self._first + used >= self._due:
            self._cut(origin, windows)
        return windows

    def skip(self, end: int) -> None:
        """Go on with row `end` after more empty rows than a window holds. Windows stay where they would have been."""
        total = self._sums[self._used].tolist()
        keep = self._how.length - 1
        self._open_chunk()
        self._values[:keep] = np.nan
        self._real[:keep] = False
        self._sums[: keep + 1] = total
        self._sums[: keep + 1, 2] += np.arange(keep + 1)
        self._first, self._used = end - keep, keep
        late = end - self._due
        if late > 0:
            self._due += -(-late // self._how.stride) * self._how.stride
        self._forget()

    def ahead(self, origin: float, end: int) -> list[Window]:
        """Return the windows that end before row `end` if nothing more comes, each once, and change nothing.

        When rows come that say no more than that, the same windows are not told again.
        """
        how = self._how
        last = self.end - 1
        begins = self._told < self._due
        due = self._due if begins else self._told + how.stride
        was_empty = begins and self._empty_told
        windows: list[Window] = []
        while due < end and not self._ahead_empty:
            missing = min(due - last, how.length)
            kept = how.length - missing
            rows = np.full((how.length, len(how.channels)), np.nan, np.float32)
            measured = np.zeros(rows.shape, np.bool_)
            stop = self._used
            rows[:kept] = self._values[stop - kept : stop]
            measured[:kept] = self._real[stop - kept : stop]
            real, filled, _ = (self._sums[stop] - self._sums[stop - kept]).tolist()
            self._ahead_empty = real == 0
            if not (self._ahead_empty and was_empty):
                windows.append(self._window(origin, due, rows, measured, real, filled, True))
            was_empty = self._ahead_empty
            self._told, self._told_sum = due, self._sum(stop)
            due += how.stride
        return windows

    def _sum(self, stop: int) -> int:
        real, imputed, _ = self._sums[stop].tolist()
        return int(real) + int(imputed)

    def _open_chunk(self) -> None:
        height = len(self._how.channels)
        self._values: Values = np.empty((self._capacity, height), np.float32)
        self._real: Flags = np.empty((self._capacity, height), np.bool_)
        # Running sums before each row: values that are real, rows that are imputed, rows with a hole.
        self._sums = np.zeros((self._capacity + 1, 3), np.int64)

    def _roll(self) -> None:
        """Go on in a new chunk, with the rows that windows to come need: those handed on keep the old one."""
        keep = self._how.length - 1
        values, real, sums, used = self._values, self._real, self._sums, self._used
        self._open_chunk()
        self._values[:keep] = values[used - keep : used]
        self._real[:keep] = real[used - keep : used]
        self._sums[: keep + 1] = sums[used - keep : used + 1]
        self._first += used - keep
        self._used = keep
        self._forget()

    def _forget(self) -> None:
        """Drop the marks of rows that are in no window to come."""
        if self._marks:
            first = self._due - self._how.length + 1
            self._marks = {row: names for row, names in self._marks.items() if row >= first}

    def _cut(self, origin: float, windows: list[Window]) -> None:
        """Append the windows that end with rows of the chunk."""
        length, stride, last = self._how.length, self._how.stride, self.end - 1
        if self._due > last:
            return
        first = self._first
        count = (last - self._due) // stride + 1
        stop = self._due - first + 1
        if count == 1:
            sums = [(self._sums[stop] - self._sums[stop - length]).tolist()]
        else:
            stops = slice(stop, last - first + 2, stride)
            sums = (self._sums[stops] - self._sums[stop - length : last - first + 2 - length : stride]).tolist()
        values, measured = self._values, self._real
        for real, filled, holes in sums:
            end = self._due
            self._due = end + stride
            empty = real == 0
            told = empty and self._empty_told
            if end <= self._told and not told:
                told = self._sum(stop) == self._told_sum
            self._empty_told = empty
            if not told:
                cut = slice(stop - length, stop)
                windows.append(self._window(origin, end, values[cut], measured[cut], real, filled, holes > 0))
            stop += stride
        if len(self._marks) > length:
            self._forget()

    def _window(
        self, origin: float, end: int, rows: Values, measured: Flags, real: int, filled: int, holes: bool
    ) -> Window:
        how = self._how
        ts = origin + end * how.step_s
        return Window(
            rows,
            ts - (how.length - 1) * how.step_s,
            ts,
            how.step_s,
            real / (how.length * len(how.channels)),
            filled,
            self._source,
            measured,
            self._faults(end, rows if holes else None) if holes or self._marks else (),
        )

    def _faults(self, end: int, rows: Values | None) -> tuple[str, ...]:
        """What was wrong with the readings of a window, by name; `rows` where some of its values are missing."""
        names: set[str] = set()
        for row in self._marks:
            if end - self._how.length < row <= end:
                names |= self._marks[row]
        if rows is not None:
            missing = np.isnan(rows)
            silent = missing.all(axis=1)
            if silent.any():
                names.add("gap")
            partly = np.flatnonzero(missing[~silent].any(axis=0))
            names |= {f"gap:{self._how.channels[at]}" for at in partly}
        return tuple(sorted(names))


def imputed_rows(window: Window, most: int = 32) -> list[tuple[int, int]]:
    """Return which rows of a window are interpolated, as (first, how many).

    Of more than `most` stretches those nearest each other are joined: the list is never long, and names every such row.
    """
    if window.imputed == 0 or window.real is None:
        return []
    flags = (~window.real & np.isfinite(window.values)).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    if len(starts) > most:
        between = starts[1:] - stops[:-1]
        widest = np.sort(np.argsort(-between, kind="stable")[: most - 1])
        starts, stops = starts[[0, *(widest + 1)]], stops[[*widest, -1]]
    return list(zip(starts.tolist(), (stops - starts).tolist(), strict=True))
