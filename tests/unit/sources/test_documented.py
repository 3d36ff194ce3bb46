"""Every example of docs/sensors.md is a configuration, and there is one of each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lisiere.config import parse_config
from lisiere.settings.sensors import SensorSource
from support import REPOSITORY

EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "docs/sensors.md").read_text(encoding="utf-8"), re.S | re.M)


def source(example: str, folder: Path) -> SensorSource:
    (folder / "model").mkdir()
    (folder / "model" / "model.yaml").write_text("schema: lisiere.model/1\n")
    pipeline = {"name": "pump", "model": "model", **yaml.safe_load(example)}
    made = parse_config({"device": "d", "pipelines": [pipeline]}, folder).pipelines[0].source
    assert isinstance(made, SensorSource)
    return made


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall("type: (.*)", text)[0])
def test_the_example_is_a_configuration(example: str, tmp_path: Path) -> None:
    assert source(example, tmp_path)


def test_there_is_an_example_of_each_kind() -> None:
    kinds = {kind.__struct_config__.tag for kind in SensorSource.__args__}
    assert {yaml.safe_load(example)["source"]["type"] for example in EXAMPLES} == kinds
