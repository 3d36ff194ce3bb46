"""Every example of docs/sensors.md is a configuration, and there is one of each kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lisiere.config import PipelineConfig, parse_config
from lisiere.settings.sensors import SensorSource
from support import REPOSITORY

EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", (REPOSITORY / "docs/sensors.md").read_text(encoding="utf-8"), re.S | re.M)


SOURCE = {"source": {"type": "csv", "path": "x"}}


def pipeline(example: str, folder: Path) -> PipelineConfig:
    (folder / "model").mkdir()
    (folder / "model" / "model.yaml").write_text("schema: lisiere.model/1\n")
    document = yaml.safe_load(example)
    made = {"name": "pump", **SOURCE, **document} | ({} if "detector" in document else {"model": "model"})
    return parse_config({"device": "d", "pipelines": [made]}, folder).pipelines[0]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: "-".join(re.findall(r"\w+", text)[:3]))
def test_the_example_is_a_configuration(example: str, tmp_path: Path) -> None:
    assert isinstance(pipeline(example, tmp_path).source, SensorSource)


def test_there_is_an_example_of_each_kind_and_of_what_a_channel_can_be(tmp_path: Path) -> None:
    documents = [yaml.safe_load(example) for example in EXAMPLES]
    kinds = {kind.__struct_config__.tag for kind in SensorSource.__args__}
    assert {document["source"]["type"] for document in documents if "source" in document} == kinds
    assert [document for document in documents if "channels" in document]
