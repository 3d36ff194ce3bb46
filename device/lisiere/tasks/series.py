"""Series: forecasting and anomaly detection on windows."""

from __future__ import annotations

import numpy as np

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock, rfc3339
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Anomaly, Forecasting
from lisiere.values import AnomalyBody, ForecastingBody, Result, Window


class _WindowModel:
    """A model whose one input is a window."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        self._model = model
        self._input = package.manifest.inputs[0]
        self._output = package.manifest.outputs[0].name
        self.clock = clock

    def tensor(self, window: Window) -> Tensor:
        """Return the window as the model's input."""
        return window.values.astype(self._input.dtype, copy=False).reshape(self._input.shape)

    def run(self, tensor: Tensor) -> Tensor:
        """Return the model's output, flat.

        Raises:
            Rejected: it holds something that is not a number.
        """
        output = self._model.run({self._input.name: tensor})[self._output].reshape(-1)
        if not np.isfinite(output).all():
            raise Rejected("The model's output is not made of numbers.")
        return output


class ForecastingTask:
    """A window to quantiles of what comes next. A window with holes gives no forecast."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        task = package.manifest.task
        assert isinstance(task, Forecasting)  # noqa: S101 - open_task looked
        self._task = task
        self._model = _WindowModel(package, model, clock)

    def __call__(self, item: Window) -> Result | None:
        """Forecast from one window; None when it has holes. See `Task`."""
        if not item.complete:
            return None
        moment = self._model.clock.monotonic
        started = moment()
        tensor = self._model.tensor(item)
        prepared = moment()
        output = self._model.run(tensor)
        inferred = moment()
        task = self._task
        # Each quantile separately trained may cross another; sorted ones are never worse (rearrangement,
        # Chernozhukov, Fernández-Val and Galichon 2010).
        values = np.sort(output.reshape(task.horizon, len(task.quantiles)).astype(np.float64), axis=1)
        body = ForecastingBody(
            horizon=[rfc3339(item.end + (step + 1) * item.step_s) for step in range(task.horizon)],
            quantiles={
                f"{quantile:g}": np.round(values[:, at], 6).tolist() for at, quantile in enumerate(task.quantiles)
            },
        )
        return Result(body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3)


class AnomalyTask:
    """A window to a score, and whether it exceeds the threshold. A window with holes is `no_data`."""

    def __init__(self, package: Package, model: Model, clock: Clock) -> None:
        task = package.manifest.task
        assert isinstance(task, Anomaly)  # noqa: S101 - open_task looked
        self._task = task
        self._model = _WindowModel(package, model, clock)

    def __call__(self, item: Window) -> Result:
        """Score one window; see `Task`."""
        threshold = self._task.threshold
        if not item.complete:
            return Result(AnomalyBody(state="no_data", score=None, threshold=threshold), 0.0, 0.0, 0.0)
        moment = self._model.clock.monotonic
        started = moment()
        tensor = self._model.tensor(item)
        prepared = moment()
        output = self._model.run(tensor)
        inferred = moment()
        if self._task.output == "reconstruction":
            # In float64: the square of a large float32 is infinite.
            score = float(np.mean(np.square(output.astype(np.float64) - tensor.reshape(-1))))
        else:
            score = float(output[0])
        body = AnomalyBody(
            state="anomalous" if score > threshold else "normal", score=round(score, 6), threshold=threshold
        )
        return Result(body, (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3)
