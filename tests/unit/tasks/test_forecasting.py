"""Forecasts of raw readings: normalised on the way in and turned back, several channels, a calendar, an interval."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lisiere.backends import open_model
from lisiere.clock import ManualClock, rfc3339
from lisiere.errors import Rejected
from lisiere.models import Manifest, Package, TensorSpec, open_package, write_manifest
from lisiere.models.encoding import Calendar, Covariates, Normalise
from lisiere.models.manifest import Forecasting, WindowInput
from lisiere.settings.forecast import ForecastConfig
from lisiere.tasks import Task, open_task
from lisiere.tasks.encoding import calendar
from lisiere.values import ForecastingBody, Result, ScoreBody, Window
from support import require

T0 = 1_699_920_000.0  # a midnight
ROWS = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 40.0], [5.0, 30.0]], np.float32)


class Fake:
    """A model that says the same `output` [horizon, channels, quantiles] to everything, and keeps what it was asked."""

    def __init__(self, manifest: Manifest, output: object) -> None:
        self.inputs, self.outputs = manifest.inputs, manifest.outputs
        self.asked: list[dict[str, NDArray[Any]]] = []
        self._output = np.asarray(output, np.float32)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.asked.append(dict(feeds))
        return {self.outputs[0].name: self._output.reshape(self.outputs[0].shape)}

    def close(self) -> None:
        pass


def make(output: object, config: ForecastConfig | None = None, **changes: Any) -> tuple[Task, Fake]:
    """A task of two steps and three quantiles on windows of four rows, and its model; `changes` as in the manifest."""
    how = WindowInput(channels=("level", "wind"), length=4, step_s=3600.0)
    task = Forecasting(horizon=2, quantiles=(0.1, 0.5, 0.9), channel="level")
    for key, value in changes.items():
        if key in ("normalise", "covariates"):
            how = msgspec.structs.replace(how, **{key: value})
        else:
            task = msgspec.structs.replace(task, **{key: value})
    inputs = [TensorSpec(name="window", shape=(1, 4, 2))]
    if how.covariates is not None:
        inputs.append(TensorSpec(name="known", shape=(1, 6, how.covariates.columns)))
    shape = (1, 2, len(task.names), len(task.quantiles))
    manifest = Manifest(
        schema="lisiere.model/1",
        name="series",
        version="1.0.0",
        inputs=tuple(inputs),
        outputs=(TensorSpec(name="out", shape=shape),),
        input=how,
        task=task,
        files={},
    )
    model = Fake(manifest, output)
    return open_task(Package(Path("nowhere"), manifest, "sha256:"), model, ManualClock(), forecast=config), model


def window(rows: NDArray[np.float32] = ROWS, hours: int = 3) -> Window:
    end = T0 + hours * 3600
    return Window(rows, end - 3 * 3600, end, 3600.0, 1.0, 0, "sensor")


def told(task: Task, item: Window) -> ForecastingBody:
    found = task(item)
    assert isinstance(found, Result)
    assert isinstance(found.body, ForecastingBody)
    return found.body


FAN = [[[-1, 0, 1]], [[-2, 0, 2]]]  # one channel


def test_raw_readings_go_in_and_raw_units_come_out() -> None:
    task, model = make(FAN, normalise=Normalise(level="last", scale=(2.0, 10.0)))
    body = told(task, window())
    np.testing.assert_allclose(model.asked[0]["window"][0], (ROWS - [5, 30]) / [2, 10], rtol=1e-6)
    assert body.quantiles == {"0.1": [3, 1], "0.5": [5, 5], "0.9": [7, 9]}


def test_a_model_without_normalisation_sees_the_readings_themselves() -> None:
    task, model = make(FAN)
    assert told(task, window()).quantiles["0.9"] == [1, 2]
    assert (model.asked[0]["window"][0] == ROWS).all()


def test_several_channels_are_forecast_at_once_each_in_its_unit() -> None:
    output = np.stack([[[-1, 0, 1], [0, 1, 2]]] * 2)
    task, _ = make(
        output, channels=("wind", "level"), channel=None, normalise=Normalise(level="last", scale=(2.0, 10.0))
    )
    body = told(task, window())
    assert (body.quantiles, body.interval) == ({}, None)
    channels = body.channels
    assert isinstance(channels, dict)
    assert list(channels) == ["wind", "level"]
    assert channels["wind"].quantiles == {"0.1": [20, 20], "0.5": [30, 30], "0.9": [40, 40]}
    assert channels["level"].quantiles == {"0.1": [5, 5], "0.5": [7, 7], "0.9": [9, 9]}
    interval = channels["wind"].interval
    assert interval is not None
    assert interval.coverage == 0.9
    # 90 % of a normal distribution whose 80 % are ± 10.
    assert interval.high == pytest.approx([30 + 10 * 1.2835] * 2, abs=1e-3)


def test_the_calendar_reaches_from_the_first_row_to_the_last_step() -> None:
    how = Covariates(calendar=(Calendar(part="hour_of_day"), Calendar(part="day_of_week", encoding="linear")))
    task, model = make(FAN, covariates=how)
    task(window(hours=23))
    expected = calendar(T0 + 3600.0 * np.arange(20, 26, dtype=np.float64), how)
    assert model.asked[0]["known"].shape == (1, 6, 3)
    np.testing.assert_array_equal(model.asked[0]["known"][0], expected)
    assert len(set(model.asked[0]["known"][0, :, 2].tolist())) == 2  # midnight lies within


def test_scores_follow_the_result_and_come_without_one_from_a_window_with_holes() -> None:
    task, _ = make(FAN)
    assert told(task, window(hours=3)).method == "model"
    second = task(window(hours=4))
    assert second is not None
    assert second.messages == ()
    rows = ROWS.copy()
    rows[0] = np.nan
    third = task(window(rows, hours=5))
    assert third is not None
    assert third.body is None
    (score,) = third.messages
    assert isinstance(score, ScoreBody)
    assert score.made_ts == rfc3339(T0 + 3 * 3600)
    # What came is the last two rows of the windows, 5 and 5; the model said 0, and the last value was 5.
    one = score.channels["level"]
    assert (one.n, one.mae, one.naive_mae) == (2, 5, 0)


def test_a_window_with_holes_and_nothing_to_tell_is_nothing() -> None:
    task, model = make(FAN)
    rows = ROWS.copy()
    rows[2, 1] = np.nan
    assert task(window(rows)) is None
    assert model.asked == []


def test_the_coverage_that_is_configured_is_that_of_the_interval() -> None:
    task, _ = make(FAN, ForecastConfig(coverage=0.8))
    interval = told(task, window()).interval
    assert interval is not None
    assert interval.coverage == 0.8
    assert interval.low == pytest.approx([-1, -2], abs=1e-5)


def test_a_season_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Rejected, match=r"`forecast\.season_s` does not fit the model 'series': a season of 24 rows"):
        make(FAN, ForecastConfig(season_s=86_400.0))


def test_an_output_that_is_no_number_in_its_unit_is_rejected() -> None:
    task, _ = make([[[0, 0, 3e38]], [[0, 0, 0]]], normalise=Normalise(scale=(1e308,)))
    with pytest.raises(Rejected, match="in the unit of its channels"):
        task(window())


def test_a_real_model_takes_the_calendar_as_its_second_input(tmp_path: Path) -> None:
    """Forecast the hour itself: the last columns of the covariates, through ONNX Runtime."""
    require(importlib.util.find_spec("onnxruntime") is not None, "ONNX Runtime")
    how = WindowInput(
        channels=("level",),
        length=4,
        step_s=3600.0,
        normalise=Normalise(level="last", scale=(2.0,)),
        covariates=Covariates(calendar=(Calendar(part="hour_of_day", encoding="linear"),)),
    )
    nodes = [
        helper.make_node("Slice", ["known", "first", "last", "axis"], ["ahead"]),
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean", "nothing"], ["none"]),
        helper.make_node("Add", ["ahead", "none"], ["out"]),
    ]
    numbers = {"first": [4], "last": [6], "axis": [1]}
    constants = [numpy_helper.from_array(np.array(value, np.int64), key) for key, value in numbers.items()]
    constants.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    given = [helper.make_tensor_value_info("window", TensorProto.FLOAT, (1, 4, 1))]
    given.append(helper.make_tensor_value_info("known", TensorProto.FLOAT, (1, 6, 1)))
    made = [helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 2, 1))]
    graph = helper.make_graph(nodes, "clock", given, made, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    manifest = Manifest(
        schema="lisiere.model/1",
        name="clock",
        version="1.0.0",
        inputs=(TensorSpec(name="window", shape=(1, 4, 1)), TensorSpec(name="known", shape=(1, 6, 1))),
        outputs=(TensorSpec(name="out", shape=(1, 2, 1)),),
        input=how,
        task=Forecasting(horizon=2, quantiles=(0.5,), channel="level"),
        files={},
        onnx="m.onnx",
    )
    write_manifest(manifest, tmp_path / "model.yaml")
    package = open_package(tmp_path)
    opened = open_model(package, "onnx")
    body = told(open_task(package, opened.model, ManualClock()), window(ROWS[:, :1], hours=22))
    opened.model.close()
    # 23 h and midnight: 0.5 and -0.5 of a linear hour, times 2, above the last reading, which is 5.
    assert body.quantiles == {"0.5": [6.0, 4.0]}
