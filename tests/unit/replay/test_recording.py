"""Replay: recorded input through the very pipeline, the same bytes each time, and nothing but what is asked for."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lisiere.cli import main
from lisiere.clock import ManualClock
from lisiere.config import Config, PipelineConfig, Source
from lisiere.errors import ConfigError
from lisiere.replay.commands import _Progress
from lisiere.replay.recording import choose, recorded
from lisiere.settings.sensors import CsvSource, JsonlSource, MqttSource, MqttTopic, SocketSource
from lisiere.settings.sources import CameraSource, ImagesSource, VideoSource
from lisiere.sync.envelope import ResultEnvelope
from support import films, tiny

T0 = 1_700_000_000


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`main` sets logging up, which belongs to the process: put it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def configuration(folder: Path, *pipelines: dict[str, Any]) -> Path:
    file = folder / "device.yaml"
    file.write_text(json.dumps({"device": "mill", "pipelines": [{"backend": "onnx", **one} for one in pipelines]}))
    return file


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A device with a detector and a forecaster behind sockets."""
    source = {"type": "socket", "listen": "tcp:127.0.0.1:0"}
    return configuration(
        tmp_path,
        {"name": "hum", "source": source, "model": str(tiny.detector(tmp_path / "hum"))},
        {"name": "tide", "source": source, "model": str(tiny.forecaster(tmp_path / "tide"))},
    )


def recording(folder: Path, channel: str = "vibration", step: float = 0.1, rows: int = 3000) -> Path:
    """A CSV file with gaps, text and a row that comes twice."""
    lines = [f"time,{channel}"]
    for at in range(rows):
        if at % 500 > 20:
            value = "broken" if at == 77 else f"{math.sin(at / 9):.4f}"
            lines.append(f"{T0 + at * step:.3f},{value}")
    file = folder / "recording.csv"
    file.write_text("\n".join([*lines, lines[-1]]) + "\n")
    return file


def run(*arguments: str | Path) -> int:
    return main(["replay", *map(str, arguments)])


def results(file: Path) -> list[ResultEnvelope]:
    return [msgspec.json.decode(line, type=ResultEnvelope) for line in file.read_bytes().splitlines()]


