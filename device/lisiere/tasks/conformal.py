"""Conformal sets of labels: sets that hold the true label as often as was asked for.

The promise needs frames that are like those of the calibration, and nothing else: not a good model, nor scores that
mean anything. Source: Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, 2021, sections 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from lisiere.documents import write_durably
from lisiere.errors import Rejected

Method = Literal["lac", "aps"]
MAX_POINTS = 100_000
MAX_BYTES = 4 << 20

Shares = NDArray[np.float64]


def nonconformity(shares: Shares, method: Method) -> Shares:
    """Return how little each label fits: [..., classes], of shares of one of the same shape.

    `lac` (least ambiguous sets; Sadinle, Lei and Wasserman 2019) says `1 - share` and gives the smallest sets.
    `aps` (adaptive sets; Romano, Sesia and Candès 2020, without their randomisation) says what share a label has
    together with all that come before it, and gives larger sets where a frame is harder.
    """
    if method == "lac":
        return np.asarray(1 - shares, np.float64)
    order = np.argsort(-shares, axis=-1, kind="stable")
    together = np.cumsum(np.take_along_axis(shares, order, -1), axis=-1)
    found = np.empty_like(together)
    np.put_along_axis(found, order, together, -1)
    return found


def fewest_points(coverage: float) -> int:
    """Return the size of the smallest calibration set that can promise a coverage."""
    points = max(1, math.ceil(coverage / (1 - coverage)) - 2)
    while _rank(points, coverage) > points:
        points += 1
    return points


def limit_of(scores: Shares, coverage: float) -> float:
    """Return the largest nonconformity that a label of a set may have.

    Args:
        scores: of the true labels of the calibration set, rising.
        coverage: how often a set shall hold the true label, 0 … 1, both excluded.

    Raises:
        Rejected: there are too few scores for that; with so few only the set of all labels would be sure enough.
    """
    rank = _rank(len(scores), coverage)
    if rank > len(scores):
        raise Rejected(
            f"A coverage of {coverage:g} takes at least {fewest_points(coverage)} calibration images, and the model "
            f"has {len(scores)}. Ask for less, or calibrate it with more by `lisiere models calibrate`."
        )
    return float(scores[rank - 1])


def label_set(shares: Shares, limit: float, method: Method) -> list[int]:
    """Return the labels of a set, the likeliest first: [classes] shares of one, and a limit from `limit_of`.

    The best label is always in it. That keeps the promise, which says how often the truth is in at least.
    """
    order = np.argsort(-shares, kind="stable")
    inside = nonconformity(shares, method)[order] <= limit
    inside[0] = True
    return [int(at) for at in order[inside]]


@dataclass(frozen=True, slots=True)
class ConformalSets:
    """Makes sets of labels by a limit that belongs to a coverage."""

    method: Method
    limit: float

    def __call__(self, shares: Shares) -> list[int]:
        """Return the labels of one frame's set, the likeliest first; see `label_set`."""
        return label_set(shares, self.limit, self.method)


class CalibrationScores(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The file of a model package that its sets of labels are made from.

    Attributes:
        method: by which the scores were made; see `nonconformity`.
        scores: of the true labels of the calibration images, rising.
    """

    method: Method
    # Sums of shares may be past one by their rounding.
    scores: Annotated[list[Annotated[float, Meta(ge=0, le=1.000001)]], Meta(min_length=1, max_length=MAX_POINTS)]

    def sets(self, coverage: float) -> ConformalSets:
        """Return what makes sets of that coverage; see `limit_of`."""
        return ConformalSets(self.method, limit_of(np.asarray(self.scores), coverage))


def read_scores(file: Path) -> CalibrationScores:
    """Read a model's calibration scores.

    Raises:
        Rejected: the file is not that.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Rejected(f"{file} is larger than {MAX_BYTES} bytes, which no calibration needs.")
        found = msgspec.json.decode(file.read_bytes(), type=CalibrationScores)
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise Rejected(
            f"{file} holds no calibration scores: {error}. `lisiere models calibrate` writes it anew."
        ) from error
    if found.scores != sorted(found.scores):
        raise Rejected(f"The scores of {file} do not rise. `lisiere models calibrate` writes them anew.")
    return found


def write_scores(file: Path, scores: Shares, method: Method) -> None:
    """Write calibration scores, which may be in any order, as `read_scores` reads them."""
    whole = CalibrationScores(method=method, scores=np.sort(scores.astype(np.float64)).tolist())
    write_durably(file, msgspec.json.encode(whole) + b"\n")


def _rank(points: int, coverage: float) -> int:
    """The place of the quantile with its correction for a finite set, from 1: ceil((n + 1) * coverage)."""
    exact = (points + 1) * coverage
    # 10 * 0.9 is 9, and as floats it may be a little more.
    return math.ceil(exact - 1e-9 * max(1.0, exact))
