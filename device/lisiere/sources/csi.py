"""The programs that open cameras on a board's own connector, and how each is told what to write.

OpenCV's wheels have no GStreamer and know nothing of libcamera or Argus, so that such a camera is opened by a program
of the system's, which writes frames to a pipe.
"""

from __future__ import annotations

import math
import shutil
from typing import Literal

from msgspec import Struct

from lisiere.settings.sources import CameraSource

_WIDTH, _HEIGHT = 640, 480


class Command(Struct, frozen=True, kw_only=True):
    """What to run, and what it writes to its standard output.

    Attributes:
        arguments: the program first.
        package: what to install where the program is absent, if that is known.
    """

    arguments: tuple[str, ...]
    format: Literal["mjpeg", "bgr", "gray"]
    width: int
    height: int
    package: str = ""


def camera_command(config: CameraSource) -> Command:
    """Return the command of a camera that has `csi` or `command`."""
    width, height = config.width or _WIDTH, config.height or _HEIGHT
    if config.command is not None:
        return Command(arguments=config.command, format=config.format, width=width, height=height)
    if config.csi == "rpicam-vid":
        return Command(
            arguments=_rpicam(config, width, height),
            format="mjpeg",
            width=width,
            height=height,
            package="rpicam-apps-lite",
        )
    package = "gstreamer1.0-libcamera" if config.csi == "libcamerasrc" else "nvidia-l4t-gstreamer"
    return Command(
        arguments=_gstreamer(config, width, height),
        format="bgr",
        width=width,
        height=height,
        package=f"gstreamer1.0-tools, gstreamer1.0-plugins-base and {package}",
    )


def _rpicam(config: CameraSource, width: int, height: int) -> tuple[str, ...]:
    """Source: the Raspberry Pi documentation of rpicam-apps, which were called libcamera-apps until 2023."""
    program = "rpicam-vid" if shutil.which("rpicam-vid") or not shutil.which("libcamera-vid") else "libcamera-vid"
    rate = ("--framerate", f"{config.fps:g}") if config.fps else ()
    size = ("--width", str(width), "--height", str(height))
    written = ("--codec", "mjpeg", "--quality", "90", "--flush", "--output", "-")
    return (program, "--camera", str(config.sensor), "--timeout", "0", "--nopreview", *size, *rate, *written)


def _gstreamer(config: CameraSource, width: int, height: int) -> tuple[str, ...]:
    """Raw frames by GStreamer. A rate that the sensor may not have is made after it, by dropping."""
    size = f"width={width},height={height}"
    if config.csi == "libcamerasrc":
        opened = ["libcamerasrc", "!", f"video/x-raw,{size}"]
    else:
        opened = ["nvarguscamerasrc", f"sensor-id={config.sensor}", "!", f"video/x-raw(memory:NVMM),{size}"]
        opened += ["!", "nvvidconv", "!", "video/x-raw,format=BGRx"]
    if config.fps:
        opened += ["!", "videorate", f"max-rate={math.ceil(config.fps)}"]
    # Without --quiet it writes what it does among the pictures.
    return (
        "gst-launch-1.0",
        "--quiet",
        *opened,
        "!",
        "videoconvert",
        "!",
        f"video/x-raw,format=BGR,{size}",
        "!",
        "fdsink",
    )
