"""The configuration of a nucleus: strings for numbers, nulls, AWS's sample keys, and what is wrong with them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from lisiere.config import Config
from lisiere.errors import ConfigError
from lisiere.greengrass.configuration import component_config, own_part
from lisiere.settings.links import GreengrassConfig, MqttConfig
from lisiere.settings.sources import CameraSource, ImagesSource

PIPELINE = {"name": "p", "source": {"type": "images", "path": "photos"}, "model": "model"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text("schema: lisiere.model/1\n")
    return tmp_path


def config(document: dict[str, Any], folder: Path, thing: str = "thing-1") -> Config:
    return component_config(own_part(document), thing, folder)


def sample(**changes: Any) -> dict[str, Any]:
    keys = {"ImageDirectory": "photos", "ImageName": "cat.jpeg", "ModelResourceKey": {platform.machine(): "model"}}
    return {**keys, "InferenceInterval": "3600", "PublishResultsOnTopic": "ml/dlr/x", **changes}


def test_what_is_not_said_comes_from_the_nucleus(folder: Path) -> None:
    found = config({"pipelines": [PIPELINE], "accessControl": {"aws.greengrass.ipc.mqttproxy": {}}}, folder)
    assert found.device == "thing-1"
    assert found.transport == GreengrassConfig()
    assert found.spool.path == str(folder / "spool")
    assert found.pipelines[0].model == str(folder / "model")


def test_what_is_said_stands(folder: Path) -> None:
    found = config({"pipelines": [PIPELINE], "device": "mine", "transport": {"type": "mqtt", "host": "h"}}, folder)
    assert found.device == "mine"
    assert isinstance(found.transport, MqttConfig)


def test_the_strings_of_nucleus_lite_are_what_they_say(folder: Path) -> None:
    source = {"type": "images", "path": "photos", "fps": "0.2", "loop": "true"}
    document = {
        "pipelines": [{**PIPELINE, "source": source, "threads": "2", "queue": {"policy": "null", "size": "3"}}],
        "device": "~",
        "transport": {"type": "greengrass", "window": "4", "publish_locally": "True", "max_bytes": "null"},
        "spool": {"max_rows": "1000", "linger_ms": "0"},
        "stop_drain_s": "1.5",
        "topic_prefix": None,
    }
    found = config(document, folder)
    image = found.pipelines[0].source
    assert isinstance(image, ImagesSource)
    assert (image.fps, image.loop) == (0.2, True)
    assert (found.pipelines[0].threads, found.pipelines[0].queue.size) == (2, 3)
    assert found.pipelines[0].queue.policy is None
    assert found.transport == GreengrassConfig(window=4, publish_locally=True)
    assert (found.spool.max_rows, found.spool.linger_ms, found.stop_drain_s) == (1000, 0.0, 1.5)
    assert (found.device, found.topic_prefix) == ("thing-1", "lisiere")


@pytest.mark.parametrize("document", [{}, {"accessControl": {}}, {"pipelines": "null"}])
def test_none_at_all_is_told(folder: Path, document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no configuration. `pipelines` must stand"):
        config(document, folder)


@pytest.mark.parametrize(
    ("thing", "why"), [("_pi", "cannot be a level of a topic"), ("a" * 129, "level"), ("", "Neither `device` nor")]
)
def test_a_thing_whose_name_is_no_level_is_told(folder: Path, thing: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        config({"pipelines": [PIPELINE]}, folder, thing)
    assert raised.value.path == "$.device"
    assert config({"pipelines": [PIPELINE], "device": "pi"}, folder, thing).device == "pi"


def test_unknown_keys_and_wrong_values_name_their_place(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Pipelines"):
        config({"Pipelines": [PIPELINE], "pipelines": [PIPELINE]}, folder)
    with pytest.raises(ConfigError) as raised:
        config({"pipelines": [{**PIPELINE, "threads": "many"}]}, folder)
    assert raised.value.path == "$.pipelines[0].threads"


def test_the_samples_keys_make_a_pipeline_of_one_image(folder: Path) -> None:
    (pipeline,) = config(sample(), folder).pipelines
    assert pipeline.source == ImagesSource(path=str(folder / "photos/cat.jpeg"), fps=1 / 3600, loop=True)
    assert (pipeline.output, pipeline.publish_topic) == ("aws-dlr", "ml/dlr/x")
    assert pipeline.model == str(folder / "model")


def test_the_samples_keys_make_a_pipeline_of_a_camera(folder: Path) -> None:
    keys = {"UseCamera": "true", "InferenceInterval": 2, "ModelResourceKey": {platform.machine(): "model"}}
    (pipeline,) = config(keys, folder).pipelines
    assert pipeline.source == CameraSource(device="/dev/video0", fps=0.5)
    assert pipeline.publish_topic == "ml/dlr/image-classification"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"InferenceInterval": "0"}, "$.InferenceInterval"),
        ({"InferenceInterval": "often"}, "$.InferenceInterval"),
        ({"InferenceInterval": []}, "$.InferenceInterval"),
        ({"UseCamera": "maybe"}, "$.UseCamera"),
        ({"ImageDirectory": None}, "$.ImageDirectory"),
        ({"ImageName": 7}, "$.ImageName"),
        ({"ModelResourceKey": {"vax": "model"}}, "$.ModelResourceKey"),
        ({"ModelResourceKey": "model"}, "$.ModelResourceKey"),
    ],
)
def test_sample_keys_that_are_wrong_name_themselves(folder: Path, change: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(sample(**change), folder)
    assert raised.value.path == path


def test_a_sample_model_that_is_not_there_is_told_as_such(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"The sample's keys make a pipeline.*nowhere"):
        config(sample(ModelResourceKey={platform.machine(): "nowhere"}), folder)


def test_sample_keys_beside_pipelines_are_an_error_that_names_both(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"`pipelines` and ImageName, UseCamera .* cannot stand together"):
        config({"pipelines": [PIPELINE], "ImageName": "cat.jpeg", "UseCamera": "false"}, folder)
