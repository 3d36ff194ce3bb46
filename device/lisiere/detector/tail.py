"""How rare a value is, learnt from the values before it: extreme value theory on a stream."""

from __future__ import annotations

import math

_SHARE = 0.04  # of the values are taken for the tail
_WARM = 150  # values before anything is said
_MEMORY = 60.0  # excesses; older ones fade
_RATE = 0.02  # how fast the tail's start follows, in mean excesses a value
_PRIOR = 0.3  # of an excess, so that a tail without any has a size
SCORE_MAX = 12.0


class Tail:
    """Minus log10 of the chance of a value so high, by a generalised Pareto distribution over the highest values.

    The distribution is fitted by its moments, so that a value costs a few operations whatever came before. Memory is
    bounded: a threshold and two sums, over about `memory` excesses. Values count by their logarithm, so that bursts do
    not dwarf all else.
    Sources: Siffer et al., Anomaly Detection in Streams with Extreme Value Theory, 2017 (SPOT); Hosking and Wallis,
    Parameter and Quantile Estimation for the Generalized Pareto Distribution, 1987 (moments).
    """

    __slots__ = ("_excess", "_fade", "_first", "_memory", "_squares", "_start", "_weight")

    def __init__(self, memory: float = _MEMORY) -> None:
        self._memory = memory
        self._fade = 1.0 - 1.2 / memory
        self._first: list[float] | None = []
        self._start = 0.0
        self._excess = 0.0
        self._squares = 0.0
        self._weight = 0.0

    def __call__(self, value: float) -> float:
        """Return the score of a value that is not negative, 0 … 12, and learn from it; 0 while warming up."""
        if self._first is not None:
            self._first.append(math.log1p(value))
            if len(self._first) == _WARM:
                self._begin(sorted(self._first))
            return 0.0
        excess = math.log1p(value) - self._start
        mean = self._excess / self._weight
        if excess <= 0.0:
            self._start = max(self._start - _RATE * _SHARE * mean, 0.0)
            return 0.0
        score = SCORE_MAX
        if mean > 0.0:
            shape = self._shape(mean)
            rarity = math.log10(1.0 + shape * excess / (mean * (1.0 - shape))) / shape - _LOG_SHARE
            score = min(rarity, SCORE_MAX)
        self._start += _RATE * (1.0 - _SHARE) * mean
        self._excess += excess
        self._squares += excess * excess
        self._weight += 1.0
        if self._weight > self._memory:
            self._excess *= self._fade
            self._squares *= self._fade
            self._weight *= self._fade
        return score

    def level(self, rate: float) -> float | None:
        """Return the value that is exceeded at a rate below the tail's share; None while warming up.

        It is what scores minus log10 of the rate.
        """
        if self._first is not None:
            return None
        mean = self._excess / self._weight
        shape = self._shape(mean)
        excess = mean * (1.0 - shape) / shape * ((_SHARE / rate) ** shape - 1.0)
        return math.expm1(min(self._start + excess, 700.0))

    def _shape(self, mean: float) -> float:
        spread = max(self._squares / self._weight - mean * mean, 1e-18)
        return min(max(0.5 - 0.5 * mean * mean / spread, 0.02), 0.45)

    def _begin(self, values: list[float]) -> None:
        """Fit the first tail; twice its share, since few values must do."""
        at = int(len(values) * (1 - 2 * _SHARE))
        self._start = values[at]
        size = 0.2 * max(values[-1] - values[len(values) // 2], 1e-9)
        excesses = [value - self._start for value in values[at + 1 :]]
        self._excess = sum(excesses) + _PRIOR * size
        self._squares = sum(excess * excess for excess in excesses) + 2 * _PRIOR * size * size
        self._weight = len(excesses) + _PRIOR
        self._first = None


_LOG_SHARE = math.log10(_SHARE)
