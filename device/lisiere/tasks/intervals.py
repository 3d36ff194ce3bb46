"""Intervals that keep their coverage when the series drifts: how much wider or narrower than the model says.

An interval is `centre ± factor * half-width`. One factor stands for a group of neighbouring leads and a channel, and is
moved whenever a forecast meets what really came; nothing of the past is kept but the factors.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_GROWTH = 1.5  # each group of leads reaches this much further than the one before
_RATE = 0.05  # how far a row moves the logarithm of a factor, by each of its two terms, at the shortest lead
# A longer lead is told later and its errors hang together for longer, so it is moved by less: half at this many rows.
_SLOW_ROWS = 20.0
# What is told late covers a little less than what it aims at while things change, so it aims this much higher.
_CAUTION = 0.05  # in variances of a hit, coverage * (1 - coverage)
_LARGEST, _LARGEST_LATE = 4.0, 1.5  # of the two terms


def lead_groups(horizon: int) -> NDArray[np.int64]:
    """Return the group of each lead 1 … horizon: single ones at first, then ever larger ones; int64 [horizon]."""
    groups, start, group = np.zeros(horizon, np.int64), 1, 0
    while start <= horizon:
        stop = max(start + 1, int(np.ceil(start * _GROWTH)))
        groups[start - 1 : stop - 1] = group
        start, group = stop, group + 1
    return groups


class AdaptiveFactors:
    """The factors of one method of forecasting, all 1 at first: the model's own quantiles are believed until then.

    A factor's logarithm has two terms, so that it never falls below zero and needs no unit. The first follows the
    quantile of the errors, by online descent on the pinball loss. The second adds up how much more often the intervals
    that were really given have missed than they should: those were made a lead ago, so what the first term is now says
    nothing of them.

    Sources: Angelopoulos, Candès and Tibshirani, Conformal PID control for time series prediction, NeurIPS 2023 (the
    quantile tracker and the integrator); Gibbs and Candès, Adaptive conformal inference under distribution shift,
    NeurIPS 2021 (that misses alone keep the coverage in the long run); Romano, Patterson and Candès, Conformalized
    quantile regression, NeurIPS 2019 (half-widths by the model's quantiles).

    Args:
        coverage: the share of values that should lie within, 0 … 1.
        groups: the group of each lead, as `lead_groups` gives it.
        channels: how many there are.
    """

    def __init__(self, coverage: float, groups: NDArray[np.int64], channels: int) -> None:
        self._groups = groups
        self._aim = (1 - coverage) * (1 - _CAUTION * coverage)
        sizes = np.bincount(groups)
        self._log = np.zeros((len(sizes), channels))
        self._late = np.zeros((len(sizes), channels))
        leads = np.bincount(groups, np.arange(1, len(groups) + 1)) / sizes
        self._slow = (1 / (1 + leads / _SLOW_ROWS))[:, np.newaxis]

    def factors(self) -> Array:
        """Return the factor of each group of leads and channel: float64 [groups, channels]."""
        found: Array = np.exp(self._log + self._late)
        return found

    def learn(
        self, leads: NDArray[np.int64], sizes: Array, missed: NDArray[np.bool_], known: NDArray[np.bool_]
    ) -> None:
        """Take what one row of real values says of all forecasts that were open for it.

        Args:
            leads: which lead the row was of each forecast, 1 … horizon; int64 [n].
            sizes: errors in half-widths, [n, channels].
            missed: whether the interval that was given missed, [n, channels].
            known: which of them are known, [n, channels]; the others count for nothing.
        """
        at = self._groups[leads - 1]
        count, wide, late = np.zeros_like(self._log), np.zeros_like(self._log), np.zeros_like(self._log)
        np.add.at(count, at, known)
        np.add.at(wide, at, known & (sizes > np.exp(self._log)[at]))
        np.add.at(late, at, known & missed)
        rate, share = np.where(count > 0, _RATE * self._slow, 0.0), np.maximum(count, 1)
        # Bounds, so that a long run of either is forgotten within as long a one.
        self._log = np.clip(self._log + rate * (wide / share - self._aim), -_LARGEST, _LARGEST)
        self._late = np.clip(self._late + rate * (late / share - self._aim), -_LARGEST_LATE, _LARGEST_LATE)


def half_widths(quantiles: Array, levels: tuple[float, ...], centre: Array, coverage: float) -> tuple[Array, Array]:
    """Return how far below and above its centre a model puts the interval of `coverage`: each the centre's shape.

    The outermost quantiles are stretched as those of a normal distribution would be.

    Args:
        quantiles: float64 [..., quantiles], rising.
        levels: the quantiles' levels, at least two.
        centre: float64 [...].
        coverage: the share of values that should lie within.
    """
    normal = NormalDist()
    wanted = normal.inv_cdf((1 + coverage) / 2)
    sides = []
    for at, sign in ((0, -1), (-1, 1)):
        told = abs(normal.inv_cdf(levels[at]))
        sides.append(np.maximum(sign * (quantiles[..., at] - centre), 0.0) * (wanted / max(told, 0.1)))
    return sides[0], sides[1]
