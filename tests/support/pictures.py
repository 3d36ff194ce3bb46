"""Pictures for tests: encoded ones, and headers that promise more pixels than anyone would decode."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray


def encoded(suffix: str, image: NDArray[np.uint8], *flags: int) -> bytes:
    """An image in the format of a file name's suffix, with OpenCV's flags for it."""
    good, data = cv2.imencode(suffix, image, flags)
    assert good
    return bytes(data.tobytes())


def jpeg(level: int = 120, height: int = 48, width: int = 64) -> bytes:
    """A JPEG of one colour."""
    return encoded(".jpg", np.full((height, width, 3), level, np.uint8))


def noise(seed: int = 0, height: int = 32, width: int = 40) -> NDArray[np.uint8]:
    """A picture that compresses badly."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def claiming(suffix: str, width: int, height: int) -> bytes:
    """A small file of a format whose header gives a size that its content has not."""
    data = bytearray(encoded(suffix, noise()))
    match suffix:
        case ".jpg":
            at = data.index(b"\xff\xc0")
            data[at + 5 : at + 9] = struct.pack(">HH", height, width)
        case ".png":
            data[16:24] = struct.pack(">II", width, height)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        case ".bmp":
            data[18:26] = struct.pack("<ii", width, height)
        case ".ppm":
            data = bytearray(f"P6\n{width} {height}\n255\n".encode()) + data[-64:]
        case ".webp":  # the lossless form, whose header has the size in 14 bits each
            bits = (width - 1) & 0x3FFF | ((height - 1) & 0x3FFF) << 14
            body = b"\x2f" + struct.pack("<I", bits) + bytes(64)
            data = bytearray(
                b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body
            )
        case _:
            raise AssertionError(suffix)
    return bytes(data)
