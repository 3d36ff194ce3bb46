"""Frozen: the picture stands still as no live camera's does.

A sensor's noise changes every pixel all the time. So a picture whose pixels do not change at all stands still. Where a
camera's noise is known, a picture that comes again nearly as it was is one that it has sent before: this finds a frozen
picture under a running clock, and one that a codec compresses anew, a little better or worse each time.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from lisiere.sight.history import History

_PERIOD_S = 0.25  # between the pictures that are kept; a younger one is no evidence
_KEPT = 8
_TILES = (12, 16)  # rows and columns
_CHANGE_MOST = 4  # grey levels: so that a clock's digits, which change by much, count for their few pixels
_QUIET = 0.1  # of the usual change of the quieter half of the picture
_QUIET_MOST = 0.1  # grey levels
_NOT_SAME = 0.2  # grey levels: with more change in all of the picture, its tiles need not be looked at
_AGAIN = 0.5  # the share of the time in which the picture has to come again; between, a codec may start anew
_LONGEST_S = 30.0


class Stillness:
    """For how long the picture has stood still, and for how long it may."""

    def __init__(self) -> None:
        self._anchor: NDArray[np.uint8] | None = None
        self._since = 0.0
        self._still_s = 0.0
        self._longest = 0.0
        self._kept: deque[tuple[float, NDArray[np.uint8]]] = deque(maxlen=_KEPT)
        self._quiet = History()
        self._again_s = self._again_since = 0.0

    def look(self, grid: NDArray[np.uint8], now: float, passed_s: float) -> tuple[float, float]:
        """Take one frame; return for how many seconds it has stood still, and by how many grey levels it has changed.

        Args:
            grid: see `Look.grid`; of the same shape each time.
            now: seconds that only rise.
            passed_s: those since the frame before.
        """
        if self._anchor is None:
            self._anchor, self._since = grid, now
            self._kept.append((now, grid))
            return 0.0, 0.0
        difference = _difference(grid, self._anchor)
        change = _mean(difference)
        if change == 0:
            self._still_s = now - self._since
        else:
            if self._still_s and np.quantile(_tile_means(difference), 0.9) == 0:
                # It ends in a corner, as when somebody comes in, and not everywhere at once: the scene was still.
                self._longest = max(self._longest, self._still_s)
            self._still_s = 0.0
            self._anchor, self._since = grid, now
        comes_s, before = 0.0, self._seen_before(grid, now)
        if before is None:
            self._again_s = max(0.0, self._again_s - passed_s)
        else:
            if not self._again_s:
                self._again_since = before
            self._again_s += passed_s
            comes_s = min(now - self._again_since, self._again_s / _AGAIN)
        if now - self._kept[-1][0] >= _PERIOD_S:
            if not self._again_s and change:
                self._quiet.add(float(np.median(_tile_means(_difference(grid, self._kept[-1][1])))))
            self._kept.append((now, grid))
        return max(self._still_s, comes_s), change

    def allowed(self, configured_s: float) -> float:
        """Return for how long the picture may stand still: as configured, or twice as long as it has done before."""
        return max(configured_s, min(2 * self._longest, _LONGEST_S))

    def _seen_before(self, grid: NDArray[np.uint8], now: float) -> float | None:
        """Return when nearly the same picture was seen before; None when it was not, or noise is not known."""
        if not self._quiet.known or self._quiet.low <= 0:
            return None
        most = min(_QUIET * self._quiet.low, _QUIET_MOST)
        for at, kept in self._kept:
            if now - at < _PERIOD_S:
                break
            difference = _difference(grid, kept)
            if _mean(difference) <= _NOT_SAME and np.quantile(_tile_means(difference), 0.9) <= most:
                return at
        return None


def _difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.threshold(cv2.absdiff(left, right), _CHANGE_MOST, 0, cv2.THRESH_TRUNC)[1], np.uint8)


def _mean(difference: NDArray[np.uint8]) -> float:
    import cv2

    return float(cv2.mean(difference)[0])


def _tile_means(difference: NDArray[np.uint8]) -> NDArray[np.float32]:
    rows, columns = (min(tiles, pixels) for tiles, pixels in zip(_TILES, difference.shape, strict=True))
    high, wide = difference.shape[0] // rows, difference.shape[1] // columns
    cut = difference[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    return np.asarray(cut.sum((1, 3), dtype=np.float32) / (high * wide), np.float32).ravel()
