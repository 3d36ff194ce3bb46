"""Cameras and video files, by OpenCV: V4L2 devices, RTSP and HTTP addresses, files."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lisiere.clock import Clock
from lisiere.errors import Retryable
from lisiere.settings.sources import CameraSource, VideoSource
from lisiere.sources.address import shown
from lisiere.sources.base import FaultReport
from lisiere.sources.decoding import opencv
from lisiere.sources.image_header import UnusableImage, check_pixels
from lisiere.sources.pace import Arrival, Pacer, Thinning
from lisiere.values import Frame

log = logging.getLogger(__name__)

_BY_ID = Path("/dev/v4l/by-id")
_TOLD = 8
BAD_IN_A_ROW = 5  # frames, until the camera counts as away
_TIMEOUT_MS = 5000  # to open a network camera, and to get a frame from it
_DEFAULT_FPS = 25.0  # for files that do not say
_MOST_FPS = 1000.0  # a file that says more has no frame rate but a clock


class Camera:
    """A live camera that OpenCV opens. It yields whatever frame is next; the pipeline's queue keeps the newest."""

    def __init__(self, config: CameraSource, name: str, clock: Clock, fault: FaultReport) -> None:
        self._config = config
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until stopped, at most `fps` of them a second; see `Source.items`.

        Every frame is taken off the camera, and those between are let go undecoded: left in its buffer they would make
        each later one older.
        """
        capture = self._open()
        thinning = Thinning(self._clock, self._config.fps)
        index = bad = 0
        try:
            while not stop.is_set():
                if not capture.grab():
                    raise Retryable(f"The camera {self._where()} gives no more frames.")
                if not thinning.wanted():
                    continue
                arrived = Arrival.now(self._clock)
                good, image = capture.retrieve()
                if not good:
                    # USB cameras send one that is damaged now and then.
                    says = f"A frame of the camera {self._where()} cannot be decoded."
                    self._fault("image_unreadable", says)
                    bad += 1
                    if bad == BAD_IN_A_ROW:
                        raise Retryable(f"{bad} frames in a row cannot be used: {says}")
                    continue
                yield Frame(np.asarray(image, np.uint8), arrived.ts, self._name, index, arrived.captured)
                index, bad = index + 1, 0
        finally:
            capture.release()

    def _where(self) -> str:
        return self._config.device or shown(self._config.url or "")

    def _open(self) -> Any:
        cv2, config = opencv(), self._config
        if config.device is not None:
            if not Path(config.device).exists():
                raise Retryable(f"There is no camera at {config.device}.{_stable_paths()}")
            _advise(config.device)
            capture = cv2.VideoCapture(config.device, cv2.CAP_V4L2)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        else:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _TIMEOUT_MS]
            capture = cv2.VideoCapture(config.url, cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            raise Retryable(f"The camera {self._where()} cannot be opened.")
        for key, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            (cv2.CAP_PROP_FPS, config.fps),
        ):
            if value is not None and config.device is not None:
                capture.set(key, value)
        try:
            _check_declared(cv2, capture, f"The camera {self._where()}", config.most_pixels, self._fault)
        except Retryable:
            capture.release()
            raise
        return capture


class Video:
    """A video file, paced as it was recorded, or as configured."""

    def __init__(self, config: VideoSource, name: str, clock: Clock, fault: FaultReport) -> None:
        self._config = config
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the file's frames, once or in a loop; see `Source.items`."""
        cv2 = opencv()
        pacer = Pacer(self._clock, stop)
        index = 0
        while not stop.is_set():
            capture = cv2.VideoCapture(self._config.path, cv2.CAP_FFMPEG)
            try:
                if not capture.isOpened():
                    raise Retryable(f"The video {self._config.path} is missing or cannot be decoded.")
                _check_declared(cv2, capture, f"The video {self._config.path}", self._config.most_pixels, self._fault)
                declared = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
                fps = self._config.fps
                if fps is None:
                    recorded = capture.get(cv2.CAP_PROP_FPS)
                    fps = recorded if 0 < recorded <= _MOST_FPS else _DEFAULT_FPS
                seen = 0
                while not stop.is_set():
                    good, image = capture.read()
                    if not good:
                        break
                    yield Frame(
                        np.asarray(image, np.uint8), self._clock.now(), self._name, index, self._clock.monotonic()
                    )
                    seen, index = seen + 1, index + 1
                    if fps and not pacer.wait(1 / fps):
                        return
            finally:
                capture.release()
            if seen == 0:
                raise Retryable(f"The video {self._config.path} holds no frame that can be decoded.")
            # A container's count may be off by a frame or two; a damaged file falls well short.
            if seen < declared * 0.9 and not stop.is_set():
                self._fault("video_damaged", f"{self._config.path} gave {seen} of its {declared} frames.")
            if not self._config.loop:
                return


def _check_declared(cv2: Any, capture: Any, what: str, most_pixels: int, fault: FaultReport) -> None:
    """Check the size that a stream declares, before a frame of it is converted.

    Raises:
        Retryable: its frames have too many pixels.
    """
    # A stream that declares none (0) is found out by its frames; some figures are not finite.
    width, height = (float(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > most_pixels:
        try:
            check_pixels(int(min(width, 1e9)), int(min(height, 1e9)), what, most_pixels)
        except UnusableImage as error:
            fault(error.fault, str(error))
            raise Retryable(str(error)) from error


def _advise(device: str) -> None:
    """Say under which other path a camera stays the same, where it was named by its number alone."""
    if re.fullmatch(r"/dev/video\d+", device):
        with contextlib.suppress(OSError):
            for path in sorted(_BY_ID.iterdir()):
                if path.resolve() == Path(device).resolve():
                    log.info("%s may be another camera after the next start; %s stays with this one.", device, path)


def _stable_paths() -> str:
    """A sentence on the cameras that are there, by the paths that stay the same.

    Source: systemd's 60-persistent-v4l.rules, which makes them.
    """
    try:
        found = sorted(str(path) for path in _BY_ID.iterdir())
    except OSError:
        return ""
    return f" There are {', '.join(found[:_TOLD])}." if found else ""
