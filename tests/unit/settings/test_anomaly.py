"""Settings of the detector and of alarms: what fits together, and where a message points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisiere.config import parse_config
from lisiere.errors import ConfigError
from lisiere.settings.anomaly import AlarmConfig

PIPELINE: dict[str, Any] = {
    "name": "room",
    "source": {"type": "csv", "path": "room.csv"},
    "detector": {"channels": ["value"], "step_s": 300},
}


def parse(tmp_path: Path, **changes: Any) -> Any:
    pipeline = {key: value for key, value in {**PIPELINE, **changes}.items() if value is not None}
    return parse_config({"device": "d", "pipelines": [pipeline]}, tmp_path).pipelines[0]


def test_a_pipeline_has_a_detector_in_place_of_a_model(tmp_path: Path) -> None:
    found = parse(tmp_path, alarm={"false_alarms_per_day": "0.5"})
    assert found.model is None
    assert found.detector.channels == ("value",)
    assert found.alarm.wanted_rate(300.0) == pytest.approx(0.5 / 288)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"model": "m"}, ".model", "either a `model` or a `detector`"),
        ({"detector": None}, ".model", "either a `model` or a `detector`"),
        ({"source": {"type": "images", "path": "."}}, ".detector", "gives frames"),
        ({"detector": {"channels": ["a", "a"], "step_s": 1}}, ".detector.channels", "named twice"),
        ({"detector": {"channels": [], "step_s": 1}}, ".detector.channels", "length"),
        ({"detector": {"channels": ["a"], "step_s": 0}}, ".detector.step_s", "> 0"),
        ({"channels": {"other": {"unit": "m"}}}, ".channels.other", "does not watch"),
        ({"window": {"max_gap": 3}}, ".window.max_gap", "each step by itself"),
        ({"output": "aws-dlr"}, ".output", "classifies nothing"),
        ({"decision": {"threshold": 0.5}}, ".decision", "source of frames"),
        ({"forecast": {}}, ".forecast", "forecasts nothing"),
        ({"backend": "onnx"}, ".backend", "detector is none"),
        ({"threads": 2}, ".threads", "detector is none"),
        ({"alarm": {"threshold": float("nan")}}, ".alarm.threshold", "is a number"),
        ({"alarm": {"threshold": float("inf")}}, ".alarm.threshold", "is a number"),
        ({"alarm": {"threshold": 3, "rate": 0.001}}, ".alarm", "threshold and rate"),
        ({"alarm": {"false_alarms_per_day": 100}}, ".alarm.false_alarms_per_day", "one in 25"),
        ({"alarm": {"hysteresis": 2}}, ".alarm.hysteresis", "<= 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(tmp_path, **changes)
    assert caught.value.path == f"$.pipelines[0]{path}"


def test_no_rate_is_wanted_unless_given() -> None:
    assert AlarmConfig().wanted_rate(1.0) is None
