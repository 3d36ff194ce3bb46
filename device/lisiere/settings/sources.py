"""Settings of the sources that give frames: cameras, video files, folders of images."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from lisiere.documents import Absolute, Part
from lisiere.errors import ConfigError


class _Frames(Part, frozen=True, kw_only=True):
    """What all of them share: `max_megapixels`, above which a frame is refused before it is decoded."""

    # No more than what any task takes: see MAX_PIXELS in tasks/preprocess.py.
    max_megapixels: Annotated[float, Meta(gt=0, le=64)] = 64.0

    @property
    def most_pixels(self) -> int:
        """How many pixels a frame may have."""
        return round(self.max_megapixels * 1e6)


class CameraSource(_Frames, tag="camera", frozen=True, kw_only=True):
    """A camera that OpenCV opens: `device` (a V4L2 path such as /dev/video0) or `url` (rtsp:// or http://)."""

    device: str | None = None
    url: str | None = None
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
    """Return a source whose path is absolute; `at` is where the configuration has it."""
    if isinstance(source, CameraSource):
        return source
    return replace(source, path=absolute(source.path, f"{at}.path"))


def check_frames(source: FrameSource, at: str) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: a camera has not exactly one address, or one of another kind.
    """
    if not isinstance(source, CameraSource):
        return
    if (source.device is None) == (source.url is None):
        raise ConfigError("A camera has either a `device` or a `url`.", at)
    if source.url is not None and not re.match(r"^(rtsps?|https?)://", source.url):
        raise ConfigError("A camera's `url` starts with rtsp:// or http://.", f"{at}.url")
