from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lisiere.errors import ConfigError
from lisiere_sim.inputs import PumpFeed, camera, replay
from lisiere_sim.scenario import CameraInput, CsvInput, Freeze, PumpInput


@pytest.fixture
def glyphs(tmp_path: Path) -> Path:
    file = tmp_path / "glyphs.npz"
    np.savez(file, glyphs=np.random.default_rng(1).integers(0, 17, (5, 8, 8)).astype(np.uint8))
    return file


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        yield Path(folder) / "pump.sock"


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(1)
    server.settimeout(10)
    return server


def lines(server: socket.socket, count: int) -> list[dict[str, object]]:
    link, _ = server.accept()
    with link, link.makefile() as stream:
        return [json.loads(stream.readline()) for _ in range(count)]


def test_the_camera_is_a_video_of_as_many_frames_as_asked_for(glyphs: Path, tmp_path: Path) -> None:
    feed = camera(CameraInput(fps=12, frames=7, width=96, height=64), glyphs, 3, tmp_path, 10)
    assert feed.source["type"] == "video"
    assert feed.source["loop"] is True
    assert feed.source["fps"] == 12
    video = cv2.VideoCapture(feed.source["path"])
    shapes = []
    while (read := video.read())[0]:
        shapes.append(read[1].shape)
    video.release()
    assert shapes == [(64, 96, 3)] * 7


def test_a_digit_stays_as_long_as_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(
        tmp_path / "glyphs.npz", glyphs=np.arange(50, dtype=np.uint8).reshape(50, 1, 1) * np.ones((8, 8), np.uint8)
    )
    shown: list[int] = []

    def render(glyph: Any, _rng: Any, size: Any) -> Any:
        shown.append(int(glyph[0, 0]))
        return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr("lisiere_sim.digits.render", render)
    camera(CameraInput(frames=8, hold=3), tmp_path / "glyphs.npz", 1, tmp_path, 10)
    assert [shown[:3], shown[3:6], shown[6:]] == [[shown[0]] * 3, [shown[3]] * 3, [shown[6]] * 2]
    assert len(set(shown)) > 1


def test_a_camera_that_freezes_does_so_once_and_lasts_for_the_scenario(glyphs: Path, tmp_path: Path) -> None:
    config = CameraInput(fps=5, frames=4, width=96, height=64, freezes=(Freeze(at_s=2, length_s=1.6),))
    feed = camera(config, glyphs, 3, tmp_path, 7)
    video = cv2.VideoCapture(feed.source["path"])
    pictures = []
    while (read := video.read())[0]:
        pictures.append(read[1])
    video.release()
    assert len(pictures) == 5 * (7 + 5)
    same = [number for number in range(1, len(pictures)) if np.array_equal(pictures[number - 1], pictures[number])]
    assert same == list(range(10, 18))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_glyphs_that_cannot_be_read_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "glyphs.npz"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no glyphs"):
        camera(CameraInput(), file, 0, tmp_path, 10)


def test_a_record_is_replayed_at_the_rate_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "record.csv"
    file.write_text("time,co2\n" + "".join(f"{week * 604800},400\n" for week in range(200)))
    feed = replay(CsvInput(rows_per_s=5), file, 20)
    assert feed.source["speed"] == 5 * 604800
    with pytest.raises(ConfigError, match=r"lasts 40 s .* at most 2.2 rows/s") as caught:
        replay(CsvInput(rows_per_s=5), file, 85, "$.pipelines[2].input")
    assert caught.value.path == "$.pipelines[2].input.rows_per_s"


@pytest.mark.parametrize("text", ["", "time,co2\n", "when,co2\n1,2\n", "time,co2\nx,1\n", "time,co2\n1,1\n1,1\n"])
def test_a_record_without_rising_stamps_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "record.csv"
    file.write_text(text)
    with pytest.raises(ConfigError):
        replay(CsvInput(), file, 1)


def test_the_pump_sends_blocks_in_real_time_and_goes_on_after_the_device_was_away(path: Path) -> None:
    feed = PumpFeed(PumpInput(block=32, rate_hz=512), 1, path)
    assert feed.source == {"type": "socket", "listen": f"unix:{path}"}
    feed.start()  # before anybody listens
    begun = time.time()
    with listen(path) as server:
        first = lines(server, 4)
    path.unlink()
    with listen(path) as server:
        second = lines(server, 4)
    feed.stop()
    feed.stop()
    for document in first + second:
        assert document["step_s"] == 1 / 512
        assert isinstance(document["vibration"], list)
        assert len(document["vibration"]) == 32
    stamps = [float(str(document["ts"])) for document in first + second]
    assert begun - 1 < stamps[0] <= time.time()
    steps = np.diff(stamps) / (32 / 512)
    assert np.allclose(steps, np.rint(steps), atol=1e-3)  # the grid goes on through the break
    assert np.allclose(steps[:3], 1, atol=1e-3)


def test_a_silent_sensor_measures_and_says_nothing(path: Path) -> None:
    feed = PumpFeed(PumpInput(block=32, rate_hz=512), 1, path)
    with listen(path) as server:
        feed.start()
        first = lines(server, 2)
    path.unlink()
    feed.silent = True
    with listen(path) as server:
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()
        feed.silent = False
        server.settimeout(None)
        second = lines(server, 1)
    feed.stop()
    assert float(str(second[0]["ts"])) - float(str(first[-1]["ts"])) > 0.3


def test_a_fault_shows_in_the_signal(path: Path) -> None:
    def level(severity: float) -> float:
        feed = PumpFeed(PumpInput(block=512), 1, path)
        feed.set_fault("imbalance", severity)
        return float(np.std(json.loads(feed._line(0.0))["vibration"]))

    assert level(1.0) > 1.5 * level(0.0)
