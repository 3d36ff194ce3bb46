"""What is run for a camera on a board's connector: each word an argument of its own, in the form its program takes."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from lisiere.settings.sources import CameraSource
from lisiere.sources.csi import camera_command


def command(**config: Any) -> list[str]:
    return list(camera_command(CameraSource(**config)).arguments)


def test_rpicam_vid_is_asked_for_motion_jpeg_on_its_output() -> None:
    found = command(csi="rpicam-vid", width=1280, height=720, fps=7.5, sensor=1)
    assert found == [
        *("rpicam-vid", "--camera", "1", "--timeout", "0", "--nopreview", "--width", "1280", "--height", "720"),
        *("--framerate", "7.5", "--codec", "mjpeg", "--quality", "90", "--flush", "--output", "-"),
    ]
    assert "--framerate" not in command(csi="rpicam-vid")


def test_the_former_name_of_rpicam_vid_is_taken_where_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"libcamera-vid"}
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in known else None)
    assert command(csi="rpicam-vid")[0] == "libcamera-vid"
    known.add("rpicam-vid")
    assert command(csi="rpicam-vid")[0] == "rpicam-vid"


def test_gstreamer_is_asked_for_raw_frames() -> None:
    assert command(csi="libcamerasrc", width=800, height=600, fps=4.5) == [
        *("gst-launch-1.0", "--quiet", "libcamerasrc", "!", "video/x-raw,width=800,height=600"),
        *("!", "videorate", "max-rate=5", "!", "videoconvert"),
        *("!", "video/x-raw,format=BGR,width=800,height=600", "!", "fdsink"),
    ]
    assert command(csi="nvarguscamerasrc", sensor=1) == [
        *("gst-launch-1.0", "--quiet", "nvarguscamerasrc", "sensor-id=1"),
        *("!", "video/x-raw(memory:NVMM),width=640,height=480", "!", "nvvidconv", "!", "video/x-raw,format=BGRx"),
        *("!", "videoconvert", "!", "video/x-raw,format=BGR,width=640,height=480", "!", "fdsink"),
    ]


@pytest.mark.parametrize("csi", ["rpicam-vid", "libcamerasrc", "nvarguscamerasrc"])
def test_it_says_what_comes_and_what_to_install(csi: Any) -> None:
    found = camera_command(CameraSource(csi=csi, width=320, height=240))
    assert (found.width, found.height) == (320, 240)
    assert found.format == ("mjpeg" if csi == "rpicam-vid" else "bgr")
    assert found.package


def test_a_command_is_taken_as_it_stands() -> None:
    words = ("ffmpeg", "-i", "a file; rm -rf $HOME `id`", "-")
    found = camera_command(CameraSource(command=words, format="gray", width=64, height=48))
    assert found.arguments == words
    assert (found.format, found.width, found.height) == ("gray", 64, 48)
