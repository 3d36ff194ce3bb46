"""Alarms through whole pipelines: the built-in detector, and a model, from a CSV file to messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.clock import ManualClock, rfc3339
from lisiere.config import Config, Importance, parse_config
from lisiere.errors import ConfigError
from lisiere.health import PipelineHealth
from lisiere.pipeline import check_models, open_pipeline
from lisiere.timeline import Timeline
from lisiere.values import MessageKind
from support import tiny

T0 = 1_767_225_600.0


class Kept:
    """What a pipeline told, in place of the spool."""

    def __init__(self) -> None:
        self.told: list[tuple[MessageKind, Importance, dict[str, Any]]] = []

    def append(
        self,
        pipeline: str,  # noqa: ARG002
        body: bytes,
        timeout: float | None = None,  # noqa: ARG002
        importance: Importance = "result",
        ttl_s: float | None = None,  # noqa: ARG002
        kind: MessageKind = "result",
    ) -> None:
        self.told.append((kind, importance, json.loads(body)))


def write(file: Path, rows: dict[str, list[float]], step_s: float) -> None:
    count = len(next(iter(rows.values())))
    cells = [[rfc3339(T0 + at * step_s), *(f"{column[at]:g}" for column in rows.values())] for at in range(count)]
    file.write_text("\n".join(",".join(line) for line in [["time", *rows], *cells]) + "\n")


def configured(folder: Path, **engine: Any) -> Config:
    pipeline = {"name": "room", "source": {"type": "csv", "path": "room.csv"}, **engine}
    return parse_config({"device": "d", "pipelines": [pipeline]}, folder)


def run(config: Config) -> tuple[Kept, PipelineHealth]:
    clock, kept, health = ManualClock(T0 + 1e6), Kept(), PipelineHealth("room")
    pipeline = open_pipeline(config.pipelines[0], "$.pipelines[0]", kept, clock, Timeline(clock), health)
    pipeline.read()
    pipeline.end()
    pipeline.work()
    pipeline.close()
    return kept, health


def test_the_detector_watches_two_channels_and_tells_its_alarm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    heat, flow = rng.normal(20, 1, 900), rng.normal(5, 0.2, 900)
    heat[700:760] += 12
    heat[400], flow[400] = np.nan, np.nan
    write(tmp_path / "room.csv", {"heat": heat.tolist(), "flow": flow.tolist()}, 1.0)
    detector = {"channels": ["heat", "flow"], "step_s": 1}
    kept, health = run(configured(tmp_path, detector=detector, alarm={"rate": 0.0005}))
    results = [body for kind, _, body in kept.told if kind == "result"]
    events = [(importance, body) for kind, importance, body in kept.told if kind == "event"]
    assert len(results) == 900
    assert results[0]["model"]["name"] == "builtin"
    assert results[400]["result"]["state"] == "no_data"
    assert results[-1]["result"]["state"] == "normal"
    states = [result["result"]["state"] for result in results]
    assert states[702:760].count("anomalous") > 50
    assert events[-1][0] == "alarm"
    during = [body["event"] for _, body in events if body["event"]["since"] >= rfc3339(T0 + 699)]
    assert during[0]["phase"] == "new"
    assert during[0]["since"] <= rfc3339(T0 + 703)
    assert during[-1]["phase"] == "end"
    assert health.backend == "builtin"


def test_a_model_has_alarms_as_configured(tmp_path: Path) -> None:
    """The tiny model's score is a mean of the window's squares; its own threshold is 1."""
    tiny.detector(tmp_path / "model")
    levels = [0.1] * 40 + [5.0] * 40 + [0.1] * 40
    write(tmp_path / "room.csv", {"vibration": levels}, 0.1)
    kept, _ = run(configured(tmp_path, model="model", backend="onnx", alarm={"clear_after": 2}))
    phases = [body["event"]["phase"] for kind, _, body in kept.told if kind == "event"]
    assert phases[0] == "new"
    assert phases[-1] == "end"
    plain, _ = run(configured(tmp_path, model="model", backend="onnx"))
    assert [kind for kind, _, _ in plain.told if kind == "event"] == []


@pytest.mark.parametrize(
    ("alarm", "path"), [({"rate": 0.01}, ""), ({"false_alarms_per_day": 90_000}, ".false_alarms_per_day")]
)
def test_an_alarm_that_does_not_fit_the_model_is_refused_before_anything_starts(
    tmp_path: Path, alarm: dict[str, Any], path: str
) -> None:
    (tiny.detector if path else tiny.forecaster)(tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        check_models(configured(tmp_path, model="model", alarm=alarm))
    assert caught.value.path == f"$.pipelines[0].alarm{path}"
