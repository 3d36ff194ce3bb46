"""Gaps: rows without a reading between others, filled by a line from one to the other where they are few.

A row is settled once nothing that comes can change it; settled rows leave in order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]
Flags = NDArray[np.bool_]


class Gaps:
    """Takes closed rows and returns settled ones, channel by channel filled over at most `longest` rows.

    It keeps at most `longest` rows and the one before them.
    """

    def __init__(self, channels: int, longest: int) -> None:
        self._longest = longest
        self._channels = channels
        self._all = np.ones((1, channels), np.bool_)
        self.clear()

    def clear(self) -> None:
        """Forget everything before the next row."""
        # The rows that are not settled, with those before them that they may be filled from.
        self._values: Values = np.empty((0, self._channels), np.float32)
        self._real: Flags = np.empty((0, self._channels), np.bool_)
        self._settled = 0  # how many of them have left already

    @property
    def pending(self) -> bool:
        """Whether rows wait to be settled."""
        return len(self._values) > self._settled

    def passed(self, row: Values) -> None:
        """Remember a row, [1, channels], real throughout, that was settled at once; only while none is pending."""
        if self._longest:
            self._values, self._real, self._settled = row, self._all, 1

    def settle(self, values: Values, real: Flags, final: bool = False) -> tuple[Values, Flags, Flags | None]:
        """Take closed rows; return settled ones: values, which are real, and which are filled (None: none is).

        Args:
            values: float32, [n, channels], NaN where nothing was measured.
            real: bool, [n, channels].
            final: settle all of them: what comes next is no neighbour of theirs.
        """
        if self._longest == 0:
            return values, real, None
        if not self.pending and real.all() and len(real):
            self._keep(values[-1:], real[-1:], 1)
            return values, real, None
        whole = np.concatenate([self._values, values])
        known = np.concatenate([self._real, real])
        rows = len(whole)
        if rows == self._settled:
            if final:
                self.clear()
            return values, real, None
        at = np.arange(rows)[:, None]
        last = np.maximum.accumulate(np.where(known, at, -1), axis=0)
        following = np.minimum.accumulate(np.where(known, at, rows)[::-1], axis=0)[::-1]
        gap = following - last - 1
        filled = ~known & (last >= 0) & (following < rows) & (gap <= self._longest)
        if filled.any():
            row, channel = np.nonzero(filled)
            low, high = last[row, channel], following[row, channel]
            share = ((row - low) / (high - low)).astype(np.float32)
            # Never beyond the two, so it cannot overflow.
            line = whole[low, channel] * (1 - share) + whole[high, channel] * share
            done = whole.copy()
            done[row, channel] = line
        else:
            done = whole
        end = rows if final else self._end(last[-1], rows)
        first = self._settled
        out = done[first:end], known[first:end], filled[first:end] if filled[first:end].any() else None
        if final:
            self.clear()
        else:
            # From the last known one of each channel on, as far as it is near enough to be filled from.
            near = last[end - 1][last[end - 1] >= max(end - 1 - self._longest, 0)] if end else last[:0, 0]
            keep = int(near.min()) if len(near) else end
            self._keep(whole[keep:], known[keep:], end - keep)
        return out

    def _end(self, last: NDArray[np.int64], rows: int) -> int:
        """Up to which row all channels are settled: known, filled, or in a gap that is already too long."""
        open_from = np.where((last >= 0) & (rows - 1 - last <= self._longest), last + 1, rows)
        return max(int(open_from.min()), self._settled)

    def _keep(self, values: Values, real: Flags, settled: int) -> None:
        self._values, self._real, self._settled = values.copy(), real.copy(), settled
