"""Settings of input health and triggers: what is refused, and where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisiere.config import parse_config
from lisiere.errors import ConfigError
from lisiere.settings.checks import CommandTrigger, EveryTrigger, MotionTrigger
from support import tiny


def parse(folder: Path, source: dict[str, Any], **changes: Any) -> Any:
    pipeline = {"name": "dock", "source": source, "model": str(folder / "m"), **changes}
    return parse_config({"device": "pi", "pipelines": [pipeline]}, folder).pipelines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "m")
    return tmp_path


CAMERA = {"type": "camera", "device": "/dev/video0"}


def test_thresholds_and_triggers_are_read(folder: Path) -> None:
    checks = {"policy": "withhold", "frozen_s": "5", "ignore": ["moved", "dark"]}
    found = parse(folder, CAMERA, checks=checks, trigger={"type": "interval", "every_s": 10})
    assert found.checks.policy == "withhold"
    assert found.checks.frozen_s == 5
    assert found.checks.ignore == {"moved", "dark"}
    assert found.trigger == EveryTrigger(every_s=10)
    assert parse(folder, CAMERA, trigger={"type": "command"}).trigger == CommandTrigger()
    assert parse(folder, CAMERA, trigger={"type": "motion", "area": 0.1}).trigger == MotionTrigger(area=0.1)
    assert parse(folder, CAMERA).checks is parse(folder, CAMERA).trigger is None


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"checks": {"policy": "ignore"}}, "$.pipelines[0].checks.policy"),
        ({"checks": {"ignore": ["fogged"]}}, "$.pipelines[0].checks.ignore[0]"),
        ({"checks": {"frozen_s": 0}}, "$.pipelines[0].checks.frozen_s"),
        ({"checks": {"blurred_ratio": 1.5}}, "$.pipelines[0].checks.blurred_ratio"),
        ({"checks": {"frozen": 3}}, "$.pipelines[0].checks"),
        ({"trigger": {"type": "interval"}}, "$.pipelines[0].trigger"),
        ({"trigger": {"type": "interval", "every_s": -1}}, "$.pipelines[0].trigger.every_s"),
        ({"trigger": {"type": "noise"}}, "$.pipelines[0].trigger.type"),
        ({"trigger": {"type": "motion", "area": 0}}, "$.pipelines[0].trigger.area"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(folder: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(folder, CAMERA, **changes)
    assert caught.value.path.replace("[...]", "[0]") == path


@pytest.mark.parametrize("part", ["checks", "trigger"])
def test_readings_have_neither(folder: Path, part: str) -> None:
    (folder / "x.csv").write_text("time,a\n1,2\n")
    settings = {"checks": {}, "trigger": {"type": "command"}}
    with pytest.raises(ConfigError, match=f"`{part}` is for a source of frames") as caught:
        parse(folder, {"type": "csv", "path": "x.csv"}, **{part: settings[part]})
    assert caught.value.path == f"$.pipelines[0].{part}"
