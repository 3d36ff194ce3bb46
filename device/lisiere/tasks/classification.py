"""Classification: a frame to the labels it most likely shows, and whether that is enough to go by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Classification, ImageInput
from lisiere.settings.decision import DecisionConfig
from lisiere.tasks.conformal import ConformalSets, read_scores
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere.tasks.presence import Events
from lisiere.values import ClassificationBody, EventBody, Frame, LabelScore, Result, ScoreBody

_FEW_CLASSES = 64
_SLACK = 1e-3  # of shares, for rounding
LEAST_SHARE = 1e-12  # what a share of zero counts as where its logarithm is asked for

Scores = Literal["softmax", "probabilities", "uint8"]


class ClassificationTask:
    """Preprocess, infer, and name the best labels with their probabilities.

    Raises:
        Rejected: the model has no calibration for the sets of labels that are asked for, or too small a one.
    """

    def __init__(self, package: Package, model: Model, clock: Clock, decision: DecisionConfig | None = None) -> None:
        manifest = package.manifest
        assert isinstance(manifest.task, Classification)  # noqa: S101 - open_task looked
        assert isinstance(manifest.input, ImageInput)  # noqa: S101 - open_package looked
        decision = decision or DecisionConfig()
        self._task = manifest.task
        self._preprocess = ImagePreprocess(manifest.input, manifest.inputs[0])
        self._labels = package.labels()
        self._top = min(decision.top or self._task.top, len(self._labels))
        self._threshold = decision.threshold or 0.0
        self._sets = None if decision.coverage is None else sets_of(package, decision.coverage)
        self._events = Events(decision.events, self._labels, exclusive=True) if decision.events is not None else None
        self._model = model
        self._input = manifest.inputs[0].name
        self._output = manifest.outputs[0].name
        self._clock = clock

    def __call__(self, item: Frame) -> Result:
        """Classify one frame; see `Task`."""
        moment = self._clock.monotonic
        started = moment()
        tensor = self._preprocess(item.image)
        prepared = moment()
        output = self._model.run({self._input: tensor})[self._output].reshape(-1)
        inferred = moment()
        shares = class_shares(output, self._task.scores, self._task.temperature)
        top = [LabelScore(self._labels[at], round(float(shares[at]), 6)) for at in best_classes(output, self._top)]
        decided = top[0].score >= self._threshold
        messages: tuple[EventBody, ...] = ()
        steady: str | UnsetType | None = UNSET
        if self._events is not None:
            messages = self._events.add(item.ts, _votes(shares, decided) if self._events.votes else np.asarray(shares))
            steady = next(iter(self._events.present), None)
        body = ClassificationBody(
            label=top[0].label,
            score=top[0].score,
            top=top,
            decided=decided,
            set=UNSET if self._sets is None else [self._labels[at] for at in self._sets(np.asarray(shares))],
            steady=steady,
        )
        spent = (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3
        return Result(body, *spent, messages)

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """Return the end of the event that is open, if one is; see `Task`."""
        return () if self._events is None else self._events.end()


def _votes(shares: Sequence[float], decided: bool) -> NDArray[np.float64]:
    """The whole vote of a frame for its best label, or for none."""
    votes = np.zeros(len(shares))
    votes[int(np.argmax(shares))] = decided
    return votes


def sets_of(package: Package, coverage: float) -> ConformalSets:
    """Return what makes a model's sets of labels at a coverage.

    Raises:
        Rejected: the model has no calibration, or one that is too small for it.
    """
    task = package.manifest.task
    if not isinstance(task, Classification) or task.calibration is None:
        raise Rejected(
            f"The model at {package.path} has no calibration to make sets of labels from. "
            "`lisiere models calibrate` gives it one, from labelled images."
        )
    return read_scores(package.file(task.calibration)).sets(coverage)


def class_shares(output: Tensor, scores: Scores, temperature: float = 1.0) -> Sequence[float]:
    """Return the probability of each class.

    Args:
        output: [classes], in the model's dtype.
        scores: what the output is; see `Classification.scores`.
        temperature: see `Classification.temperature`.

    Raises:
        Rejected: the output holds something that is not a number, or no share of one where those are promised.
    """
    # For a few classes NumPy's calls cost more than their arithmetic. Both ways count in double precision, where
    # neither the sum nor the shift by the largest can overflow.
    few = output.size <= _FEW_CLASSES
    if few:
        values: list[float] = output.tolist()
        _check_finite(sum(values))
        if scores == "probabilities":
            _check_shares(min(values), max(values))
        if scores == "softmax" or temperature != 1:
            if scores != "softmax":
                scale = 1 / 255 if scores == "uint8" else 1.0
                values = [math.log(max(value * scale, LEAST_SHARE)) for value in values]
            largest = max(values)
            values = [math.exp((value - largest) / temperature) for value in values]
            scale = 1 / sum(values)
            return [value * scale for value in values]
        return [value / 255 for value in values] if scores == "uint8" else values
    shares = output.astype(np.float64)
    _check_finite(float(shares.sum()))
    if scores == "probabilities":
        _check_shares(float(shares.min()), float(shares.max()))
    if scores == "uint8":
        shares /= 255
    if scores != "softmax" and temperature != 1:
        shares = np.log(np.maximum(shares, LEAST_SHARE))
    if scores == "softmax" or temperature != 1:
        shares = np.exp((shares - shares.max()) / temperature)
        shares /= shares.sum()
    return cast(Sequence[float], shares)


def best_classes(output: Tensor, top: int) -> list[int]:
    """Return the best classes of a model's output [classes], the best first. Of equals, the first goes before."""
    # By the output and not by the shares, of which very different ones may be rounded to the same.
    if output.size <= _FEW_CLASSES:
        values = output.tolist()
        return sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top]
    left, order = output.astype(np.float64), []
    for _ in range(top):
        order.append(int(left.argmax()))
        left[order[-1]] = -np.inf
    return order


def _check_finite(total: float) -> None:
    """One number that is none makes the sum none."""
    if not math.isfinite(total):
        raise Rejected("The model's scores are not numbers.")


def _check_shares(least: float, most: float) -> None:
    if least < -_SLACK or most > 1 + _SLACK:
        raise Rejected(
            f"The model's scores reach from {least:g} to {most:g}, and they are shares of one. If it gives logits, say "
            "so by `task.scores: softmax` of its manifest."
        )
