"""Settings of the sources that give frames: cameras, video files, folders of images."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta
from msgspec.structs import replace

from lisiere.documents import Absolute, Part
from lisiere.errors import ConfigError

Csi = Literal["rpicam-vid", "libcamerasrc", "nvarguscamerasrc"]
Argument = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*$")]


class _Frames(Part, frozen=True, kw_only=True):
    """What all of them share: `max_megapixels`, above which a frame is refused before it is decoded."""

    # No more than what any task takes: see MAX_PIXELS in tasks/preprocess.py.
    max_megapixels: Annotated[float, Meta(gt=0, le=64)] = 64.0

    @property
    def most_pixels(self) -> int:
        """How many pixels a frame may have."""
        return round(self.max_megapixels * 1e6)


class CameraSource(_Frames, tag="camera", frozen=True, kw_only=True):
    """A live camera: exactly one of `device`, `url`, `csi` and `command`.

    Attributes:
        device: a V4L2 device such as /dev/v4l/by-id/usb-…-video-index0, which stays the same when cameras are plugged
            in another order; /dev/video0 does not.
        url: rtsp:// or http://; what answers by HTTP may be a stream (motion JPEG) or a picture, asked for `fps` times
            a second (1 unless told otherwise).
        ca: the file of certificates (PEM) that vouch for an https camera, where the system's do not.
        csi: the program or GStreamer source that opens a camera on a board's own connector: rpicam-vid or libcamerasrc
            on a Raspberry Pi, nvarguscamerasrc on a Jetson; 640x480 unless told otherwise.
        sensor: which of the board's cameras, for `csi`: 0 is the first.
        command: a program and its arguments, that writes frames to its standard output. No shell is in between.
        format: what `command` writes: JPEGs one after the other, or raw frames of `width` x `height` pixels in BGR
            order or grey.
        fps: at most so many frames a second are used; a camera is also asked for it where it can be.
        width, height: asked of a `device`, and of `csi`; what `command` writes when it writes raw frames.
    """

    device: str | None = None
    url: str | None = None
    ca: str | None = None
    csi: Csi | None = None
    sensor: Annotated[int, Meta(ge=0, le=15)] = 0
    command: Annotated[tuple[Argument, ...], Meta(min_length=1, max_length=256)] | None = None
    format: Literal["mjpeg", "bgr", "gray"] = "mjpeg"
    fps: Annotated[float, Meta(gt=0, le=1000)] | None = None
    width: Annotated[int, Meta(ge=16, le=16384)] | None = None
    height: Annotated[int, Meta(ge=16, le=16384)] | None = None


class VideoSource(_Frames, tag="video", frozen=True, kw_only=True):
    """A video file, at its own frame rate unless `fps` says otherwise (0: as fast as it can)."""

    path: str
    fps: Annotated[float, Meta(ge=0, le=1000)] | None = None
    loop: bool = False


class ImagesSource(_Frames, tag="images", frozen=True, kw_only=True):
    """A folder of images in the order of their names, or one image; `fps` 0 means as fast as it can."""

    path: str
    fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    loop: bool = False


FrameSource = CameraSource | VideoSource | ImagesSource


def resolve_frames(source: FrameSource, absolute: Absolute, at: str) -> FrameSource:
    """Return a source whose paths are absolute; `at` is where the configuration has it."""
    if isinstance(source, CameraSource):
        return source if source.ca is None else replace(source, ca=absolute(source.ca, f"{at}.ca"))
    return replace(source, path=absolute(source.path, f"{at}.path"))


def check_frames(source: FrameSource, at: str) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: a camera has not exactly one address, or one of another kind, or what does not go with it.
    """
    if not isinstance(source, CameraSource):
        return
    if [source.device, source.url, source.csi, source.command].count(None) != 3:
        raise ConfigError("A camera has exactly one of `device`, `url`, `csi` and `command`.", at)
    if source.device is not None and not source.device.startswith("/"):
        raise ConfigError(
            "A camera's `device` is a path such as /dev/v4l/by-id/usb-…-video-index0, which begins with a slash.",
            f"{at}.device",
        )
    if source.url is not None:
        _check_url(source.url, f"{at}.url")
    if source.ca is not None and not (source.url or "").startswith("https://"):
        raise ConfigError("`ca` is for a camera whose `url` starts with https://.", f"{at}.ca")
    if source.sensor and source.csi not in ("rpicam-vid", "nvarguscamerasrc"):
        raise ConfigError(
            "`sensor` is for `csi: rpicam-vid` and `csi: nvarguscamerasrc`; another camera is chosen by its `device`, "
            "or by a `command`.",
            f"{at}.sensor",
        )
    if source.command is not None:
        _check_command(source, source.command, at)
    elif source.format != "mjpeg":
        raise ConfigError("`format` is for a `command`.", f"{at}.format")
    if source.csi is not None and (source.width or 0) % 4:
        raise ConfigError(f"A camera on `csi` has a width that 4 divides, not {source.width}.", f"{at}.width")
    _check_size(source, at)


def _check_size(source: CameraSource, at: str) -> None:
    """A size is given where it is asked for, and is within what is allowed."""
    for name in ("width", "height"):
        if getattr(source, name) is not None and (source.url is not None or _writes_jpegs(source)):
            raise ConfigError(
                f"`{name}` is not asked of this camera: its pictures have the size that its own settings give.",
                f"{at}.{name}",
            )
    if source.width and source.height and source.width * source.height > source.most_pixels:
        raise ConfigError(
            f"Frames of {source.width}x{source.height} pixels are larger than `max_megapixels` allows.", f"{at}.width"
        )


def _writes_jpegs(source: CameraSource) -> bool:
    return source.command is not None and source.format == "mjpeg"


def _check_url(url: str, at: str) -> None:
    if not re.match(r"^(rtsps?|https?)://", url):
        raise ConfigError("A camera's `url` starts with rtsp:// or http://.", at)
    if url.startswith("http"):
        try:
            parts = urlsplit(url)
            good = bool(parts.hostname) and (parts.port or 0) >= 0 and not re.search(r"[\x00-\x20\x7f]", url)
        except ValueError:
            good = False
        if not good:  # said without the address, since it may hold a password
            raise ConfigError(
                "The `url` is not an address: special characters in a name or password are written as %2F, %40 and so "
                "on.",
                at,
            )


def _check_command(source: CameraSource, command: tuple[str, ...], at: str) -> None:
    program = command[0]
    if not program or ("/" in program and not program.startswith("/")):
        raise ConfigError(
            "A command's program is a name that is looked up in PATH, or a path that begins with a slash.",
            f"{at}.command",
        )
    if source.format == "mjpeg":
        return
    if source.width is None or source.height is None:
        raise ConfigError("Raw frames need `width` and `height`.", at)
    # GStreamer begins each row at a multiple of 4 bytes, others do not: where 4 divides the width, both are the same.
    if source.width % 4:
        raise ConfigError(f"Raw frames have a width that 4 divides, not {source.width}.", f"{at}.width")
