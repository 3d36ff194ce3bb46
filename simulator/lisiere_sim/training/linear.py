"""A linear forecast in closed form: ridge regression, shared by all channels, on windows relative to their last value.

The same numbers give the same model: nothing is drawn at random and nothing is iterated.

Sources: Zeng et al., Are Transformers Effective for Time Series Forecasting?, AAAI 2023 (NLinear: subtract the last
value, map linearly, add it again); Toner and Darlow, An Analysis of Linear Time Series Forecasting Models, ICML 2024
(least squares reach or beat what gradient descent finds for it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Ridge strengths that are tried, in shares of the number of examples: the data have unit variance.
STRENGTHS = tuple(float(10.0**power) for power in np.arange(-5, 2.01, 0.5))


@dataclass(frozen=True)
class Linear:
    """What was learnt, for standardised values.

    Attributes:
        weights: float64, [length, horizon]: from the window less its last value to the steps less the same.
        bias: float64, [horizon]; zeros where a bias did not help.
        strength: of the ridge penalty, in shares of the number of examples.
    """

    weights: Array
    bias: Array
    strength: float

    def predict(self, windows: Array) -> Array:
        """Forecast windows [n, length]: [n, horizon]."""
        last = windows[:, -1:]
        found: Array = (windows - last) @ self.weights + self.bias + last
        return found


@dataclass(frozen=True)
class Moments:
    """What least squares need of examples: sums of products, so that examples need not be held at once.

    Attributes:
        count: how many examples.
        x, y: sums, [length] and [horizon].
        xx, xy: sums of products, [length, length] and [length, horizon].
        yy: sum of squares.
    """

    count: int
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: float

    def error(self, weights: Array, bias: Array) -> float:
        """Mean squared error of a linear map on these examples, over all steps."""
        fitted = np.einsum("lh,lh->", weights, self.xx @ weights) + 2 * self.x @ weights @ bias
        crossed = np.einsum("lh,lh->", weights, self.xy) + self.y @ bias
        total = self.yy + fitted + self.count * bias @ bias - 2 * crossed
        return float(total) / (self.count * len(bias))


def examples(
    values: Array, real: NDArray[np.bool_], length: int, horizon: int, first: int, stop: int
) -> Iterator[tuple[int, Array, Array]]:
    """Cut one channel after the other into windows and what followed: (channel, [n, length], [n, horizon]).

    The targets lie in the rows `first` … `stop` - 1 of `values` [rows, channels]; windows may begin before. Those
    with a hole are left out, and those whose last value is interpolated: that has looked past their end.
    """
    begin = max(first - length, 0)
    if stop - begin < length + horizon:
        return
    for channel in range(values.shape[1]):
        cut = np.lib.stride_tricks.sliding_window_view(values[begin:stop, channel], length + horizon)
        measured = real[begin + length - 1 : stop - horizon, channel]
        whole = cut[np.isfinite(cut).all(1) & measured]
        if len(whole):
            yield channel, whole[:, :length], whole[:, length:]


def moments(values: Array, real: NDArray[np.bool_], length: int, horizon: int, first: int, stop: int) -> Moments:
    """Sum up the examples of `values` [rows, channels] whose targets lie in the rows `first` … `stop` - 1.

    Raises:
        ValueError: there is none.
    """
    count, yy = 0, 0.0
    x, y = np.zeros(length), np.zeros(horizon)
    xx, xy = np.zeros((length, length)), np.zeros((length, horizon))
    for _, windows, after in examples(values, real, length, horizon, first, stop):
        last = windows[:, -1:]
        relative, target = windows - last, after - last
        count += len(relative)
        x += relative.sum(0)
        y += target.sum(0)
        xx += relative.T @ relative
        xy += relative.T @ target
        yy += float(np.square(target).sum())
    if count == 0:
        raise ValueError("there is no window without a hole")
    return Moments(count, x, y, xx, xy, yy)


def fit(train: Moments, validation: Moments) -> Linear:
    """Solve for every strength, with a bias and without, and keep what is best on the validation part."""
    best: tuple[float, Linear] | None = None
    for biased in (False, True):
        share = train.count if biased else np.inf
        levels, vectors = np.linalg.eigh(train.xx - np.outer(train.x, train.x) / share)
        turned = vectors.T @ (train.xy - np.outer(train.x, train.y) / share)
        for strength in STRENGTHS:
            penalty = np.maximum(levels, 0.0) + strength * train.count
            weights = vectors @ (turned / penalty[:, None])
            bias = (train.y - train.x @ weights) / share
            error = validation.error(weights, bias)
            if best is None or error < best[0]:
                best = error, Linear(weights, bias, strength)
    assert best is not None  # noqa: S101 - there are strengths
    return best[1]