@pytest.mark.parametrize("name", ["hum", "tide"])
def test_each_run_gives_the_same_bytes_in_one_thread(
    name: str, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise AssertionError("A replay needs no second thread.")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    channel, step = ("vibration", 0.1) if name == "hum" else ("level", 1.0)
    file = recording(tmp_path, channel, step, 200)
    before = set(tmp_path.iterdir())
    for output in ("a.jsonl", "b.jsonl"):
        assert run(file, "--config", series, "--pipeline", name, "--output", tmp_path / output) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert set(tmp_path.iterdir()) - before == {tmp_path / "a.jsonl", tmp_path / "b.jsonl"}


def test_another_process_gives_the_same_bytes(series: Path, tmp_path: Path) -> None:
    """Nothing depends on the order of sets, which is another in each process."""
    file = recording(tmp_path)
    for seed in ("1", "2"):
        arguments = [file, "--config", series, "--pipeline", "hum", "--output", tmp_path / seed]
        subprocess.run(
            [sys.executable, "-m", "lisiere", "replay", *map(str, arguments)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() != b""


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_long_says_how_far_it_is_on_a_terminal_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    clock, stream = ManualClock(), Stream()
    monkeypatch.setattr("lisiere.replay.commands.SystemClock", lambda: clock)
    monkeypatch.setattr(sys, "stderr", stream)
    with _Progress() as progress:
        for at in range(3 * 64):
            clock.advance(0.02)
            progress(float(at))
            assert clock.monotonic() > 2 or not stream.getvalue()
    assert stream.getvalue().count("frames or windows, 50 a second, at") == (2 if terminal else 0)
    assert stream.getvalue().endswith("\r\x1b[K") == terminal


def test_results_are_envelopes_stamped_by_the_recording(series: Path, tmp_path: Path) -> None:
    assert run(recording(tmp_path), "--config", series, "--pipeline", "hum", "--output", tmp_path / "out") == 0
    found = results(tmp_path / "out")
    assert [one.seq for one in found] == list(range(1, len(found) + 1))
    for one in found:
        assert (one.id, one.device, one.epoch) == (f"mill:replay:{one.seq}", "mill", "replay")
        assert (one.pipeline, one.source, one.ts_quality) == ("hum", "csv", "unknown")
        assert isinstance(one.window, msgspec.Struct)
        assert one.ts == one.published_ts == one.window.end
        assert one.latency_ms == type(one.latency_ms)(preprocess=0.0, infer=0.0, postprocess=0.0)
    assert found[0].ts == "2023-11-14T22:13:22.400Z"
    silent = [one for one in found if one.result["state"] == "no_data"]
    assert silent
    assert all("gap" in one.input.faults for one in silent)


def test_what_was_counted_is_told(series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recording(tmp_path)
    assert run(file, "--config", series, "--pipeline", "hum", "--output", tmp_path / "out", "--json") == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["results"] == len(results(tmp_path / "out"))
    assert (counted["csv_not_a_number"], counted["reading_not_a_number"], counted["reading_duplicate"]) == (1, 1, 1)
    assert run(file, "--config", series, "--pipeline", "hum") == 0
    out, err = capsys.readouterr()
    assert out.encode() == (tmp_path / "out").read_bytes()
    assert f"{counted['read']} readings gave {counted['results']} results; csv_not_a_number 1" in err


def test_events_are_counted_beside_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"type": "csv", "path": "room.csv"}
    pipeline = {"name": "room", "source": source, "detector": {"channels": ["value"], "step_s": 60}}
    (tmp_path / "device.yaml").write_text(json.dumps({"device": "sim", "pipelines": [pipeline]}))
    values = [20 + at * 7 % 11 / 10 + (50 if 500 <= at < 510 else 0) for at in range(600)]
    rows = (f"{T0 + 60 * at},{value}\n" for at, value in enumerate(values))
    (tmp_path / "room.csv").write_text("time,value\n" + "".join(rows))
    assert run(tmp_path / "room.csv", "--config", tmp_path / "device.yaml") == 0
    out, err = capsys.readouterr()
    events = out.count('"schema":"lisiere.event/1"')
    assert events > 1
    assert f"600 readings gave 600 results, {events} events." in err


def test_lines_of_json_give_what_the_same_csv_gives(series: Path, tmp_path: Path) -> None:
    lines = [{"ts": T0 + at / 10, "vibration": at % 7 / 7} for at in range(200)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "r.csv").write_text("time,vibration\n" + "".join(f"{one['ts']},{one['vibration']}\n" for one in lines))
    for name in ("r.csv", "r.jsonl"):
        assert run(tmp_path / name, "--config", series, "--pipeline", "hum", "--output", tmp_path / f"{name}.out") == 0
    csv, jsonl = (results(tmp_path / f"{name}.out") for name in ("r.csv", "r.jsonl"))
    assert len(csv) == 50
    assert [one.result for one in csv] == [one.result for one in jsonl]
    assert {one.source for one in jsonl} == {"jsonl"}


def test_images_and_videos_pass_in_virtual_time(tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "images"
    folder.mkdir()
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 4, (32, 24))
    for at in range(8):
        image = np.full((24, 32, 3), 30 * at, np.uint8)
        cv2.imwrite(str(folder / f"{at}.png"), image)
        film.write(image)
    film.release()
    camera = {"type": "camera", "device": "/dev/video0"}
    config = configuration(tmp_path, {"name": "dock", "source": camera, "model": str(tiny.classifier(tmp_path / "m"))})
    for name, step in (("images", 1.0), ("film.avi", 0.25)):
        for output in ("a", "b"):
            start = ("--start", "2024-05-01T00:00:00Z")
            assert run(tmp_path / name, "--config", config, "--output", tmp_path / output, *start) == 0
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        found = results(tmp_path / "a")
        seconds = [at * step for at in range(8)]
        assert [one.ts for one in found] == [f"2024-05-01T00:00:{second:06.3f}Z" for second in seconds]


@pytest.mark.parametrize(("policy", "named"), [("mark", True), ("withhold", False)])
def test_the_input_health_of_a_recorded_camera_is_judged_in_virtual_time(
    policy: str, named: bool, tmp_path: Path
) -> None:
    film = films.altered(iter(films.Camera(films.scene(0, (120, 160)), fps=10, seconds=10)), films.freeze(), 50)
    for _ in films.compressed(film, tmp_path / "film.avi", 10, "MJPG"):
        pass
    camera = {"type": "camera", "device": "/dev/video0"}
    dock = {
        "name": "dock",
        "source": camera,
        "model": str(tiny.classifier(tmp_path / "m")),
        "checks": {"policy": policy},
    }
    config = configuration(tmp_path, dock)
    assert run(tmp_path / "film.avi", "--config", config, "--output", tmp_path / "out") == 0
    found = results(tmp_path / "out")
    frozen = [number for number, one in enumerate(found) if "frozen" in one.input.faults]
    assert len(found) == (100 if named else 62)
    assert frozen == (list(range(62, 100)) if named else [])


def test_a_recording_has_the_columns_and_keys_of_the_pipelines_own_source(tmp_path: Path) -> None:
    (tmp_path / "r.CSV").touch()
    (tmp_path / "r.ndjson").touch()
    csv = CsvSource(path="x", time="when", columns={"a": "b"}, speed=3.0)
    assert recorded(tmp_path / "r.CSV", csv) == CsvSource(path=str(tmp_path / "r.CSV"), time="when", columns={"a": "b"})
    lines = JsonlSource(path="x", keys={"a": "b"}, speed=2.0)
    assert recorded(tmp_path / "r.ndjson", lines) == JsonlSource(path=str(tmp_path / "r.ndjson"), keys={"a": "b"})
    topics = MqttSource(host="h", topics=(MqttTopic(topic="t"),))
    assert recorded(tmp_path / "r.ndjson", topics) == JsonlSource(path=str(tmp_path / "r.ndjson"))
    images = ImagesSource(path="x", fps=5.0, loop=True, max_megapixels=2.0)
    assert recorded(tmp_path, images) == ImagesSource(path=str(tmp_path), fps=5.0, max_megapixels=2.0)
    (tmp_path / "r.mp4").touch()
    assert recorded(tmp_path / "r.mp4", None) == VideoSource(path=str(tmp_path / "r.mp4"))


def test_the_pipeline_is_the_named_one_or_the_only_one_that_fits() -> None:
    socket, camera = SocketSource(listen="tcp:h:1"), CameraSource(device="/dev/video0")
    sources: dict[str, Source] = {"a": socket, "b": camera, "c": socket}
    config = Config(
        device="d", pipelines=tuple(PipelineConfig(name=name, source=one, model="m") for name, one in sources.items())
    )
    assert choose(config, ImagesSource(path="x"), None) == 1
    assert choose(config, CsvSource(path="x"), "c") == 2
    with pytest.raises(ConfigError, match=r"--pipeline: Several pipelines take readings: a, c\. Name one\."):
        choose(config, CsvSource(path="x"), None)
    with pytest.raises(ConfigError, match=r"No pipeline is called 'z'; there are a, b, c\."):
        choose(config, CsvSource(path="x"), "z")
    only = msgspec.structs.replace(config, pipelines=config.pipelines[:1])
    with pytest.raises(ConfigError, match=r"INPUT: None of the pipelines a takes frames\."):
        choose(only, VideoSource(path="x"), None)


@pytest.mark.parametrize(
    ("name", "options", "code", "text"),
    [
        ("absent.csv", (), 2, "There is no"),
        ("r.xyz", (), 2, "r.xyz cannot be replayed"),
        ("r.csv", ("--start", "soon"), 2, "--start: 'soon' is not a time stamp"),
        ("r.csv", ("--json",), 2, "`--json` goes with `--output FILE`"),
        ("r.csv", ("--output", "/absent/folder/x"), 2, "cannot be written"),
        ("r.csv", (), 1, "but not time, vibration"),
        (".", (), 2, "The source gives frames, which the anomaly model 'hum' cannot take."),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    name: str,
    options: tuple[str, ...],
    code: int,
    text: str,
    series: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "r.csv").write_text("a,b\n")
    (tmp_path / "r.xyz").touch()
    assert run(tmp_path / name, "--config", series, "--pipeline", "hum", *options) == code
    assert text in capsys.readouterr().err


def test_a_recording_is_not_written_over(series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recording(tmp_path, rows=60)
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    assert run(file, "--config", series, "--pipeline", "hum", "--output", tmp_path / "link") == 2
    assert "--output: It is the recording itself." in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_replay_that_fails_leaves_no_output(series: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("time,other\n1,1\n")
    (tmp_path / "out").write_text("before")
    assert run(tmp_path / "r.csv", "--config", series, "--pipeline", "hum", "--output", tmp_path / "out") == 1
    assert (tmp_path / "out").read_text() == "before"
    assert not (tmp_path / "out.part").exists()
