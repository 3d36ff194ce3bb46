"""Windows in a pipeline: silence that the clock tells, what is left over at the end, and settings that do not fit."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lisiere.backends import open_model
from lisiere.clock import ManualClock
from lisiere.config import Importance, PipelineConfig, Source
from lisiere.errors import ConfigError
from lisiere.health import PipelineHealth
from lisiere.models import open_package
from lisiere.pipeline import Pipeline, check_pairing, model_engine
from lisiere.settings.sensors import CsvSource, SocketSource
from lisiere.settings.sources import ImagesSource
from lisiere.settings.window import WindowConfig
from lisiere.timeline import Timeline
from lisiere.values import MessageKind, Reading
from support import tiny

SOCKET = SocketSource(listen="tcp:127.0.0.1:0")


class Kept:
    """A sink that keeps what it is given: `two` is set with the second result, `enough` with a third."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self.two, self.enough = threading.Event(), threading.Event()

    def append(
        self,
        pipeline: str,  # noqa: ARG002
        body: bytes,
        timeout: float | None = None,  # noqa: ARG002
        importance: Importance = "result",  # noqa: ARG002
        ttl_s: float | None = None,  # noqa: ARG002
        kind: MessageKind = "result",  # noqa: ARG002
    ) -> None:
        self.results.append(json.loads(body))
        if len(self.results) >= 2:
            (self.two if len(self.results) == 2 else self.enough).set()


class Falling:
    """A sensor that falls silent for a while, by the clock, and is heard again once that is told."""

    def __init__(self, clock: ManualClock, kept: Kept, silent_s: float) -> None:
        self._clock, self._kept, self._silent_s = clock, kept, silent_s
        self.told = False

    def items(self, _stop: threading.Event) -> Iterator[Reading]:
        for at in range(8):
            yield Reading(1.7e9 + at / 10, (0.1,), "socket")
        self._kept.two.wait(10)
        self._clock.advance(self._silent_s)
        self.told = self._kept.enough.wait(10)
        for at in range(8):
            yield Reading(1.7e9 + self._silent_s + at / 10, (0.1,), "socket")


def pipeline_of(folder: Path, source: Source, items: Any, sink: Kept, clock: ManualClock, **window: Any) -> Pipeline:
    package = open_package(tiny.detector(folder / "hum"))
    config = PipelineConfig(name="hum", source=source, model=str(package.path), window=WindowConfig(**window))
    engine = model_engine(package, open_model(package, "onnx"), clock)
    return Pipeline(config, items, engine, sink, Timeline(clock), PipelineHealth("hum"))


def run(pipeline: Pipeline) -> None:
    def read() -> None:
        pipeline.read()
        pipeline.end()

    reader = threading.Thread(target=read)
    reader.start()
    pipeline.work()
    reader.join(10)
    pipeline.close()


def test_a_sensor_that_falls_silent_is_told_while_it_is(tmp_path: Path) -> None:
    clock, kept = ManualClock(1.7e9), Kept()
    source = Falling(clock, kept, 31.6)
    run(pipeline_of(tmp_path, SOCKET, source, kept, clock))
    assert source.told
    assert [one["result"]["state"] for one in kept.results] == ["normal"] * 2 + ["no_data"] + ["normal"] * 2
    silent = kept.results[2]
    assert silent["input"]["faults"] == ["gap"]
    assert silent["window"]["coverage"] == 0
    assert silent["result"]["score"] is None


def test_a_recording_is_never_silent(tmp_path: Path) -> None:
    clock, kept = ManualClock(1.7e9), Kept()
    pipeline = pipeline_of(tmp_path, CsvSource(path="x"), Falling(clock, kept, 0.0), kept, clock)
    clock.advance(1e9)
    assert pipeline._silence() == ()
    pipeline.close()


def test_what_is_complete_at_the_end_is_told_and_the_rest_counted(tmp_path: Path) -> None:
    clock, kept = ManualClock(1.7e9), Kept()
    kept.two.set()
    kept.enough.set()
    pipeline = pipeline_of(tmp_path, SOCKET, Falling(clock, kept, 1.0), kept, clock, lateness_s=60.0)
    run(pipeline)
    assert [one["window"]["coverage"] for one in kept.results] == [1, 1, 0.5, 1]
    assert pipeline.health.snapshot()[2]["window_unfinished"] == 2


@pytest.mark.parametrize(
    ("source", "window", "message"),
    [
        (SOCKET, WindowConfig(step_s=1.0), r"^\$\.p\[0\]\.window\.step_s: It is 1, but the model takes .* 0\.1\."),
        (SOCKET, WindowConfig(channels=("x",)), r"^\$\.p\[0\]\.window\.channels: It is x, but .* is vibration\."),
        (ImagesSource(path="x"), WindowConfig(), r"^\$\.p\[0\]\.window: The model 'tiny' takes frames"),
    ],
)
def test_a_window_that_does_not_fit_the_model_is_refused(
    source: Source, window: WindowConfig, message: str, tmp_path: Path
) -> None:
    package = tiny.classifier(tmp_path) if isinstance(source, ImagesSource) else tiny.detector(tmp_path)
    config = PipelineConfig(name="dock", source=source, model="m", window=window)
    with pytest.raises(ConfigError, match=message):
        check_pairing(config, open_package(package).manifest, "$.p[0].source")
