"""From a frame to an input tensor, as the manifest says.

Training, compiling and the device all use this one, so that a model sees on the device what it saw before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Permanent, Rejected
from lisiere.models.manifest import ImageInput, TensorSpec

# Larger frames than any sensor of this trade makes: a guard against broken sources.
MAX_PIXELS = 64_000_000


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

    def _fit(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if self._how.fit == "stretch":
            return self._resize(image, self._width, self._height)
        if self._how.fit == "crop":
            # Cropping before scaling gives the same pixels as after, for less work.
            ratio = min(height / self._height, width / self._width)
            rows = min(max(round(self._height * ratio), 1), height)
            columns = min(max(round(self._width * ratio), 1), width)
            top, left = (height - rows) // 2, (width - columns) // 2
            return self._resize(image[top : top + rows, left : left + columns], self._width, self._height)
        ratio = max(height / self._height, width / self._width)
        rows = min(max(round(height / ratio), 1), self._height)
        columns = min(max(round(width / ratio), 1), self._width)
        canvas = np.full((self._height, self._width, *image.shape[2:]), self._how.fill, np.uint8)
        top, left = (self._height - rows) // 2, (self._width - columns) // 2
        canvas[top : top + rows, left : left + columns] = self._resize(image, columns, rows)
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
