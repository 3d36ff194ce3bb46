"""Forecasting: a window to quantiles of what comes next, with an interval, and how earlier forecasts did."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisiere.backends import Model, Tensor
from lisiere.clock import Clock, rfc3339
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Forecasting
from lisiere.settings.forecast import ForecastConfig
from lisiere.tasks.encoding import levels
from lisiere.tasks.scoring import Answer, Asked, Keeper, season_rows, seasonal_naive
from lisiere.tasks.series import SeriesTask
from lisiere.values import ChannelForecast, ForecastingBody, Interval, Result, Window

Array = NDArray[np.float64]

LONG = 5  # how many horizons a model must be worse: forecasts that overlap say much the same


class ForecastingTask(SeriesTask):
    """A window to quantiles of what comes next. A window with holes gives no forecast, but may tell of earlier ones.

    Raises:
        Rejected: the configured season does not fit the model's window.
    """

    def __init__(self, package: Package, model: Model, clock: Clock, config: ForecastConfig) -> None:
        super().__init__(package, model, clock)
        task, how = package.manifest.task, self._how
        assert isinstance(task, Forecasting)  # noqa: S101 - open_task looked
        self._task = task
        self._columns = [how.channels.index(name) for name in task.names]
        try:
            self._season = season_rows(how.step_s, how.length, config.season_s)
        except ValueError as error:
            raise Rejected(f"`forecast.season_s` does not fit the model {package.manifest.name!r}: {error}.") from error
        asked = Asked(
            horizon=task.horizon,
            stride=how.stride,
            step_s=how.step_s,
            channels=task.names,
            columns=tuple(self._columns),
            levels=task.quantiles,
            coverage=config.coverage,
            running=config.running,
            fallback=(config.fallback.below, config.fallback.above) if config.fallback else None,
            patience=max(config.running, LONG * -(-task.horizon // how.stride)),
        )
        self._coverage = config.coverage
        self._keeper = Keeper(asked)

    def __call__(self, item: Window) -> Result | None:
        """Forecast from one window; see `Task`."""
        scores = self._keeper.see(item)
        if not item.complete:
            return Result(None, messages=scores) if scores else None
        return self._infer(item, scores)

    def _answer(self, window: Window, tensor: Tensor, output: Tensor) -> ForecastingBody:  # noqa: ARG002
        task = self._task
        shape = (task.horizon, len(self._columns), len(task.quantiles))
        # Each quantile separately trained may cross another; sorted ones are never worse (rearrangement,
        # Chernozhukov, Fernández-Val and Galichon 2010).
        values = np.sort(output.reshape(shape).astype(np.float64), axis=2)
        if self._how.normalise is not None:
            level, scale = levels(window.values, self._how.normalise)
            with np.errstate(over="ignore"):  # looked for below
                values = values * scale[0, self._columns, np.newaxis] + level[0, self._columns, np.newaxis]
        if not np.isfinite(values).all():
            raise Rejected("The model's output is not made of numbers in the unit of its channels.")
        rows = window.values[:, self._columns].astype(np.float64)
        answer = self._keeper.answer(values, seasonal_naive(rows, task.horizon, self._season))
        horizon = [rfc3339(window.end + (step + 1) * window.step_s) for step in range(task.horizon)]
        if not task.channels:
            return ForecastingBody(
                horizon=horizon,
                method=answer.method,
                quantiles=self._quantiles(answer, 0),
                interval=self._interval(answer, 0),
            )
        channels = {
            name: ChannelForecast(quantiles=self._quantiles(answer, at), interval=self._interval(answer, at))
            for at, name in enumerate(task.names)
        }
        return ForecastingBody(horizon=horizon, method=answer.method, channels=channels)

    def _quantiles(self, answer: Answer, channel: int) -> dict[str, list[float]]:
        found = answer.quantiles[:, channel]
        return {f"{level:g}": _listed(found[:, at]) for at, level in enumerate(self._task.quantiles)}

    def _interval(self, answer: Answer, channel: int) -> Interval | None:
        if answer.low is None or answer.high is None:
            return None
        return Interval(
            coverage=self._coverage, low=_listed(answer.low[:, channel]), high=_listed(answer.high[:, channel])
        )


def _listed(values: Array) -> list[float]:
    found: list[float] = np.round(values, 6).tolist()
    return found
