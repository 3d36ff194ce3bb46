"""The windowed Gaussian: the benchmark's plain baseline, whose published score says how hard a corpus is.

Source: numenta/NAB's detector of that name; it scores 39.6 on the benchmark's standard profile.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WINDOW, _STEP = 6400, 100
_LEAST = 1e-6


def windowed_gaussian(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Score values, [n], by how far in the tail of a normal distribution each lies: 0.5 … 1, and 0 without a value.

    The distribution is that of all values before, and once there are 6,400 of the last so many, in steps of 100.
    """
    scores = np.zeros(len(values))
    known = np.flatnonzero(np.isfinite(values))
    kept = values[known]
    centred = kept - (kept[0] if len(kept) else 0.0)  # so that the squares stay small
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred * centred)])
    for at in range(1, len(kept)):
        stop = at if at <= _WINDOW else _WINDOW + (at - _WINDOW) // _STEP * _STEP
        start = max(0, stop - _WINDOW)
        mean = (sums[stop] - sums[start]) / (stop - start)
        variance = max((squares[stop] - squares[start]) / (stop - start) - mean * mean, 0.0)
        away = abs(centred[at] - mean) / (math.sqrt(variance) or _LEAST)
        scores[known[at]] = 1 - 0.5 * math.erfc(away / math.sqrt(2))
    return scores
