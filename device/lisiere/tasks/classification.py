"""Classification: a frame to the labels it most likely shows."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Classification, ImageInput
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere.values import ClassificationBody, EventBody, Frame, LabelScore, Result, ScoreBody

_FEW_CLASSES = 64


class ClassificationTask:
    """Preprocess, infer, and name the best labels with their probabilities."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        manifest = package.manifest
        assert isinstance(manifest.task, Classification)  # noqa: S101 - open_task looked
        assert isinstance(manifest.input, ImageInput)  # noqa: S101 - open_package looked
        self._task = manifest.task
        self._preprocess = ImagePreprocess(manifest.input, manifest.inputs[0])
        self._labels = package.labels()
        self._top = min(self._task.top, len(self._labels))
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
        output = self._model.run({self._input: tensor})[self._output]
        inferred = moment()
        top = [
            LabelScore(self._labels[at], round(score, 6))
            for at, score in best_classes(output.reshape(-1), self._task.scores, self._top)
        ]
        body = ClassificationBody(label=top[0].label, score=top[0].score, top=top)
        return Result(body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3)

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """Nothing is left to be told; see `Task`."""
        return ()


def best_classes(
    output: Tensor, scores: Literal["softmax", "probabilities", "uint8"], top: int
) -> list[tuple[int, float]]:
    """Return the best classes of a model's output and their probabilities, the best first.

    Args:
        output: [classes], in the model's dtype.
        scores: what the output is; see `Classification.scores`.
        top: how many to return. Of equals, the first class goes before.

    Raises:
        Rejected: the output holds something that is not a number.
    """
    # For a few classes NumPy's calls cost more than their arithmetic. Both ways count in double precision, where
    # neither the sum nor the shift by the largest can overflow.
    if output.size <= _FEW_CLASSES:
        values: list[float] = output.tolist()
        _check_finite(sum(values))
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:top]
        scale = 1 / 255 if scores == "uint8" else 1.0
        if scores == "softmax":
            largest = max(values)
            values = [math.exp(value - largest) for value in values]
            scale = 1 / sum(values)
        return [(at, values[at] * scale) for at in order]
    shares = output.astype(np.float64)
    _check_finite(float(shares.sum()))
    left, order = shares.copy(), []
    for _ in range(top):
        order.append(int(left.argmax()))
        left[order[-1]] = -np.inf
    if scores == "softmax":
        shares = np.exp(shares - shares.max())
        shares /= shares.sum()
    elif scores == "uint8":
        shares /= 255
    return [(at, float(shares[at])) for at in order]


def _check_finite(total: float) -> None:
    """One number that is none makes the sum none."""
    if not math.isfinite(total):
        raise Rejected("The model's scores are not numbers.")
