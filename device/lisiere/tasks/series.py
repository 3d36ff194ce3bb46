"""Series: a window through a model, and anomaly detection on windows."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Anomaly, Forecasting, WindowInput
from lisiere.tasks.encoding import calendar, levels
from lisiere.tasks.residual import Residual
from lisiere.values import AnomalyBody, Body, EventBody, Result, ScoreBody, Window


class SeriesTask:
    """What both tasks share: a window through a model, timed; `_answer` says what the output means."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        manifest = package.manifest
        assert isinstance(manifest.input, WindowInput)  # noqa: S101 - open_package looked
        self._model = model
        self._how = manifest.input
        self._inputs = manifest.inputs
        self._ahead = manifest.task.horizon if isinstance(manifest.task, Forecasting) else 0
        self._output = manifest.outputs[0].name
        self._clock = clock

    def _infer(self, window: Window, messages: tuple[ScoreBody, ...] = ()) -> Result:
        """Ask the model of a window without holes; `messages` are handed on behind the result."""
        moment = self._clock.monotonic
        started = moment()
        feeds = self._feeds(window)
        prepared = moment()
        output = self._model.run(feeds)[self._output].reshape(-1)
        inferred = moment()
        if not np.isfinite(output).all():
            raise Rejected("The model's output is not made of numbers.")
        body = self._answer(window, feeds[self._inputs[0].name], output)
        return Result(
            body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3, messages
        )

    def _feeds(self, window: Window) -> dict[str, Tensor]:
        """What the model sees of a window: the rows, normalised as the manifest says, and the calendar if it asks."""
        spec, how = self._inputs[0], self._how
        rows = window.values
        if how.normalise is not None:
            level, scale = levels(rows, how.normalise)
            rows = ((rows - level) / scale).astype(np.float32)
        feeds = {spec.name: rows.astype(spec.dtype, copy=False).reshape(spec.shape)}
        if how.covariates is not None:
            spec = self._inputs[1]
            steps = np.arange(1 - len(rows), self._ahead + 1, dtype=np.float64)
            known = calendar(window.end + steps * window.step_s, how.covariates)
            feeds[spec.name] = known.astype(spec.dtype, copy=False).reshape(spec.shape)
        return feeds

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """Nothing is left to be told; see `Task`."""
        return ()

    @abstractmethod
    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> Body:
        """Say what the output means: `tensor` went in, and `output`, flat and finite, came out."""


class AnomalyTask(SeriesTask):
    """A window to a score, and whether it exceeds the threshold. A window with holes is `no_data`."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        super().__init__(package, model, clock)
        task = package.manifest.task
        assert isinstance(task, Anomaly)  # noqa: S101 - open_task looked
        self._task = task
        how = package.manifest.input
        self._residual = Residual(len(how.channels)) if isinstance(how, WindowInput) else None

    def __call__(self, item: Window) -> Result:
        """Score one window; see `Task`."""
        if item.complete:
            return self._infer(item)
        return Result(AnomalyBody(state="no_data", score=None, threshold=self._task.threshold), 0.0, 0.0, 0.0)

    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> AnomalyBody:
        score = self._score(window, tensor, output)
        threshold = self._task.threshold
        if score is None:
            return AnomalyBody(state="no_data", score=None, threshold=threshold)
        return AnomalyBody(
            state="anomalous" if score > threshold else "normal", score=round(score, 6), threshold=threshold
        )

    def _score(self, window: Window, tensor: Tensor, output: Tensor) -> float | None:
        """What the model's output amounts to; None where no forecast has come due."""
        if self._task.output == "score":
            return float(output[0])
        # In float64: the square of a large float32 is infinite.
        numbers = output.astype(np.float64)
        if self._task.output == "residual":
            assert self._residual is not None  # noqa: S101 - an anomaly model takes windows
            if self._how.normalise is not None:
                level, scale = levels(window.values, self._how.normalise)
                numbers = (numbers.reshape(-1, scale.shape[-1]) * scale + level).reshape(-1)
            return self._residual(window, numbers)
        return float(np.mean(np.square(numbers - tensor.reshape(-1))))
