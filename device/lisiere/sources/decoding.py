"""Encoded images to pixels, by OpenCV, after their headers have said what that costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Permanent
from lisiere.sources.image_header import UnusableImage, check_size

_SILENT = 0  # LOG_LEVEL_SILENT


def opencv() -> Any:
    """Return cv2, told to be silent: every failure is reported in our own words.

    Raises:
        Permanent: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise Permanent("OpenCV is not installed: `pip install lisiere[camera]` brings it.") from error
    # The name has moved: OpenCV 4 has the first, 5 the second.
    (cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(_SILENT)
    return cv2


def decode_image(data: bytes, what: str, most_pixels: int) -> NDArray[np.uint8]:
    """Decode one image to uint8 [height, width, 3], BGR.

    Args:
        data: all of its bytes: JPEG, PNG, BMP, WebP or PNM.
        what: what messages call it.
        most_pixels: an image whose header says that it has more is not decoded.

    Raises:
        UnusableImage: it is empty, too large, truncated, or not such an image.
        Permanent: OpenCV is not installed.
    """
    cv2 = opencv()
    if not data:
        raise UnusableImage("image_unreadable", f"{what} is empty.")
    if _truncated(data):
        raise UnusableImage("image_truncated", f"{what} is truncated.")
    check_size(data, what, most_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise UnusableImage("image_unreadable", f"{what} cannot be decoded: {error.err}.") from error
    if image is None:
        raise UnusableImage("image_unreadable", f"{what} is not an image that can be decoded.")
    return np.asarray(image, np.uint8)


def _truncated(data: bytes) -> bool:
    """Whether the data ends before its format's end mark: OpenCV 4 would fill the rest of a JPEG with grey.

    Bytes after the end mark do no harm: cameras append their own data there.
    """
    if data.startswith(b"\xff\xd8"):
        # The last scan must have an end; a thumbnail in the header has its own, before the scan.
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in data  # the last chunk's name and checksum, the same in every file
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return False
