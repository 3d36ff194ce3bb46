"""Reading: bodies come typed by their task, those of earlier devices too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lisiere.errors import Rejected
from lisiere.subscriber import Classification, Detection, Result
from lisiere.subscriber.reading import read
from lisiere.values import DetectedObject
from support.wire import Envelopes


def result(task: str, body: Any) -> Result:
    message = json.loads(Envelopes("sim").result(1))
    (found,) = read("result", "sim", json.dumps({**message, "task": task, "result": body}).encode())
    assert isinstance(found, Result)
    return found


def test_objects_come_typed() -> None:
    body = {"objects": [{"label": "cat", "score": 0.5, "box": [1, 2.5, 3, 4]}], "width": 64, "height": 48}
    cat = DetectedObject(label="cat", score=0.5, box=(1.0, 2.5, 3.0, 4.0))
    assert result("detection", body).result == Detection(objects=[cat], width=64, height=48)


def test_a_result_from_before_there_were_thresholds_is_decided() -> None:
    found = result("classification", {"label": "7", "score": 0.9, "top": []}).result
    assert isinstance(found, Classification)
    assert found.decided


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, "4"], None])
def test_a_box_that_is_none_is_refused(box: Any) -> None:
    body = {"objects": [{"label": "cat", "score": 0.5, "box": box}], "width": 64, "height": 48}
    with pytest.raises(Rejected, match="no result message"):
        result("detection", body)
