"""An image's size, read from its first bytes: what decoding it would cost is known before it is decoded.

The formats that are taken are those whose size can be told here; nothing else reaches a decoder.
"""

from __future__ import annotations

import re
from typing import Literal

from lisiere.errors import Rejected

_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and RSTn: markers without a length
# SOF0 … SOF15 without DHT, JPG and DAC, which have numbers among them. Source: ITU-T T.81, table B.1.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# P1 to P6: bitmap, grey and colour, as text and as bytes. Comments may stand between the numbers.
_PNM = re.compile(rb"P[1-6](?:\s|#[^\r\n]*[\r\n])+(\d{1,9})(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})\s")
_HEADER_MAX_BYTES = 4096  # of a PNM file, comments included


class UnusableImage(Rejected):
    """An image that must not be used. `fault` is the name under which it is counted."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height that an image's header gives, in pixels; nothing is decoded.

    JPEG, PNG, BMP, WebP and PNM are known.

    Returns:
        Width and height, which may be 0; None where the data is of no known format or ends within its header.
    """
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        # IHDR is the first chunk (PNG, third edition, 5.6).
        return _numbers(data, 16, 20, 4, "big") if data[12:16] == b"IHDR" else None
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    found = _PNM.match(data[:_HEADER_MAX_BYTES])
    return (int(found[1]), int(found[2])) if found else None


def check_size(data: bytes, what: str, most_pixels: int) -> None:
    """Check that an encoded image is of a known format and within a number of pixels.

    Raises:
        UnusableImage: it is not; counted as `image_unreadable`, `image_empty` or `image_too_large`.
    """
    size = image_size(data)
    if size is None:
        raise UnusableImage("image_unreadable", f"{what} is not a whole JPEG, PNG, BMP, WebP or PNM image.")
    check_pixels(*size, what, most_pixels)


def check_pixels(width: int, height: int, what: str, most_pixels: int) -> None:
    """Check a declared size.

    Raises:
        UnusableImage: it holds no pixel, or too many; counted as `image_empty` or `image_too_large`.
    """
    if width * height == 0:
        raise UnusableImage("image_empty", f"{what} has {width}x{height} pixels, which is none.")
    if width * height > most_pixels:
        raise UnusableImage(
            "image_too_large",
            f"{what} has {width}x{height} pixels, {width * height / 1e6:.1f} million; {most_pixels / 1e6:g} million "
            "are allowed (`max_megapixels`).",
        )


def _numbers(
    data: bytes, first: int, second: int, size: int, order: Literal["big", "little"]
) -> tuple[int, int] | None:
    """Two unsigned numbers of `size` bytes at two places, or None where the data is too short."""
    if len(data) < second + size:
        return None
    return int.from_bytes(data[first : first + size], order), int.from_bytes(data[second : second + size], order)


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """The size in the frame header, from marker segment to marker segment. Source: ITU-T T.81, B.1 and B.2.2."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _STANDALONE:
            at += 2
        elif marker in _FRAME_HEADERS:
            size = _numbers(data, at + 5, at + 7, 2, "big")
            return (size[1], size[0]) if size else None
        elif marker in (0xD9, 0xDA):  # the end, or a scan: the frame header would stand before it
            return None
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None


def _bmp(data: bytes) -> tuple[int, int] | None:
    if int.from_bytes(data[14:18], "little") == 12:  # BITMAPCOREHEADER
        return _numbers(data, 18, 20, 2, "little")
    size = _numbers(data, 18, 22, 4, "little")
    if size is None:
        return None
    # Both are signed; a negative height means that the top row comes first.
    width, height = ((number ^ 0x8000_0000) - 0x8000_0000 for number in size)
    return max(width, 0), abs(height)


def _webp(data: bytes) -> tuple[int, int] | None:
    """Source: RFC 9649, 2.5 to 2.7, and RFC 6386, 9.1. A decoder refuses a VP8X whose frame has another size."""
    kind = data[12:16]
    if kind == b"VP8X":
        size = _numbers(data, 24, 27, 3, "little")
        return (size[0] + 1, size[1] + 1) if size else None
    if kind == b"VP8L":
        if len(data) < 25 or data[20] != 0x2F:
            return None
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        size = _numbers(data, 26, 28, 2, "little") if data[23:26] == b"\x9d\x01\x2a" else None
        return (size[0] & 0x3FFF, size[1] & 0x3FFF) if size else None  # the two high bits scale what is shown
    return None
