"""A camera by address: OpenCV's FFmpeg against a real HTTP server that streams motion JPEG."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import cv2
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.errors import Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources.video import Camera
from lisiere.values import Frame
from support.sources import Faults

FRAMES = 40


class MotionJpeg(BaseHTTPRequestHandler):
    """Streams frames whose brightness rises, then hangs up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for at in range(FRAMES):
            image = cv2.imencode(".jpg", np.full((48, 64, 3), 5 * at, np.uint8))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
            try:
                self.wfile.write(head.encode() + image + b"\r\n")
            except OSError:
                return  # the other end has seen enough

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), MotionJpeg)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/stream.mjpg"
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_frames_arrive_in_order(url: str) -> None:
    camera = Camera(CameraSource(url=url), "camera", SystemClock(), Faults())
    frames = list(islice(camera.items(threading.Event()), 10))
    assert [frame.index for frame in frames] == list(range(10))
    brightness = [float(frame.image.mean()) for frame in frames]
    assert frames[0].image.shape == (48, 64, 3)
    assert brightness == sorted(brightness)
    assert brightness[-1] - brightness[0] == pytest.approx(45, abs=3)


def test_a_camera_that_hangs_up_is_retryable(url: str) -> None:
    camera = Camera(CameraSource(url=url), "camera", SystemClock(), Faults())
    seen: list[Frame] = []
    with pytest.raises(Retryable, match="gives no more frames"):
        seen.extend(camera.items(threading.Event()))
    assert len(seen) >= FRAMES - 2


def test_a_camera_can_be_opened_again(url: str) -> None:
    camera = Camera(CameraSource(url=url), "camera", SystemClock(), Faults())
    for _ in range(2):
        assert next(camera.items(threading.Event())).index == 0
