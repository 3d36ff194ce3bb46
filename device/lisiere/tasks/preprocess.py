"""From a frame to an input tensor, as the manifest says.

Training, compiling and the device all use this one, so that a model sees on the device what it saw before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Permanent, Rejected
from lisiere.models.manifest import ImageInput, TensorSpec

# Larger frames than any sensor of this trade makes: a guard against broken sources.
MAX_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True)
class Placement:
    """Which part of an image is taken, and where in the input it is put: top, left, height and width, in pixels."""

    taken: tuple[int, int, int, int]
    put: tuple[int, int, int, int]

    def undo(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return boxes of the input, [n, 4] as left, top, right, bottom, as boxes of the image."""
        (from_top, from_left, from_height, from_width), (to_top, to_left, to_height, to_width) = self.taken, self.put
        x, y = from_width / to_width, from_height / to_height
        scale = np.asarray([x, y, x, y])
        shift = np.asarray([from_left - to_left * x, from_top - to_top * y] * 2)
        return np.asarray(boxes * scale + shift, np.float64)


class ImagePreprocess:
    """Fit, colour, `(pixel - mean) * scale`, layout, dtype: in that order, into a new array each time.

    cv2 is imported here and not before: a device that only watches sensors does without it.
    """

    def __init__(self, how: ImageInput, spec: TensorSpec) -> None:
        try:
            import cv2
        except ImportError as error:
            raise Permanent("OpenCV is not installed: `pip install lisiere[camera]` brings it.") from error
        # One pixel loop does not gain from a thread pool, and the device's other pipelines need the cores.
        cv2.setNumThreads(1)
        self._cv2 = cv2
        self._how = how
        self._spec = spec
        axis = 2 if how.layout == "NCHW" else 1
        self._height, self._width = spec.shape[axis], spec.shape[axis + 1]
        self._interpolation = {
            "area": cv2.INTER_AREA,
            "linear": cv2.INTER_LINEAR,
            "nearest": cv2.INTER_NEAREST,
        }[how.interpolation]
        self._dtype = np.dtype(spec.dtype)
        mean, scale = np.asarray(how.mean, np.float32), np.asarray(how.scale, np.float32)
        self._mean = mean if mean.any() else None
        self._scale = scale if (scale != 1).any() else None
        self._colours: dict[tuple[int, str], int | None] = {
            (1, "gray"): None,
            (1, "rgb"): cv2.COLOR_GRAY2RGB,
            (1, "bgr"): cv2.COLOR_GRAY2BGR,
            (3, "gray"): cv2.COLOR_BGR2GRAY,
            (3, "rgb"): cv2.COLOR_BGR2RGB,
            (3, "bgr"): None,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the input, in pixels."""
        return self._height, self._width

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Turn one frame into the input tensor.

        Args:
            image: uint8, [height, width, 3] in BGR order or [height, width] grey.

        Returns:
            An array of exactly the input's shape and dtype.

        Raises:
            Rejected: the image is empty, too large, or not of one of the two forms.
        """
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise Rejected(f"A frame is uint8 with 1 or 3 channels, not {image.dtype} {list(image.shape)}.")
        if not 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS:
            raise Rejected(f"A frame of {image.shape[1]}x{image.shape[0]} pixels cannot be used.")
        colour = self._colours[3 if image.ndim == 3 else 1, self._how.colour]
        fitted: NDArray[np.uint8] = self._fit(image)
        # After the resize: fewer pixels to convert.
        if colour is not None:
            fitted = np.asarray(self._cv2.cvtColor(fitted, colour), np.uint8)
        tensor = self._tensor(fitted)
        # A grey frame of the right size that stays bytes would come out as itself.
        return tensor.copy() if np.may_share_memory(tensor, image) else tensor

    def placement(self, image: NDArray[np.uint8]) -> Placement:
        """Say which part of an image goes where in the input."""
        height, width = image.shape[:2]
        rows, columns = self._height, self._width
        if self._how.fit == "crop":
            # Cropping before scaling gives the same pixels as after, for less work.
            ratio = min(height / rows, width / columns)
            taken_rows = min(max(round(rows * ratio), 1), height)
            taken_columns = min(max(round(columns * ratio), 1), width)
            top, left = (height - taken_rows) // 2, (width - taken_columns) // 2
            return Placement((top, left, taken_rows, taken_columns), (0, 0, rows, columns))
        if self._how.fit == "letterbox":
            ratio = max(height / rows, width / columns)
            put_rows = min(max(round(height / ratio), 1), rows)
            put_columns = min(max(round(width / ratio), 1), columns)
            top, left = (rows - put_rows) // 2, (columns - put_columns) // 2
            return Placement((0, 0, height, width), (top, left, put_rows, put_columns))
        return Placement((0, 0, height, width), (0, 0, rows, columns))

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        placement = self.placement(image)
        top, left, rows, columns = placement.taken
        taken = image[top : top + rows, left : left + columns]
        top, left, rows, columns = placement.put
        fitted = self._resize(taken, columns, rows)
        if (rows, columns) == (self._height, self._width):
            return fitted
        canvas = np.full((self._height, self._width, *image.shape[2:]), self._how.fill, np.uint8)
        canvas[top : top + rows, left : left + columns] = fitted
        return canvas

    def _resize(self, image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
        if image.shape[1] == width and image.shape[0] == height:
            return image
        resized = self._cv2.resize(image, (width, height), interpolation=self._interpolation)
        return np.asarray(resized, np.uint8)

    def _tensor(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        values: NDArray[Any] = pixels if pixels.ndim == 3 else pixels[:, :, None]
        if self._mean is not None or self._scale is not None:
            values = values.astype(np.float32)
            if self._mean is not None:
                values -= self._mean
            if self._scale is not None:
                values *= self._scale
        if self._dtype.kind in "iu" and values.dtype != self._dtype:  # bytes wrap in int8 as floats do
            limits = np.iinfo(self._dtype)
            values = np.clip(np.rint(values.astype(np.float32, copy=False)), limits.min, limits.max)
        if self._how.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values, dtype=self._dtype).reshape(self._spec.shape)
