"""Several channels as one: how far their short means and their unrest have left what was normal of late."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from lisiere.detector.tail import SCORE_MAX

_WARM = 300  # rows before anything is said
_WINDOW = 400  # rows that what is normal is taken from
_LAG = 100  # a row counts as normal once so many more have passed without an alarm: slow faults are not learnt
_REFIT = 20  # rows
_SMOOTH = 10.0  # rows
_MOST = 8.0  # scales that one value counts at most
_SHARE = 0.02  # of normal rows lie above the start of the tail
_ALARM, _CALM = 2.3, 1.38  # times that start: a row is no longer normal, and is so again
_ALARM_SCORE = 3.1  # what `_ALARM` times the start scores, and
_SLOPE = 2.8  # how much more ten times as much does: rows hang together too much to fit a tail to them
_AWAY = 266.0  # rows without learning that let a channel wander as far again
_QUIET = 20  # rows of calm that end what is not normal
_HOLD = 2000  # rows after which what stays unusual is the new normal
_HALF_NORMAL = 1.4826


class JointDetector:
    """Scores rows of several channels; a score means what `ChannelDetector`'s does, 0 … 12.

    Two features a channel, in units of its own scale: a short mean, and a short mean of the distance from it. The
    statistic is their mean square in units of what they did in the last normal rows; a channel that wandered there
    is expected to wander on. It stays high for as long as the fault lasts, because rows that are not normal are not
    learnt from. Memory is bounded by 500 rows.
    Source of the statistic: Hotelling's T-squared without the correlations, which 400 rows are too few to know.
    """

    def __init__(self, channels: int) -> None:
        self._first: list[NDArray[np.float64]] = []
        self._centre = np.zeros(channels)
        self._scale = np.ones(channels)
        self._mean = np.zeros(channels)
        self._unrest = np.zeros(channels)
        self._normal: deque[NDArray[np.float64]] = deque(maxlen=_WINDOW)
        self._pending: deque[NDArray[np.float64]] = deque()
        self._expected = np.zeros(2 * channels)
        self._spread = np.ones(2 * channels)
        self._wander = np.zeros(2 * channels)
        self._start = 0.0
        self._count = 0
        self._unusual = 0  # rows since it is so; 0 while all is normal
        self._calm = 0

    def __call__(self, row: NDArray[np.float64]) -> float:
        """Score one row, [channels], NaN where a channel is missing; 0 while warming up."""
        if self._count < _WARM:
            self._count += 1
            self._first.append(row)
            if self._count == _WARM:
                self._begin()
            return 0.0
        features = self._features(row, _SMOOTH)
        statistic = self._statistic(features)
        ratio = max(statistic / (_ALARM * self._start), 1e-9)
        self._learn(features, statistic)
        return min(max(_ALARM_SCORE + _SLOPE * math.log10(ratio), 0.0), SCORE_MAX)

    def _begin(self) -> None:
        """Centre and scale from the first rows, then their features, which are the first normal ones."""
        rows = np.array(self._first)
        self._first = []
        known = np.isfinite(rows)
        for channel in range(rows.shape[1]):
            values = rows[known[:, channel], channel]
            if len(values):
                centre = np.median(values)
                spread = max(_HALF_NORMAL * np.median(np.abs(values - centre)), 0.5 * values.std())
                self._centre[channel], self._scale[channel] = centre, max(spread, 1e-12)
        for at, row in enumerate(rows):
            features = self._features(row, min(at + 1.0, _SMOOTH))
            if at >= _SMOOTH:
                self._normal.append(features)
        self._fit()

    def _features(self, row: NDArray[np.float64], memory: float) -> NDArray[np.float64]:
        z = np.clip((row - self._centre) / self._scale, -_MOST, _MOST)
        known = np.isfinite(z)
        self._mean = np.where(known, self._mean + (z - self._mean) / memory, self._mean)
        self._unrest = np.where(known, self._unrest + (np.abs(z - self._mean) - self._unrest) / memory, self._unrest)
        return np.concatenate([self._mean, self._unrest])

    def _statistic(self, features: NDArray[np.float64]) -> float:
        away = features - self._expected
        # What is no longer learnt from goes on wandering: the longer, the farther.
        allowed = self._spread + self._wander * (1.0 + self._unusual / _AWAY)
        return float((away * away / allowed).mean())

    def _learn(self, features: NDArray[np.float64], statistic: float) -> None:
        """Keep the row as normal, later; or wait until things are normal again."""
        self._count += 1
        if not self._unusual and statistic > _ALARM * self._start:
            self._unusual, self._calm = 1, 0
            self._pending.clear()
        elif self._unusual:
            self._unusual += 1
            self._calm = self._calm + 1 if statistic < _CALM * self._start else 0
            if self._calm >= _QUIET:
                self._unusual = 0
            elif self._unusual > _HOLD:
                # So long that it is how things are now: learn it anew.
                self._normal.extend(self._pending)
                self._pending.clear()
                self._unusual = 0
                self._fit()
            elif self._unusual > _HOLD - _WARM:
                self._pending.append(features)
        else:
            self._pending.append(features)
            if len(self._pending) > _LAG:
                self._normal.append(self._pending.popleft())
            if self._count % _REFIT == 0:
                self._fit()

    def _fit(self) -> None:
        rows = np.array(self._normal)
        third = len(rows) // 3
        means = rows[: 3 * third].reshape(3, third, -1).mean(1)
        wander = means.max(0) - means.min(0)
        self._expected = rows.mean(0)
        self._spread = 1.05 * rows.var(0) + 1e-9
        self._wander = wander * wander
        away = rows - self._expected
        statistics = (away * away / (self._spread + self._wander)).mean(1)
        self._start = max(float(np.quantile(statistics, 1 - _SHARE)), 1e-9)
