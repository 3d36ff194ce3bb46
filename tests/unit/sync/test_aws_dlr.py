"""The message of AWS's sample, key by key as its subscribers know it."""

from __future__ import annotations

import json
from datetime import datetime

import jsonschema

from lisiere.schema import json_schema
from lisiere.sync.aws_dlr import aws_dlr_message


def test_the_message_is_the_samples() -> None:
    top = [{"label": f"l{at}", "score": score} for at, score in enumerate((0.9, 0.5, 0.3, 0.29, 0.1))]
    body = {"ts": "2021-06-03T04:34:48.645Z", "result": {"label": "l0", "score": 0.9, "top": top}}
    message = json.loads(aws_dlr_message(json.dumps(body).encode()))
    assert list(message) == ["timestamp", "inference-type", "inference-description", "inference-results"]
    assert message["timestamp"] == "2021-06-03 04:34:48.645000"
    datetime.strptime(message["timestamp"], "%Y-%m-%d %H:%M:%S.%f")
    assert message["inference-type"] == "image-classification"
    assert message["inference-description"] == "Top 5 predictions with score 0.3 or above "
    assert message["inference-results"] == [
        {"Label": "l0", "Score": "0.9"},
        {"Label": "l1", "Score": "0.5"},
        {"Label": "l2", "Score": "0.3"},
    ]
    jsonschema.validate(message, json_schema("aws-dlr"))


def test_nothing_above_the_threshold_is_an_empty_list() -> None:
    body = {"ts": "2021-06-03T04:34:48.645Z", "result": {"top": [{"label": "x", "score": 0.1}]}}
    assert json.loads(aws_dlr_message(json.dumps(body).encode()))["inference-results"] == []
