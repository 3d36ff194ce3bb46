"""Heads: from a detector's tensors to candidate boxes, as the manifest declares their form.

What a model gives is not trusted: what is no number, no share or no class is refused with a reason, and offsets are
bounded before they are raised to powers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lisiere.backends import Tensor
from lisiere.documents import read_text
from lisiere.errors import Rejected
from lisiere.models.manifest import Detection, SsdHead, SsdRawHead, YoloHead

# A box may be so much larger than its prior. Source: torchvision's BoxCoder, which has it for the same reason.
_LARGEST = math.log(1000 / 16)
_FAR = 1e9  # from the image
_SLACK = 1e-3  # of shares, for rounding

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a head proposes, the best first.

    Attributes:
        boxes: [n, 4], finite: left, top, right, bottom in pixels of the model's input, in whatever place.
        scores: [n], falling, at least the threshold.
        classes: [n], each the index of a label.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]


class HeadReader:
    """Reads the outputs of one model.

    Args:
        task: which form they have, and how many candidates are wanted.
        labels: how many there are.
        size: height and width of the model's input.
        priors: [N, 4] as `read_priors` gives them; for the head `ssd_raw`.
    """

    def __init__(self, task: Detection, labels: int, size: tuple[int, int], priors: Floats | None = None) -> None:
        self._head = task.head
        self._most = task.candidates
        self._labels = labels
        self._scale = np.asarray([size[1], size[0]] * 2, np.float64)  # of left, top, right, bottom
        self._priors = priors

    def __call__(self, outputs: Mapping[str, Tensor], threshold: float) -> Candidates:
        """Return the candidates whose scores are at least `threshold`.

        Raises:
            Rejected: a score is no share of one, a box is not made of numbers, or a class has no label.
        """
        head = self._head
        if isinstance(head, SsdHead):
            return self._ssd(head, outputs, threshold)
        if isinstance(head, SsdRawHead):
            return self._ssd_raw(head, outputs, threshold)
        return self._yolo(head, outputs, threshold)

    def _ssd(self, head: SsdHead, outputs: Mapping[str, Tensor], threshold: float) -> Candidates:
        scores = outputs[head.scores].reshape(-1).astype(np.float64)
        if head.count is not None:
            count = float(outputs[head.count].reshape(-1)[0])
            if not 0 <= count <= len(scores):
                raise Rejected(f"The model says that it has found {count:g} objects, of at most {len(scores)}.")
            scores = scores[: int(count)]
        chosen, scores = self._best(scores, threshold)
        boxes = _bounded(outputs[head.boxes].reshape(-1, 4)[chosen])
        classes = outputs[head.classes].reshape(-1)[chosen].astype(np.float64) - head.first_class
        wrong = ~((classes >= 0) & (classes < self._labels) & (classes == np.floor(classes)))
        if wrong.any():
            raise Rejected(
                f"The model gives an object the class {classes[wrong][0] + head.first_class:g}, and there are "
                f"{self._labels} labels, of which the first has the class {head.first_class}. "
                "Look at `task.labels` and `task.head.first_class` of its manifest."
            )
        return Candidates(self._pixels(_corners(boxes, head.order), head.unit), scores, classes.astype(np.int64))

    def _ssd_raw(self, head: SsdRawHead, outputs: Mapping[str, Tensor], threshold: float) -> Candidates:
        assert self._priors is not None  # noqa: S101 - the caller has read them
        scores = outputs[head.scores].reshape(len(self._priors), -1)
        shares = _activate(scores.astype(np.float64), head.activation)
        if head.background is not None:
            shares = np.delete(shares, head.background, axis=1)
        chosen, best = self._best(shares.reshape(-1), threshold)
        rows, classes = np.divmod(chosen, self._labels)
        offsets = _bounded(outputs[head.boxes].reshape(-1, 4)[rows])
        if head.order == "cycxhw":
            offsets = offsets[:, [1, 0, 3, 2]]
        priors = self._priors[rows]
        centre = priors[:, :2] + offsets[:, :2] * head.variances[0] * priors[:, 2:]
        size = priors[:, 2:] * np.exp(np.minimum(offsets[:, 2:] * head.variances[1], _LARGEST))
        return Candidates(_corners(np.hstack([centre, size]), "cxcywh") * self._scale, best, classes)

    def _yolo(self, head: YoloHead, outputs: Mapping[str, Tensor], threshold: float) -> Candidates:
        output = outputs[head.output]
        rows = output.reshape(output.shape[-2:])
        if head.layout == "columns":
            rows = rows.T
        sure: Floats | None = None
        if head.objectness:
            sure = _activate(rows[:, 4].astype(np.float64), head.activation)
            _check_shares(sure)
            # No class makes up for an objectness below the threshold, and most boxes are of that kind.
            likely = sure >= threshold
            rows, sure = rows[likely], sure[likely]
        by_class = rows[:, 5 if head.objectness else 4 :]
        # Both functions rise, so the best class is the one with the highest output; a NaN is the highest.
        scores = _activate(by_class.max(axis=1).astype(np.float64), head.activation)
        _check_shares(scores)
        chosen, scores = self._best(scores if sure is None else scores * sure, threshold)
        classes = by_class[chosen].argmax(axis=1)
        boxes = _corners(_bounded(rows[chosen, :4]), "cxcywh")
        return Candidates(self._pixels(boxes, head.unit), scores, classes)

    def _best(self, scores: Floats, threshold: float) -> tuple[NDArray[np.int64], Floats]:
        """Return where the best scores are, and the scores, the best first and of equals the first."""
        _check_shares(scores)
        chosen = np.flatnonzero(scores >= threshold)
        if len(chosen) > self._most:
            # As many as are wanted, and those that equal the last of them.
            least = np.partition(scores[chosen], len(chosen) - self._most)[len(chosen) - self._most]
            chosen = chosen[scores[chosen] >= least]
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")][: self._most]
        return chosen, np.minimum(scores[chosen], 1.0)

    def _pixels(self, boxes: Floats, unit: Literal["fraction", "pixel"]) -> Floats:
        return boxes * self._scale if unit == "fraction" else boxes


def read_priors(file: Path, count: int) -> Floats:
    """Read prior boxes: `count` lines of `cx,cy,width,height`, in fractions of the model's input.

    Raises:
        Rejected: the file is not that.
    """
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    try:
        priors = np.asarray([[float(cell) for cell in line.split(",")] for line in lines], np.float64)
    except ValueError as error:
        raise Rejected(f"{file} holds what is no prior box: a line is `cx,cy,width,height` ({error}).") from error
    if priors.shape != (count, 4) or not np.isfinite(priors).all() or not (priors[:, 2:] > 0).all():
        raise Rejected(f"{file} must hold {count} lines of four numbers, the last two above zero: one a box.")
    return priors


def _corners(boxes: Floats, order: Literal["xyxy", "yxyx", "cxcywh"]) -> Floats:
    if order == "xyxy":
        return boxes
    if order == "yxyx":
        return boxes[:, [1, 0, 3, 2]]
    half = boxes[:, 2:] / 2
    return np.hstack([boxes[:, :2] - half, boxes[:, :2] + half])


def _activate(scores: Floats, how: Literal["none", "sigmoid", "softmax"]) -> Floats:
    if how == "none":
        return scores
    _check_numbers(scores)
    if how == "sigmoid":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)), np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _bounded(boxes: Tensor) -> Floats:
    """Boxes in double precision, near enough for their areas to be numbers."""
    _check_numbers(boxes)
    return np.asarray(np.clip(boxes.astype(np.float64), -_FAR, _FAR), np.float64)


def _check_numbers(values: Tensor) -> None:
    if not np.isfinite(values).all():
        raise Rejected("The model's boxes or scores are not all numbers.")


def _check_shares(scores: Floats) -> None:
    _check_numbers(scores)
    if scores.size and not (scores.min() >= -_SLACK and scores.max() <= 1 + _SLACK):
        raise Rejected(
            f"The model's scores reach from {scores.min():g} to {scores.max():g}, and they are shares of one. If it "
            "gives logits, say so by `task.head.activation` of its manifest."
        )
