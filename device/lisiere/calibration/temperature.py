"""Temperature scaling: one number that makes a model's scores as sure as it is right.

Sources: Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks, 2017 (the temperature and the
expected calibration error); Kiefer, Sequential Minimax Search for a Maximum, 1953 (golden sections).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected

LOWEST, HIGHEST = 0.05, 20.0
BINS = 15
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 60  # of golden sections: the last is 1e-12 of the first
_LEAST = 1e-12  # a share of zero would make one wrong image the whole of the loss

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def tempered(logits: Floats, temperature: float) -> Floats:
    """Return shares of one, [n, classes], of logits or of logarithms of shares."""
    scaled = logits / temperature
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float64)


def log_loss(shares: Floats, labels: Labels) -> float:
    """Return the mean negative log-likelihood of the true labels: shares [n, classes], labels [n]."""
    return float(-np.log(np.maximum(shares[np.arange(len(labels)), labels], _LEAST)).mean())


def calibration_error(sure: Floats, right: NDArray[np.bool_], bins: int = BINS) -> float:
    """Return the expected calibration error: how far sureness and being right lie apart, over bins of equal width.

    Args:
        sure: [n], the scores of the best labels, 0 … 1.
        right: [n], whether they are the true ones.
        bins: how many, between 0 and 1; each holds its upper end.
    """
    bin_of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    apart = np.bincount(bin_of, weights=right - sure, minlength=bins)
    return float(np.abs(apart).sum() / len(sure))


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Return the temperature whose shares have the least log loss, between `LOWEST` and `HIGHEST`.

    The loss is convex in the temperature's inverse, so it has one minimum, which golden sections find.

    Args:
        logits: [n, classes]; of a model that gives shares of one, their logarithms.
        labels: [n], the true ones.

    Raises:
        Rejected: the minimum is outside, as where every image is classified right: then no temperature is too low.
    """

    def loss(place: float) -> float:
        return log_loss(tempered(logits, math.exp(place)), labels)

    low, high = math.log(LOWEST), math.log(HIGHEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    temperature = math.exp((low + high) / 2)
    if temperature < LOWEST * 1.001 or temperature > HIGHEST * 0.999:
        wrong = int((logits.argmax(axis=1) != labels).sum())
        raise Rejected(
            f"No temperature between {LOWEST:g} and {HIGHEST:g} fits these {len(labels)} images, of which the model "
            f"gets {wrong} wrong. Calibrate with more images that are like those it will see, some of them hard."
        )
    return temperature
