"""Classification: a frame to the labels it most likely shows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Classification, ImageInput
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere.values import ClassificationBody, Frame, LabelScore, Result


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
        scores = self._scores(output.reshape(-1))
        best = (-scores).argsort(kind="stable")[: self._top]  # of equals, the first label
        top = [
            LabelScore(self._labels[at], round(score, 6))
            for at, score in zip(best.tolist(), scores[best].tolist(), strict=True)
        ]
        body = ClassificationBody(label=top[0].label, score=top[0].score, top=top)
        return Result(body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3)

    def _scores(self, output: Tensor) -> NDArray[np.float32]:
        """Return probabilities, float32 [classes].

        Raises:
            Rejected: the model gave something that is not a number.
        """
        if self._task.scores == "uint8":
            return output.astype(np.float32) / np.float32(255)
        # In double precision neither the sum nor the shift by the largest can overflow.
        scores = output.astype(np.float64)
        if not math.isfinite(scores.sum()):  # one number that is none makes the sum none
            raise Rejected("The model's scores are not numbers.")
        if self._task.scores == "softmax":
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        return scores.astype(np.float32)
