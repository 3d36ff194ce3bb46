"""Cells: what the readings of one channel in one step amount to, while further ones may come.

The outcome does not depend on how readings are cut into blocks: sums go in the order of arrival.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisiere.settings.window import Aggregate

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]


class Cells:
    """The rows from `first` on that are not closed yet, without a hole; a cell without a reading counts 0 of them."""

    def __init__(self, channels: int, aggregate: Aggregate) -> None:
        self.first = 0
        self._channels = channels
        self._aggregate = aggregate
        # The zero that even -0.0 can be added to.
        self._nothing = {"mean": -0.0, "last": 0.0, "min": np.inf, "max": -np.inf}[aggregate]
        self._start = self._rows = 0  # where the rows lie in the arrays
        self._total, self._count, self._stamp = (np.empty((1, channels)) for _ in range(3))

    def __len__(self) -> int:
        return self._rows

    @property
    def last_whole(self) -> bool:
        """Whether every channel of the last row has a reading."""
        last = self._start + self._rows - 1
        return self._rows > 0 and bool(self._count[last].all())

    def clear(self, first: int) -> None:
        """Forget all rows; the next one is `first`."""
        self.first = first
        self._start = self._rows = 0

    def put(self, rows: Indices, ts: Floats, values: Floats, known: Flags | None) -> Flags | None:
        """Add readings to their rows; return which of them were there already, by their stamp (None: none).

        Args:
            rows: int64, [n]: grid indices, none before `first`.
            ts: float64, [n].
            values: float64, [n, channels].
            known: bool, [n, channels]: where there is a value; None says everywhere.
        """
        have = self._rows
        ascending = len(rows) == 1 or bool((rows[1:] > rows[:-1]).all())
        if known is None and ascending and rows[0] >= self.first + have:
            self._grow(int(rows[-1]) + 1 - self.first)
            at = rows + (self._start - self.first)
            self._total[at], self._count[at], self._stamp[at] = values, 1.0, ts[:, None]
            return None
        known = np.ones(values.shape, np.bool_) if known is None else known
        before = self.newest_before(rows, ts, known)
        twice = known & (before == ts[:, None])
        known = known & ~twice
        self._grow(int(rows.max()) + 1 - self.first)
        total, count, stamp = (part.reshape(-1) for part in (self._total, self._count, self._stamp))
        cells = ((rows + (self._start - self.first))[:, None] * self._channels + np.arange(self._channels))[known]
        given = values[known]
        if self._aggregate == "mean":
            np.add.at(total, cells, given)
        elif self._aggregate == "last":
            newer = (ts[:, None] > before)[known]
            total[cells[newer]] = given[newer]  # of several for one cell the last stays
        else:
            (np.minimum if self._aggregate == "min" else np.maximum).at(total, cells, given)
        np.add.at(count, cells, 1.0)
        np.maximum.at(stamp, cells, np.broadcast_to(ts[:, None], known.shape)[known])
        anywhere: Flags = twice.any(axis=1)
        return anywhere

    def join(self, ts: float, values: tuple[float, ...]) -> bool:
        """Add a reading with every channel to the last row, unless it is there already; say whether it was added."""
        last = self._start + self._rows - 1
        total, count, stamp = self._total[last], self._count[last], self._stamp[last]
        if (stamp == ts).any():
            return False
        if self._aggregate == "mean":
            total += values
        elif self._aggregate == "last":
            newer = ts > stamp
            total[newer] = np.array(values)[newer]
        else:
            (np.minimum if self._aggregate == "min" else np.maximum)(total, values, out=total)
        count += 1.0
        np.maximum(stamp, ts, out=stamp)
        return True

    def take(self, end: int) -> tuple[NDArray[np.float32], Flags]:
        """Return values (NaN without one) and where they are real of the rows before grid index `end`, and drop them.

        Both have [rows, channels], as many as there are readings for at most: what is empty behind them is not there.
        """
        rows = min(max(end - self.first, 0), self._rows)
        part = slice(self._start, self._start + rows)
        total, count = self._total[part], self._count[part]
        real = count > 0
        if self._aggregate == "mean":
            total = total / np.maximum(count, 1.0)
        values = (total if real.all() else np.where(real, total, np.nan)).astype(np.float32)
        self.first = max(end, self.first)
        self._start += rows
        self._rows -= rows
        return values, real

    def newest_before(self, rows: Indices, ts: Floats, known: Flags) -> Floats:
        """The newest stamp that each reading's cells had before it: float64, [n, channels]; -inf without one.

        Stamps of a later row are later, so a running maximum over the rows in order needs no other care.
        """
        low, high = int(rows.min()) - self.first, min(int(rows.max()) + 1 - self.first, self._rows)
        have = max(high - low, 0)
        held = self._stamp[self._start + low : self._start + low + have]
        whole = np.concatenate([np.arange(low, low + have), rows - self.first])
        order = np.argsort(whole, kind="stable")
        stamps = np.concatenate([held, np.where(known, ts[:, None], -np.inf)])[order]
        before = np.full_like(stamps, -np.inf)
        before[1:] = np.maximum.accumulate(stamps, axis=0)[:-1]
        # What an earlier row had is nothing to this one.
        row = whole[order]
        begins = np.concatenate([[True], row[1:] != row[:-1]])
        earlier = np.maximum.accumulate(np.where(begins[:, None], before, -np.inf), axis=0)
        before[before <= earlier] = -np.inf
        found = np.empty_like(before)
        found[order] = before
        return found[have:]

    def _grow(self, rows: int) -> None:
        """Have at least so many rows, the new ones without readings."""
        if rows <= self._rows:
            return
        parts = (self._total, self._count, self._stamp)
        if self._start + rows > len(self._total):
            held, before = slice(self._start, self._start + self._rows), parts
            total, count, stamp = (np.empty((2 * rows + 64, self._channels)) for _ in parts)
            parts = self._total, self._count, self._stamp = total, count, stamp
            for part, old in zip(parts, before, strict=True):
                part[: self._rows] = old[held]
            self._start = 0
        fresh = slice(self._start + self._rows, self._start + rows)
        for part, nothing in zip(parts, (self._nothing, 0.0, -np.inf), strict=True):
            part[fresh] = nothing
        self._rows = rows
