"""Decision: what a model cannot give is refused when the configuration is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lisiere.config import Config, parse_config
from lisiere.errors import ConfigError
from lisiere.models import open_package
from lisiere.models.manifest import YoloHead
from lisiere.pipeline import check_models
from lisiere.settings.decision import DecisionConfig
from lisiere.tasks import check_decision
from support import REPOSITORY, tiny
from support.detectors import detector

AT = "$.pipelines[0].decision"
DIGITS = REPOSITORY / "models" / "digits"


def config(model: Path, decision: object, source: object = None, **more: object) -> Config:
    pipeline = {"name": "p", "source": source or {"type": "images", "path": "."}, "model": str(model), **more}
    return parse_config({"device": "d", "pipelines": [{**pipeline, "decision": decision}]}, Path.cwd())


def test_a_calibrated_model_has_sets_as_far_as_its_calibration_reaches() -> None:
    check_models(config(DIGITS, {"coverage": "0.99", "threshold": 0.5, "top": 2}))
    with pytest.raises(ConfigError, match="takes at least 999 calibration images, and the model has 113") as caught:
        check_models(config(DIGITS, {"coverage": 0.999}))
    assert caught.value.path == f"{AT}.coverage"


def test_a_model_without_a_calibration_has_no_sets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lisiere models calibrate"):
        check_models(config(tiny.classifier(tmp_path / "tiny"), {"coverage": 0.9}))


def test_a_series_has_nothing_to_decide(tmp_path: Path) -> None:
    tide = tiny.forecaster(tmp_path / "tide")
    with pytest.raises(ConfigError, match="is for a source of frames") as caught:
        config(tide, {"threshold": 0.9}, {"type": "csv", "path": "x.csv"})
    assert caught.value.path == AT
    with pytest.raises(ConfigError, match="is for classification and detection"):
        check_decision(open_package(tide), DecisionConfig(), AT)


def test_a_detector_has_no_sets(tmp_path: Path) -> None:
    head = YoloHead(output="rows", layout="rows", objectness=True)
    package = open_package(detector(tmp_path, head, {"rows": np.zeros((1, 2, 8), np.float32)}))
    check_decision(package, DecisionConfig(threshold=0.5, top=3), AT)
    with pytest.raises(ConfigError, match="for classification"):
        check_decision(package, DecisionConfig(coverage=0.5), AT)


def test_events_are_of_the_model_s_labels() -> None:
    check_models(config(DIGITS, {"events": {"labels": ["7"]}}))
    with pytest.raises(ConfigError, match="'ten' is none of the model's labels") as caught:
        check_models(config(DIGITS, {"events": {"labels": ["7", "ten"]}}))
    assert caught.value.path == f"{AT}.events.labels"


def test_an_event_must_not_end_where_it_begins() -> None:
    with pytest.raises(ConfigError, match="an event would end where it begins") as caught:
        config(DIGITS, {"events": {"enter": 0.4, "leave": 0.5}})
    assert caught.value.path == f"{AT}.events.leave"
    config(DIGITS, {"events": {"enter": 0.5, "leave": 0.5}})


@pytest.mark.parametrize("trigger", [{"type": "motion", "longest_s": 30}, {"type": "interval", "every_s": 30}])
def test_an_event_outlasts_the_waiting_of_its_trigger(trigger: object) -> None:
    with pytest.raises(ConfigError, match="may wait 30 s for a frame, and an event ends after 10 s") as caught:
        config(DIGITS, {"events": {}}, trigger=trigger)
    assert caught.value.path == f"{AT}.events.gap_s"
    config(DIGITS, {"events": {"gap_s": 31}}, trigger=trigger)
    config(DIGITS, {"threshold": 0.5}, trigger=trigger)


@pytest.mark.parametrize("decision", [{"coverage": 0}, {"coverage": 1}, {"threshold": 1.1}, {"top": 0}, {"other": 1}])
def test_settings_that_are_none_are_refused(decision: object) -> None:
    with pytest.raises(ConfigError):
        config(DIGITS, decision)
