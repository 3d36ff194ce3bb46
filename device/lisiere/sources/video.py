"""Cameras and video files, by OpenCV: V4L2 devices, RTSP and HTTP addresses, files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource, VideoSource
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import Pacer
from lisiere.values import Frame

_SILENT = 0  # LOG_LEVEL_SILENT
_TIMEOUT_MS = 5000  # to open a network camera, and to get a frame from it
_DEFAULT_FPS = 25.0  # for files that do not say
_MOST_FPS = 1000.0  # a file that says more has no frame rate but a clock


def _cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise Permanent("OpenCV is not installed: `pip install lisiere[camera]` brings it.") from error
    # Every failure is reported in our own words. The name has moved: OpenCV 4 has the first, 5 the second.
    (cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(_SILENT)
    return cv2


class Camera:
    """A live camera. It yields whatever frame is next; the pipeline's queue keeps the newest."""

    def __init__(self, config: CameraSource, name: str, clock: Clock) -> None:
        self._config = config
        self._name = name
        self._clock = clock

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until stopped, at most `fps` of them a second; see `Source.items`.

        Every frame is taken off the camera, and those between are let go undecoded: left in its buffer they would make
        each later one older.
        """
        capture = self._open()
        interval = 1 / self._config.fps if self._config.fps else 0.0
        due = self._clock.monotonic()
        index = 0
        try:
            while not stop.is_set():
                if not capture.grab():
                    raise Retryable(f"The camera {self._where()} gives no more frames.")
                now = self._clock.monotonic()
                if now < due:
                    continue
                # Not later than one interval from now: a camera that was slow is not hurried afterwards.
                due = max(due + interval, now)
                good, image = capture.retrieve()
                if not good:
                    raise Retryable(f"A frame of the camera {self._where()} cannot be decoded.")
                yield Frame(np.asarray(image, np.uint8), self._clock.now(), self._name, index)
                index += 1
        finally:
            capture.release()

    def _where(self) -> str:
        """The camera's address without a password: this goes into logs and health messages."""
        # Up to the last `@`, because passwords may hold `/` and `@`; and cameras take passwords as parameters too.
        return self._config.device or re.sub(r"//.*@", "//", re.sub(r"\?.*", "", self._config.url or "", flags=re.S))

    def _open(self) -> Any:
        cv2, config = _cv2(), self._config
        if config.device is not None:
            if not Path(config.device).exists():
                raise Retryable(f"There is no camera at {config.device}.")
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
        cv2 = _cv2()
        pacer = Pacer(self._clock, stop)
        index = 0
        while not stop.is_set():
            capture = cv2.VideoCapture(self._config.path, cv2.CAP_FFMPEG)
            try:
                if not capture.isOpened():
                    raise Retryable(f"The video {self._config.path} is missing or cannot be decoded.")
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
                    yield Frame(np.asarray(image, np.uint8), self._clock.now(), self._name, index)
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
