"""Settings of cameras: what fits together is taken, in lax form too, and what does not is told with its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lisiere.errors import ConfigError
from lisiere.settings.sources import CameraSource, FrameSource, check_frames, resolve_frames

AT = "$.pipelines[0].source"
BY_ID = "/dev/v4l/by-id/usb-046d_HD_Pro_Webcam_C920-video-index0"


def camera(**config: Any) -> CameraSource:
    found = msgspec.convert({"type": "camera", **config}, FrameSource, strict=False)
    assert isinstance(found, CameraSource)
    check_frames(found, AT)
    return found


def refused(**config: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        camera(**config)
    return caught.value


@pytest.mark.parametrize(
    "config",
    [
        {"device": "/dev/video0"},
        {"device": BY_ID, "width": 1280, "height": 720, "fps": 5},
        {"url": "rtsp://user:pass@10.0.0.9:554/stream1"},
        {"url": "http://user:p%40ss@camera:8080/video?x=1"},
        {"url": "https://[fe80::1]/snapshot.jpg", "ca": "/etc/camera.pem", "fps": "0.2"},
        {"csi": "rpicam-vid"},
        {"csi": "nvarguscamerasrc", "sensor": "1", "width": "1920", "height": "1080", "fps": 30},
        {"csi": "libcamerasrc", "width": 640, "height": 480},
        {"command": ["gst-launch-1.0", "-q", "videotestsrc", "!", "jpegenc", "!", "fdsink"]},
        {"command": ["/opt/camera", ""], "format": "gray", "width": 640, "height": 481},
    ],
)
def test_a_camera_has_one_of_four_ways(config: dict[str, Any]) -> None:
    camera(**config)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({}, ""),
        ({"device": "/dev/video0", "csi": "rpicam-vid"}, ""),
        ({"url": "rtsp://camera", "command": ["x"]}, ""),
        ({"device": "video0"}, ".device"),
        ({"device": "0"}, ".device"),
        ({"url": "file:///etc/passwd"}, ".url"),
        ({"url": "http://"}, ".url"),
        ({"url": "http://user:hunter/2@camera/"}, ".url"),
        ({"url": "http://camera:99999/hunter2"}, ".url"),
        ({"url": "http://camera/a b"}, ".url"),
        ({"url": "http://camera/\r\nX: hunter2"}, ".url"),
        ({"url": "http://[camera/"}, ".url"),
        ({"url": "rtsp://camera", "ca": "ca.pem"}, ".ca"),
        ({"url": "http://camera", "ca": "ca.pem"}, ".ca"),
        ({"device": "/dev/video0", "sensor": 1}, ".sensor"),
        ({"csi": "libcamerasrc", "sensor": 1}, ".sensor"),
        ({"csi": "libcamerasrc", "width": 641}, ".width"),
        ({"csi": "rpicam-vid", "format": "gray"}, ".format"),
        ({"device": "/dev/video0", "format": "bgr"}, ".format"),
        ({"url": "http://camera", "width": 640}, ".width"),
        ({"url": "rtsp://camera", "height": 480}, ".height"),
        ({"command": ["x"], "width": 640, "height": 480}, ".width"),
        ({"csi": "libcamerasrc", "width": 16384, "height": 16384}, ".width"),
        ({"device": "/dev/video0", "width": 1280, "height": 720, "max_megapixels": 0.5}, ".width"),
        ({"command": [""]}, ".command"),
        ({"command": ["./camera"]}, ".command"),
        ({"command": ["bin/camera"]}, ".command"),
        ({"command": ["x"], "format": "bgr"}, ""),
        ({"command": ["x"], "format": "bgr", "width": 640}, ""),
        ({"command": ["x"], "format": "bgr", "width": 642, "height": 480}, ".width"),
        ({"command": ["x"], "format": "bgr", "width": 10000, "height": 10000}, ".width"),
        ({"command": ["x"], "format": "bgr", "width": 640, "height": 480, "max_megapixels": 0.3}, ".width"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(config: dict[str, Any], place: str) -> None:
    error = refused(**config)
    assert error.path == AT + place
    assert "hunter" not in str(error)


@pytest.mark.parametrize(
    "config",
    [
        {"command": "gst-launch-1.0 videotestsrc"},  # a string would want a shell
        {"command": []},
        {"command": ["x\0y"]},
        {"command": ["x"] * 257},
        {"command": ["x" * 4097]},
        {"csi": "raspivid"},
        {"csi": "rpicam-vid", "sensor": -1},
        {"command": ["x"], "format": "rgb"},
        {"device": "/dev/video0", "max_megapixels": 100},
        {"device": "/dev/video0", "max_megapixels": 0},
    ],
)
def test_what_is_out_of_bounds_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        camera(**config)


def test_the_file_of_certificates_starts_from_the_configurations_folder() -> None:
    found = resolve_frames(camera(url="https://camera", ca="ca.pem"), lambda path, at: f"/base/{path} {at}", AT)
    assert isinstance(found, CameraSource)
    assert found.ca == f"/base/ca.pem {AT}.ca"
    plain = camera(url="https://camera")
    assert resolve_frames(plain, lambda path, at: path + at, AT) == plain
