"""The component's configuration: what the nucleus holds for it, made into the one that every device has.

Nucleus lite gives the scalars of a YAML recipe as strings, so `"5"` and `"true"` are taken for what they say, and
`"null"` and `"~"` for absent. AWS's sample keys become one pipeline.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lisiere.config import Config, Level, parse_config
from lisiere.errors import ConfigError

_NULLS = (None, "null", "Null", "NULL", "~")
_SAMPLE_KEYS = frozenset(
    {"Accelerator", "ImageDirectory", "ImageName", "InferenceInterval", "ModelResourceKey"}
    | {"PublishResultsOnTopic", "UseCamera"}
)
_SAMPLE_INTERVAL_S = 3600.0  # the sample's own defaults
_SAMPLE_CAMERA = "/dev/video0"


def own_part(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration without what is the nucleus' (accessControl) and without what is null."""
    present = _present({key: value for key, value in document.items() if key != "accessControl"})
    assert isinstance(present, dict)  # noqa: S101 - a mapping stays one
    return present


def component_config(own: Mapping[str, Any], thing: str, base: Path) -> Config:
    """Validate the component's own part of the configuration.

    Args:
        own: what `own_part` returned.
        thing: the thing's name, which is the device's unless the configuration has one.
        base: the component's work folder, where relative paths start.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    if not own:
        raise ConfigError(
            "The component has no configuration. `pipelines` must stand in its recipe's DefaultConfiguration or be "
            "merged by a deployment."
        )
    document = dict(own)
    sample = sorted(_SAMPLE_KEYS & document.keys())
    if sample:
        if "pipelines" in document:
            raise ConfigError(
                f"`pipelines` and {', '.join(sample)} (keys of aws.greengrass.DLRImageClassification) cannot stand "
                "together. Have the deployment merge `pipelines: null`, or leave the sample's keys out."
            )
        document["pipelines"] = [_sample_pipeline({key: document.pop(key) for key in sample})]
    if "device" not in document:
        document["device"] = _device(thing)
    document.setdefault("transport", {"type": "greengrass"})
    try:
        return parse_config(document, base)
    except ConfigError as error:
        if not sample or not error.path.startswith("$.pipelines"):
            raise
        raise ConfigError(f"The sample's keys make a pipeline that cannot be: {error}") from error


def _device(thing: str) -> str:
    try:
        return str(msgspec.convert(thing, Level))
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"The thing's name {thing!r} cannot be a level of a topic: that starts with a letter or digit and goes on "
            "with letters, digits and _.:- up to 128. Set `device` in the component's configuration."
            if thing
            else "Neither `device` nor AWS_IOT_THING_NAME says what the device is called.",
            "$.device",
        ) from error


def _sample_pipeline(sample: dict[str, Any]) -> dict[str, Any]:
    """Make a pipeline of the sample's keys. Source: AWS's developer guide, DLR image classification 2.1."""
    interval = _SAMPLE_INTERVAL_S
    if "InferenceInterval" in sample:
        try:
            interval = float(sample["InferenceInterval"])
        except (TypeError, ValueError):
            interval = 0.0
        if not 0.001 <= interval <= 1e6:
            raise ConfigError("It counts seconds, more than 0.", "$.InferenceInterval")
    camera = str(sample.get("UseCamera", "false")).lower()
    if camera not in ("true", "false"):
        raise ConfigError('It is "true" or "false".', "$.UseCamera")
    if camera == "true":
        source: dict[str, Any] = {"type": "camera", "device": _SAMPLE_CAMERA, "fps": 1 / interval}
    elif "ImageDirectory" not in sample:
        raise ConfigError("It names the folder of images; without a camera it is needed.", "$.ImageDirectory")
    else:
        path = Path(_text(sample, "ImageDirectory")) / _text(sample, "ImageName")
        source = {"type": "images", "path": str(path), "fps": 1 / interval, "loop": True}
    pipeline = {"name": "image-classification", "source": source, "model": _sample_model(sample), "output": "aws-dlr"}
    if topic := _text(sample, "PublishResultsOnTopic"):
        pipeline["publish_topic"] = topic
    return pipeline


def _sample_model(sample: dict[str, Any]) -> str:
    """The folder of the model for this machine, which ModelResourceKey names by architecture."""
    models, machine = sample.get("ModelResourceKey"), platform.machine()
    model = models.get(machine) if isinstance(models, dict) else None
    if not isinstance(model, str) or not re.search(r"\S", model):
        raise ConfigError(
            f"ModelResourceKey.{machine} must name the folder of a model for this machine, with its manifest; "
            "`lisiere models seal` makes one for an artifact of SageMaker Neo.",
            "$.ModelResourceKey",
        )
    return model


def _text(sample: dict[str, Any], key: str) -> str:
    value = sample.get(key, "")
    if not isinstance(value, str):
        raise ConfigError("It is a text.", f"$.{key}")
    return value


def _present(value: Any) -> Any:
    """Leave out keys whose value is null, as it is or as nucleus lite writes it."""
    if isinstance(value, dict):
        return {
            key: _present(inner)
            for key, inner in value.items()
            if not (inner is None or (isinstance(inner, str) and inner in _NULLS))
        }
    if isinstance(value, list):
        return [_present(inner) for inner in value]
    return value
