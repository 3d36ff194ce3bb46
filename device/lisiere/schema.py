"""The JSON Schemas of everything that crosses the device's border, made from the structs that the code uses.

`docs/contract/` holds what this prints; a test keeps the two equal.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
from msgspec import Struct

from lisiere.config import Config
from lisiere.models import Manifest
from lisiere.sync.aws_dlr import AwsDlrMessage
from lisiere.sync.envelope import (
    AckCommand,
    BatchEnvelope,
    CommandMessage,
    EventEnvelope,
    GapEnvelope,
    HealthMessage,
    InferCommand,
    MetricsMessage,
    ReplyMessage,
    ResultEnvelope,
    ScoreEnvelope,
    StatusMessage,
)
from lisiere.values import AnomalyBody, ClassificationBody, DetectionBody, ForecastingBody

DOCUMENTS: dict[str, type[Struct]] = {
    "config": Config,
    "manifest": Manifest,
    "result": ResultEnvelope,
    "batch": BatchEnvelope,
    "event": EventEnvelope,
    "score": ScoreEnvelope,
    "gap": GapEnvelope,
    "status": StatusMessage,
    "health": HealthMessage,
    "metrics": MetricsMessage,
    "command": CommandMessage,
    "ack": AckCommand,
    "infer": InferCommand,
    "reply": ReplyMessage,
    "aws-dlr": AwsDlrMessage,
}
_BODIES: dict[str, type[Struct]] = {
    "classification": ClassificationBody,
    "detection": DetectionBody,
    "forecasting": ForecastingBody,
    "anomaly": AnomalyBody,
}


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one of `DOCUMENTS`."""
    document = DOCUMENTS[name]
    bodies = _BODIES if document is ResultEnvelope else {}
    refs, definitions = msgspec.json.schema_components([document, *bodies.values()], ref_template="#/$defs/{name}")
    schema = {**refs[0], "$defs": {key: _dedented(definition) for key, definition in definitions.items()}}
    if bodies:
        # Which body `result` holds is told by `task`, beside it.
        schema["allOf"] = [
            {"if": {"properties": {"task": {"const": task}}}, "then": {"properties": {"result": ref}}}
            for task, ref in zip(bodies, refs[1:], strict=True)
        ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"lisiere {name}", **schema}


def _dedented(definition: dict[str, Any]) -> dict[str, Any]:
    """Take the source's indentation out of a description; Python 3.13 does so by itself, older ones do not."""
    if "description" not in definition:
        return definition
    return {**definition, "description": inspect.cleandoc(definition["description"])}
