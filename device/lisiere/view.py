"""The view: what a model gets to see of a frame, between source and model.

A frame that comes in is never written to; one that a view does not fit is refused, and the next may fit again.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere.settings.view import Polygon, ViewConfig, are_shares
from lisiere.sources.base import FaultReport
from lisiere.sources.decoding import decode_image, opencv
from lisiere.values import Frame

_MASK_MOST_PIXELS = 64_000_000
_HALF = 128  # of white


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to do with frames of one size: which rows and columns stay, and which of their pixels are seen."""

    rows: slice
    columns: slice
    seen: NDArray[np.uint8] | None


class View:
    """Makes the frame that a model sees. Used by one thread.

    Args:
        config: None leaves frames as they are.
        steady: whether frames of this source are meant to have one size, so that another one is worth telling.
        fault: told when a frame has another size than those before.

    Raises:
        Rejected: the mask's file is no image.
        Permanent: OpenCV is not installed.
    """

    def __init__(self, config: ViewConfig | None, steady: bool, fault: FaultReport) -> None:
        self._config = config
        self._steady = steady
        self._fault = fault
        self._shape: tuple[int, ...] | None = None
        self._plan: _Plan | None = None
        self._mask: NDArray[np.uint8] | None = None
        if config is not None:
            self._cv2 = opencv()
            if isinstance(config.mask, str):
                self._mask = read_mask(Path(config.mask))

    def __call__(self, frame: Frame) -> Frame:
        """Return the frame as the model is to see it.

        Raises:
            Rejected: region or mask do not fit its size.
        """
        if frame.image.shape != self._shape:
            self._renew(frame.image.shape)
        if self._config is None:
            return frame
        if self._plan is None:
            self._plan = self._make_plan(self._config, frame.image.shape)
        return changed(frame, image=self._apply(self._config, self._plan, frame.image))

    def _renew(self, shape: tuple[int, ...]) -> None:
        before, self._shape, self._plan = self._shape, shape, None
        if self._steady and before is not None and before[:2] != shape[:2]:
            self._fault(
                "frame_size_changed",
                f"Frames have {shape[1]}x{shape[0]} pixels now; they had {before[1]}x{before[0]}.",
            )

    def _apply(self, config: ViewConfig, plan: _Plan, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        cv2 = self._cv2
        seen = image[plan.rows, plan.columns]
        if plan.seen is not None:
            seen = seen & plan.seen
        if config.rotate:
            turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
            seen = cv2.rotate(seen, turns[config.rotate])
        if config.flip is not None:
            seen = cv2.flip(seen, 1 if config.flip == "horizontal" else 0)
        return np.asarray(seen, np.uint8)

    def _make_plan(self, config: ViewConfig, shape: tuple[int, ...]) -> _Plan:
        height, width = shape[:2]
        rows, columns = slice(0, height), slice(0, width)
        seen = self._seen(config, height, width)
        if config.region is not None:
            inner_rows, inner_columns = _region(config.region, height, width)
            if config.crop:
                rows, columns = inner_rows, inner_columns
            else:
                inside = np.zeros((height, width), np.uint8)
                inside[inner_rows, inner_columns] = 255
                seen = inside if seen is None else seen & inside
        if seen is not None:
            seen = seen[rows, columns]
            # As many channels as the frame has: NumPy is slow where it has to repeat one.
            seen = np.ascontiguousarray(seen) if len(shape) == 2 else np.repeat(seen[:, :, None], shape[2], axis=2)
        return _Plan(rows, columns, seen)

    def _seen(self, config: ViewConfig, height: int, width: int) -> NDArray[np.uint8] | None:
        """255 where the mask leaves the frame to be seen, else 0; None without a mask."""
        if self._mask is not None:
            if self._mask.shape != (height, width):
                raise Rejected(
                    f"The mask {config.mask} has {self._mask.shape[1]}x{self._mask.shape[0]} pixels, the frame "
                    f"{width}x{height}: draw it on a frame of the camera."
                )
            return self._mask
        if not config.mask or isinstance(config.mask, str):
            return None
        seen = np.full((height, width), 255, np.uint8)
        for polygon in config.mask:
            self._cv2.fillPoly(seen, [_corners(polygon, height, width)], 0)
        return seen


def _region(region: tuple[float, float, float, float], height: int, width: int) -> tuple[slice, slice]:
    """The rows and columns of a region.

    Raises:
        Rejected: it leaves the frame.
    """
    x, y, wide, high = region
    if are_shares(region):
        # At least a pixel, however small the share.
        left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
        right = min(max(round((x + wide) * width), left + 1), width)
        bottom = min(max(round((y + high) * height), top + 1), height)
    else:
        left, top, right, bottom = int(x), int(y), int(x + wide), int(y + high)
    if right > width or bottom > height:
        raise Rejected(
            f"The region {[int(place) for place in region]} leaves the frame, which has {width}x{height} pixels: give "
            "[x, y, width, height] within it, or shares of it."
        )
    return slice(top, bottom), slice(left, right)


def _corners(polygon: Polygon, height: int, width: int) -> NDArray[np.int32]:
    """A polygon's corners in pixels.

    Raises:
        Rejected: it leaves the frame.
    """
    corners = np.asarray(polygon, np.float64)
    if are_shares(corners.flat):
        corners = corners * (width, height)
    elif (corners > (width, height)).any():
        raise Rejected(f"A polygon of the mask leaves the frame, which has {width}x{height} pixels.")
    return np.rint(corners).astype(np.int32)


def read_mask(file: Path) -> NDArray[np.uint8]:
    """Return 255 where a mask's image is white, and 0 where it is black: [height, width].

    Raises:
        Rejected: it cannot be read, or is no image.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise Rejected(f"The mask {file} cannot be read: {error.strerror}.") from error
    image = decode_image(data, f"The mask {file}", _MASK_MOST_PIXELS)
    return np.where(image.max(axis=2) >= _HALF, 255, 0).astype(np.uint8)
