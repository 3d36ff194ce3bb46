"""What is measured of one frame: a small grey picture, light, sharpness, and a grid of single pixels.

All of it costs a fraction of a millisecond, because the frame is read through once at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Permanent, Rejected

Grey = NDArray[np.float32]

_THUMB_MOST = (128, 96)  # width and height of the small picture, in pixels
_GRID_MOST = 160  # columns of the grid of single pixels
_LINES = 60  # rows and columns that sharpness is measured along
_NEAR, _FAR = 1, 8  # half the distances, in pixels, over which differences along a line are taken
_EDGE_LEVELS = 8.0  # smaller differences over the far distance are no edges
_ABOVE_NOISE = 6.0  # an edge is higher than the median difference over the near distance by this factor
_EDGES_MIN = 100  # with fewer there is nothing that could be sharp
_CLIPPED = 250
# Of the squares of a difference of two normal numbers, the median is this share of the mean.
_MEDIAN_OF_SQUARES = 0.455


@dataclass(frozen=True, slots=True)
class Look:
    """One frame in numbers.

    Attributes:
        thumb: float32, [height, width], 0 … 255: the picture in grey, each pixel the mean of a square.
        grid: uint8, [height, width]: single pixels of the frame as they are, noise and all.
        level: mean grey level.
        bright: the level that 98% of the small picture stay below.
        clipped: share of the small picture at 250 or above.
        sharpness: how steep the strongest edges are; None where there are too few.
    """

    thumb: Grey
    grid: NDArray[np.uint8]
    level: float
    bright: float
    clipped: float
    sharpness: float | None


def look_at(image: NDArray[np.uint8]) -> Look:
    """Measure one frame.

    Args:
        image: uint8, [height, width, 3] in BGR order, or [height, width] (or [height, width, 1]) for grey.

    Raises:
        Rejected: it has no pixels, or is no picture.
        Permanent: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise Permanent("OpenCV is not installed: `pip install lisiere[camera]` brings it.") from error
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise Rejected(f"A frame is uint8 in grey or BGR, not {image.dtype} of shape {image.shape}.")
    height, width = image.shape[:2]
    if not height or not width:
        raise Rejected(f"A frame has no pixels: {width}x{height}.")
    grey = image if image.ndim == 2 else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)
    small = grey
    while small.shape[1] > _THUMB_MOST[0] or small.shape[0] > _THUMB_MOST[1]:
        # By halves, which OpenCV does many times faster than any other ratio; an odd last row or column is left out.
        rows, columns = max(1, small.shape[0] // 2), max(1, small.shape[1] // 2)
        part = small[: rows * 2, : columns * 2]
        small = np.asarray(cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
    stride = max(1, width // _GRID_MOST)
    below = np.cumsum(_histogram(small))
    return Look(
        thumb=small.astype(np.float32),
        grid=np.ascontiguousarray(grey[::stride, ::stride]),
        level=float(small.mean()),
        bright=float(np.searchsorted(below, 0.98 * small.size)),
        clipped=1 - float(below[_CLIPPED - 1]) / small.size,
        sharpness=_sharpness(grey),
    )


def _difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.absdiff(left, right), np.uint8)


def _histogram(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    import cv2

    return np.asarray(cv2.calcHist([levels], [0], None, [256], [0, 256]), np.float32).ravel()


def _sharpness(grey: NDArray[np.uint8]) -> float | None:
    """Energy of the differences over 2 pixels by that over 16, where the latter are greatest.

    An edge of some height that is spread over w pixels gives about 1/w, whatever its height and however many edges
    there are; so objects that come and go change little. Noise adds the same to every difference over 2 pixels, and
    its share, known from where there are no edges, is taken off.
    """
    import cv2

    height, width = grey.shape
    fine = coarse = 0.0
    edges = 0
    for lines in (grey[:: max(1, height // _LINES)], grey[:, :: max(1, width // _LINES)].T):
        if lines.shape[1] <= 2 * _FAR:
            continue
        lines = np.ascontiguousarray(lines)
        last = lines.shape[1]
        near = _difference(lines[:, _FAR + _NEAR : last - _FAR + _NEAR], lines[:, _FAR - _NEAR : last - _FAR - _NEAR])
        far = _difference(lines[:, 2 * _FAR :], lines[:, : -2 * _FAR])
        median = float(np.searchsorted(np.cumsum(_histogram(near)), near.size / 2))
        steep = float(np.searchsorted(np.cumsum(_histogram(far)), 0.95 * far.size))
        strong = cv2.threshold(far, max(_EDGE_LEVELS, steep, _ABOVE_NOISE * median) - 1, 255, cv2.THRESH_BINARY)[1]
        found = cv2.countNonZero(strong)
        if found:
            noise = median * median / _MEDIAN_OF_SQUARES
            fine += max(0.0, cv2.norm(near, cv2.NORM_L2SQR, strong) - noise * found)
            coarse += cv2.norm(far, cv2.NORM_L2SQR, strong)
            edges += found
    return fine / coarse if edges >= _EDGES_MIN else None
