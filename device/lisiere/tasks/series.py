"""Series: forecasting and anomaly detection on windows."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock, rfc3339
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Anomaly, Forecasting
from lisiere.values import AnomalyBody, Body, EventBody, ForecastingBody, Result, ScoreBody, Window


class _SeriesTask:
    """What both tasks share: a window through a model, timed; `_answer` says what the output means."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        self._model = model
        self._input = package.manifest.inputs[0]
        self._output = package.manifest.outputs[0].name
        self._clock = clock

    def _infer(self, window: Window) -> Result:
        moment = self._clock.monotonic
        started = moment()
        tensor = window.values.astype(self._input.dtype, copy=False).reshape(self._input.shape)
        prepared = moment()
        output = self._model.run({self._input.name: tensor})[self._output].reshape(-1)
        inferred = moment()
        if not np.isfinite(output).all():
            raise Rejected("The model's output is not made of numbers.")
        body = self._answer(window, tensor, output)
        return Result(body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3)

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """Nothing is left to be told; see `Task`."""
        return ()

    @abstractmethod
    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> Body:
        """Say what the output means: `tensor` went in, and `output`, flat and finite, came out."""


class ForecastingTask(_SeriesTask):
    """A window to quantiles of what comes next. A window with holes gives no forecast."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        super().__init__(package, model, clock)
        task = package.manifest.task
        assert isinstance(task, Forecasting)  # noqa: S101 - open_task looked
        self._task = task

    def __call__(self, item: Window) -> Result | None:
        """Forecast from one window; None when it has holes. See `Task`."""
        return self._infer(item) if item.complete else None

    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> ForecastingBody:  # noqa: ARG002
        task = self._task
        # Each quantile separately trained may cross another; sorted ones are never worse (rearrangement,
        # Chernozhukov, Fernández-Val and Galichon 2010).
        values = np.sort(output.reshape(task.horizon, len(task.quantiles)).astype(np.float64), axis=1)
        return ForecastingBody(
            horizon=[rfc3339(window.end + (step + 1) * window.step_s) for step in range(task.horizon)],
            quantiles={
                f"{quantile:g}": np.round(values[:, at], 6).tolist() for at, quantile in enumerate(task.quantiles)
            },
        )


class AnomalyTask(_SeriesTask):
    """A window to a score, and whether it exceeds the threshold. A window with holes is `no_data`."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        super().__init__(package, model, clock)
        task = package.manifest.task
        assert isinstance(task, Anomaly)  # noqa: S101 - open_task looked
        self._task = task

    def __call__(self, item: Window) -> Result:
        """Score one window; see `Task`."""
        if item.complete:
            return self._infer(item)
        return Result(AnomalyBody(state="no_data", score=None, threshold=self._task.threshold), 0.0, 0.0, 0.0)

    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> AnomalyBody:  # noqa: ARG002
        if self._task.output == "reconstruction":
            # In float64: the square of a large float32 is infinite.
            score = float(np.mean(np.square(output.astype(np.float64) - tensor.reshape(-1))))
        else:
            score = float(output[0])
        threshold = self._task.threshold
        return AnomalyBody(
            state="anomalous" if score > threshold else "normal", score=round(score, 6), threshold=threshold
        )
