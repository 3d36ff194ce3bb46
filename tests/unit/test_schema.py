"""Schemas: whole, versioned, and telling the four kinds of result apart."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from lisiere.schema import DOCUMENTS, json_schema


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_is_a_valid_schema(name: str) -> None:
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == f"lisiere {name}"


@pytest.mark.parametrize("name", ["result", "gap", "status", "health", "metrics"])
def test_each_message_names_its_version(name: str) -> None:
    assert f"lisiere.{name}/1" in json.dumps(json_schema(name)["$defs"])


def result(task: str, body: dict[str, Any]) -> dict[str, Any]:
    model = dict.fromkeys(("name", "version", "digest", "backend", "backend_why", "target"), "x")
    stamps = {"ts": "x", "published_ts": "x", "ts_quality": "synced"}
    identity = {"schema": "lisiere.result/1", "id": "d:e:1", "device": "d", "epoch": "e", "seq": 1, "replay": False}
    latency = {"preprocess": 0.1, "infer": 0.1, "postprocess": 0.1}
    place = {"pipeline": "p", "source": "s", "task": task, "model": model, "latency_ms": latency}
    return {**identity, **stamps, **place, "result": body}


def test_a_body_must_be_that_of_its_task() -> None:
    anomaly = {"state": "normal", "score": 0.1, "threshold": 1.0}
    schema = json_schema("result")
    jsonschema.validate(result("anomaly", anomaly), schema)
    jsonschema.validate(result("anomaly", {**anomaly, "state": "no_data", "score": None}), schema)
    for task in ("classification", "detection", "forecasting"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(result(task, anomaly), schema)


def test_descriptions_carry_no_indentation() -> None:
    assert "\n    " not in json_schema("config")["$defs"]["Config"]["description"].partition("Attributes:")[0]
    assert "\nAttributes:" in json_schema("config")["$defs"]["Config"]["description"]
