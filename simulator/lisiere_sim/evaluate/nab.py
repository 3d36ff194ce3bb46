"""The score of the Numenta Anomaly Benchmark: early detections count most, and false alarms cost little but count.

A row of a series is worth something by where it lies: inside a window of labels by how early, outside by how far behind
the last window. A detection is a row whose score reaches the threshold; the best of each window counts once. Source:
Lavin and Ahmad, Evaluating Real-Time Anomaly Detection Algorithms, 2015, and the benchmark's published scorer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PROBATION = 0.15  # of the first 5,000 rows
PROBATION_ROWS = 5000
_FAR = 3.0  # widths behind a window, from where on a false alarm costs all


@dataclass(frozen=True)
class Profile:
    """What a detection, a false alarm and a missed window are worth."""

    true_positive: float
    false_positive: float
    false_negative: float


PROFILES = {
    "standard": Profile(1.0, 0.11, 1.0),
    "reward_low_FP_rate": Profile(1.0, 0.22, 1.0),
    "reward_low_FN_rate": Profile(1.0, 0.11, 2.0),
}


@dataclass(frozen=True)
class Series:
    """One series with what a detector made of it.

    Attributes:
        times: seconds, [n].
        scores: the detector's, [n]; higher is more anomalous.
        windows: first and last second of each anomaly, in order.
    """

    times: Floats
    scores: Floats
    windows: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Score:
    """A corpus at one threshold: normalised (0: no alarm at all, 100: perfect), raw, and counted.

    Attributes:
        detected: windows with a detection.
        windows: windows that can be detected: not wholly within the probation.
        false_alarms: rows outside of windows that reach the threshold.
    """

    normalised: float
    raw: float
    threshold: float
    detected: int
    windows: int
    false_alarms: int


def scaled_sigmoid(position: float) -> float:
    """What a position is worth, 1 … -1: -1 is the left edge of a window, 0 its right one, and 3 far behind it."""
    return -1.0 if position >= _FAR else 2 / (1 + math.exp(5 * position)) - 1


def probation(rows: int) -> int:
    """How many rows at the start of a series are not scored."""
    return math.ceil(min(math.floor(PROBATION * rows), PROBATION * PROBATION_ROWS))


def spans(times: Floats, windows: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """First and last row of each window; windows without a row are left out."""
    found = []
    for start, end in windows:
        rows = np.flatnonzero((times >= start) & (times <= end))
        if len(rows):
            found.append((int(rows[0]), int(rows[-1])))
    return found


def worth(rows: int, windows: Sequence[tuple[int, int]], profile: Profile) -> tuple[Floats, NDArray[np.int64]]:
    """What an alarm in each row is worth, and the index of the window it lies in or -1: both [rows]."""
    value = np.full(rows, -profile.false_positive)
    inside = np.full(rows, -1, np.int64)
    best = scaled_sigmoid(-1.0)
    for at, (first, last) in enumerate(windows):
        width = last - first + 1
        until = windows[at + 1][0] if at + 1 < len(windows) else rows
        for row in range(last + 1, min(until, last + 1 + math.ceil(_FAR * width))):
            position = (row - last) / (width - 1) if width > 1 else _FAR
            value[row] = scaled_sigmoid(position) * profile.false_positive
        for row in range(first, last + 1):
            value[row] = scaled_sigmoid((row - last - 1) / width) / best * profile.true_positive
        inside[first : last + 1] = at
    return value, inside


def score(corpus: Sequence[Series], profile: Profile, threshold: float | None = None) -> Score:
    """Score a corpus at one threshold, or at the one that is best for the whole of it.

    A corpus without a window that could be detected has no scale: its normalised score is NaN.
    """
    parts = [_scorable(series, profile) for series in corpus]
    counts = [part[3] for part in parts]
    total = sum(counts)
    scores = np.concatenate([part[0] for part in parts])
    value = np.concatenate([part[1] for part in parts])
    window = np.concatenate(
        [
            np.where(part[2] >= 0, part[2] + offset, -1)
            for part, offset in zip(parts, np.cumsum([0, *counts[:-1]]), strict=True)
        ]
    )
    order = np.argsort(-scores, kind="stable")
    scores, value, window = scores[order], value[order], window[order]
    gain = np.where(window < 0, value, 0.0)
    hits = np.zeros(len(scores), np.int64)
    best: dict[int, float] = {}
    for row in np.flatnonzero(window >= 0):
        at, worthy = int(window[row]), float(value[row])
        before = best.get(at)
        hits[row] = before is None
        gain[row] = max(0.0, worthy - (-profile.false_negative if before is None else before))
        best[at] = worthy if before is None else max(before, worthy)
    # Before the first row nothing is detected; then the rows of each score join together.
    raw = -profile.false_negative * total + np.concatenate([[0.0], np.cumsum(gain)])
    detected = np.concatenate([[0], np.cumsum(hits)])
    false = np.concatenate([[0], np.cumsum(window < 0)])
    ends = np.concatenate([[0], np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) + 1 if len(scores) else []])
    ends = ends.astype(np.int64)
    if threshold is None:
        at = int(ends[np.argmax(raw[ends])])
        threshold = float(scores[at - 1]) if at else math.inf
    else:
        at = int(np.searchsorted(-scores, -threshold, side="right"))
    null = -profile.false_negative * total
    perfect = profile.true_positive * total
    normalised = 100 * (float(raw[at]) - null) / (perfect - null) if total else math.nan
    return Score(normalised, float(raw[at]), threshold, int(detected[at]), total, int(false[at]))


def _scorable(series: Series, profile: Profile) -> tuple[Floats, Floats, NDArray[np.int64], int]:
    """Scores, worth and window of the rows that count, and how many windows have one."""
    rows = len(series.times)
    value, inside = worth(rows, spans(series.times, series.windows), profile)
    first = probation(rows)
    inside = inside[first:]
    left = np.unique(inside[inside >= 0])
    renumbered = np.where(inside >= 0, np.searchsorted(left, inside), -1)
    return series.scores[first:], value[first:], renumbered, len(left)
