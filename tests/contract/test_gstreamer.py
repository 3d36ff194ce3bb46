"""Cameras by a child process: a real gst-launch-1.0 with a test source, in every form that is read from a pipe."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import SystemClock
from lisiere.errors import Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources import open_source
from lisiere.sources.csi import camera_command
from lisiere.values import Frame
from support import require
from support.sources import Faults

QUIET = ("gst-launch-1.0", "--quiet")


@pytest.fixture(autouse=True)
def _gstreamer() -> None:
    require(shutil.which("gst-launch-1.0"), "gst-launch-1.0")


def items(faults: Faults | None = None, **config: Any) -> Iterator[Frame]:
    source = open_source(CameraSource(**config), (), SystemClock(), faults if faults is not None else Faults())
    return source.items(threading.Event())  # type: ignore[return-value]


def few(number: int, **config: Any) -> list[Frame]:
    found = items(**config)
    frames = list(islice(found, number))
    found.close()  # type: ignore[attr-defined]
    return frames


def showing(pattern: str, *caps: str) -> tuple[str, ...]:
    return (*QUIET, "videotestsrc", f"pattern={pattern}", "!", *caps, "!", "fdsink")


def test_raw_frames_in_colour() -> None:
    command = showing("red", "video/x-raw,format=BGR,width=64,height=48,framerate=30/1")
    frames = few(3, command=command, format="bgr", width=64, height=48)
    assert [frame.index for frame in frames] == [0, 1, 2]
    for frame in frames:
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.reshape(-1, 3).tolist() == [[0, 0, 255]] * (48 * 64)


def test_raw_frames_in_grey() -> None:
    command = showing("white", "video/x-raw,format=GRAY8,width=64,height=48")
    (frame,) = few(1, command=command, format="gray", width=64, height=48)
    assert frame.image.shape == (48, 64)
    assert frame.image.min() > 230


def test_motion_jpeg() -> None:
    command = showing("red", "video/x-raw,width=320,height=240,framerate=30/1", "!", "jpegenc")
    frames = few(3, command=command)
    assert {frame.image.shape for frame in frames} == {(240, 320, 3)}
    blue, green, red = frames[-1].image.reshape(-1, 3).mean(axis=0)
    assert red > 200
    assert max(blue, green) < 40


def test_a_picture_that_changes_its_size_in_mid_stream_goes_on(tmp_path: Path) -> None:
    pictures = []
    for width in (320, 160):
        file = tmp_path / f"{width}.jpg"
        caps = f"video/x-raw,width={width},height=120"
        made = (*QUIET, "videotestsrc", "num-buffers=1", "!", caps, "!", "jpegenc", "!", "filesink", f"location={file}")
        with pytest.raises(Retryable, match="exit code 0"):
            list(items(command=made))
        pictures.append(str(file))
    seen: list[Frame] = []
    with pytest.raises(Retryable):
        seen.extend(items(command=("cat", *pictures, *pictures)))
    assert [frame.image.shape[1] for frame in seen] == [320, 160, 320, 160]


def test_a_camera_that_ends_is_retryable_and_comes_back() -> None:
    command = (
        *QUIET,
        "videotestsrc",
        "num-buffers=4",
        "!",
        "video/x-raw,width=64,height=48",
        "!",
        "jpegenc",
        "!",
        "fdsink",
    )
    for _ in range(2):
        seen: list[Frame] = []
        with pytest.raises(Retryable, match=r"gst-launch-1\.0 has ended with exit code 0"):
            seen.extend(items(command=command))
        assert [frame.index for frame in seen] == [0, 1, 2, 3]


@pytest.mark.parametrize("csi", ["libcamerasrc", "nvarguscamerasrc"])
def test_a_board_without_that_camera_says_so(csi: str) -> None:
    with pytest.raises(Retryable, match=f"exit code 1, and said: .*{csi}"):
        list(items(csi=csi))


@pytest.mark.parametrize("csi", ["libcamerasrc", "nvarguscamerasrc"])
@pytest.mark.parametrize("fps", [None, 12.5])
def test_all_of_a_boards_command_but_its_camera_runs(csi: Any, fps: float | None) -> None:
    """The camera's own elements are on the boards alone; what stands in for them negotiates the same formats."""
    arguments = list(camera_command(CameraSource(csi=csi, width=320, height=240, fps=fps)).arguments)
    stands_in = {
        "libcamerasrc": "videotestsrc",
        "nvarguscamerasrc": "videotestsrc",
        "sensor-id=0": "is-live=true",
        "video/x-raw(memory:NVMM),width=320,height=240": "video/x-raw,format=NV12,width=320,height=240",
        "nvvidconv": "videoconvert",
    }
    command = tuple(stands_in.get(word, word) for word in arguments)
    frames = few(3, command=command, format="bgr", width=320, height=240)
    assert {frame.image.shape for frame in frames} == {(240, 320, 3)}
    # SMPTE's bars: the first is white, the last blue.
    assert frames[0].image[10, 10].min() > 150
    blue, green, red = frames[0].image[10, 310]
    assert blue > 150
    assert max(green, red) < 60


def test_what_rpicam_vid_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the program of a Raspberry Pi: it looks at what it is asked, talks on stderr, and writes MJPEG."""
    program = tmp_path / "rpicam-vid"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '*"--timeout 0 --nopreview --width 320 --height 240 --framerate 15 --codec mjpeg"*"--output -") ;;\n'
        '*) echo "unknown: $*" >&2; exit 255 ;; esac\n'
        'for number in 1 2 3 4 5; do echo "#$number (15.00 fps) exp 33239.00 ag 1.12" >&2; done\n'
        "exec gst-launch-1.0 --quiet videotestsrc is-live=true ! video/x-raw,width=320,height=240 ! jpegenc ! fdsink\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    frames = few(2, csi="rpicam-vid", width=320, height=240, fps=15.0)
    assert {frame.image.shape for frame in frames} == {(240, 320, 3)}
