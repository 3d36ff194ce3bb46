"""Series: windows become quantiles or a score; a window with holes never reaches the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from lisiere.backends import open_model
from lisiere.clock import ManualClock, rfc3339
from lisiere.errors import Rejected
from lisiere.models import Manifest, Package, TensorSpec, open_package
from lisiere.models.manifest import Anomaly, Dtype, Forecasting, WindowInput
from lisiere.tasks import Task, open_task
from lisiere.values import AnomalyBody, ForecastingBody, Result, Window
from support import tiny

T0 = 1_700_000_000.0


class Fake:
    """A model that gives what it is told to, and takes 2 ms of the clock for it."""

    def __init__(self, manifest: Manifest, output: NDArray[Any], clock: ManualClock) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.feeds: list[NDArray[Any]] = []
        self._output = output
        self._clock = clock

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        (array,) = feeds.values()
        self.feeds.append(array)
        self._clock.advance(0.002)
        return {self.outputs[0].name: self._output.reshape(self.outputs[0].shape)}

    def close(self) -> None:
        pass


def make(what: Forecasting | Anomaly, output: object, size: int, dtype: Dtype = "float32") -> tuple[Task, Fake]:
    manifest = Manifest(
        schema="lisiere.model/1",
        name="series",
        version="1.0.0",
        inputs=(TensorSpec(name="window", shape=(1, 4, 2), dtype=dtype),),
        outputs=(TensorSpec(name="out", shape=(1, size)),),
        input=WindowInput(channels=("level", "wind"), length=4, step_s=60.0),
        task=what,
        files={},
    )
    clock = ManualClock()
    model = Fake(manifest, np.asarray(output, np.float32), clock)
    return open_task(Package(Path("nowhere"), manifest, "sha256:"), model, clock), model


def window(values: object = 0.0) -> Window:
    rows = np.broadcast_to(np.asarray(values, np.float32), (4, 2)).copy()
    return Window(values=rows, start=T0, end=T0 + 180, step_s=60.0, coverage=1.0, imputed=0, source="sensor")


def forecasting(**changes: Any) -> Forecasting:
    return msgspec.structs.replace(Forecasting(horizon=2, quantiles=(0.1, 0.5, 0.9), channel="level"), **changes)


def forecast(task: Task, item: Window) -> ForecastingBody:
    found = task(item)
    assert found is not None
    assert isinstance(found.body, ForecastingBody)
    return found.body


def anomaly(task: Task, item: Window) -> AnomalyBody:
    found = task(item)
    assert found is not None
    assert isinstance(found.body, AnomalyBody)
    return found.body


def test_a_forecast_has_a_number_for_each_step_and_quantile() -> None:
    task, _ = make(forecasting(), [1, 2, 3, 4, 5, 6], 6)
    body = forecast(task, window())
    assert body.horizon == [rfc3339(T0 + 240), rfc3339(T0 + 300)]
    assert body.quantiles == {"0.1": [1, 4], "0.5": [2, 5], "0.9": [3, 6]}


def test_quantiles_that_cross_are_put_in_order_step_by_step() -> None:
    task, _ = make(forecasting(), [3, 1, 2, 4, 6, 5], 6)
    assert forecast(task, window()).quantiles == {"0.1": [1, 4], "0.5": [2, 5], "0.9": [3, 6]}


def test_quantiles_are_named_without_needless_digits() -> None:
    task, _ = make(forecasting(horizon=1, quantiles=(0.025, 0.5, 0.975)), [1, 2, 3], 3)
    assert list(forecast(task, window()).quantiles) == ["0.025", "0.5", "0.975"]


def test_a_forecast_can_be_encoded_and_is_rounded() -> None:
    task, _ = make(forecasting(horizon=1, quantiles=(0.5,)), [0.1], 1)
    assert msgspec.json.decode(msgspec.json.encode(forecast(task, window())))["quantiles"] == {"0.5": [0.1]}


def test_the_model_gets_the_window_in_its_shape_and_dtype() -> None:
    for dtype in ("float32", "float64"):
        task, model = make(forecasting(), [0] * 6, 6, dtype)
        values = np.arange(8, dtype=np.float32).reshape(4, 2)
        task(window(values))
        (array,) = model.feeds
        assert array.shape == (1, 4, 2)
        assert array.dtype == np.dtype(dtype)
        assert (array[0] == values).all()


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_window_with_holes_gives_no_forecast_and_asks_no_model(hole: float) -> None:
    task, model = make(forecasting(), [0] * 6, 6)
    values = np.zeros((4, 2), np.float32)
    values[2, 1] = hole
    assert task(window(values)) is None
    assert model.feeds == []


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_window_with_holes_is_no_data_and_asks_no_model(hole: float) -> None:
    task, model = make(Anomaly(threshold=0.5), [9], 1)
    values = np.zeros((4, 2), np.float32)
    values[0, 0] = hole
    found = task(window(values))
    assert found == Result(AnomalyBody(state="no_data", score=None, threshold=0.5), 0.0, 0.0, 0.0)
    assert model.feeds == []


@pytest.mark.parametrize(("score", "state"), [(0.0, "normal"), (0.5, "normal"), (0.51, "anomalous"), (-3, "normal")])
def test_a_window_is_anomalous_when_its_score_exceeds_the_threshold(score: float, state: str) -> None:
    task, _ = make(Anomaly(threshold=0.5), [score], 1)
    body = anomaly(task, window())
    assert (body.state, body.threshold) == (state, 0.5)
    assert body.score == pytest.approx(score)


def test_a_reconstruction_is_scored_by_its_mean_squared_error() -> None:
    values, back = np.random.default_rng(0).normal(0, 1, (2, 4, 2)).astype(np.float32)
    task, _ = make(Anomaly(threshold=0.1, output="reconstruction"), back, 8)
    body = anomaly(task, window(values))
    assert body.score == pytest.approx(float(np.mean((back - values) ** 2)), rel=1e-5)
    assert body.state == "anomalous"


def test_a_reconstruction_far_off_has_a_score_all_the_same() -> None:
    task, _ = make(Anomaly(threshold=0.1, output="reconstruction"), [3e38] * 8, 8)
    body = anomaly(task, window(-3e38))
    assert body.score is not None
    assert math.isfinite(body.score)
    assert body.state == "anomalous"


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("what", [forecasting(), Anomaly(threshold=1.0)])
def test_an_output_that_is_not_a_number_is_rejected(wrong: float, what: Forecasting | Anomaly) -> None:
    size = 6 if isinstance(what, Forecasting) else 1
    task, _ = make(what, [wrong] + [0.0] * (size - 1), size)
    with pytest.raises(Rejected, match="not made of numbers"):
        task(window())


@pytest.mark.parametrize("what", [forecasting(), Anomaly(threshold=1.0)])
def test_the_time_of_each_step_is_told_in_milliseconds(what: Forecasting | Anomaly) -> None:
    size = 6 if isinstance(what, Forecasting) else 1
    found = make(what, [0.0] * size, size)[0](window())
    assert found is not None
    assert (found.preprocess_ms, found.postprocess_ms) == (0, 0)
    assert found.infer_ms == pytest.approx(2)


def test_a_real_model_forecasts(tmp_path: Path) -> None:
    package = open_package(tiny.forecaster(tmp_path))
    opened = open_model(package, "onnx")
    rows = np.asarray([[1], [2], [3], [4], [5], [6]], np.float32)
    item = Window(values=rows, start=T0, end=T0 + 5, step_s=1.0, coverage=1.0, imputed=0, source="sensor")
    body = forecast(open_task(package, opened.model, ManualClock()), item)
    assert body.quantiles == {"0.1": [5, 5], "0.5": [6, 6], "0.9": [7, 7]}
    assert body.horizon == [rfc3339(T0 + 6), rfc3339(T0 + 7)]
    opened.model.close()


def test_a_real_model_detects(tmp_path: Path) -> None:
    package = open_package(tiny.detector(tmp_path, threshold=1.0))
    opened = open_model(package, "onnx")
    task = open_task(package, opened.model, ManualClock())
    for value, state in ((0.5, "normal"), (2.0, "anomalous")):
        rows = np.full((4, 1), value, np.float32)
        item = Window(values=rows, start=T0, end=T0 + 0.3, step_s=0.1, coverage=1.0, imputed=0, source="sensor")
        body = anomaly(task, item)
        assert body.state == state
        assert body.score == pytest.approx(value**2)
    opened.model.close()


def test_a_forecast_is_scored_when_its_rows_have_come() -> None:
    task, _ = make(Anomaly(threshold=3.0, output="residual"), [1, 1, 1, 1], 4)
    assert anomaly(task, window()) == AnomalyBody(state="no_data", score=None, threshold=3.0)
    values = np.array([[0, 0], [0, 0], [1, 1], [1, 5]], np.float32)
    moved = Window(values=values, start=T0 + 120, end=T0 + 300, step_s=60.0, coverage=1.0, imputed=0, source="sensor")
    assert anomaly(task, moved) == AnomalyBody(state="anomalous", score=4.0, threshold=3.0)
