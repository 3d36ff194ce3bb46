"""From the bytes of a pipe or a connection to frames: JPEGs one after the other, or raw pixels of a known size.

What is kept of a stream is at most one frame, and its size is bounded whatever the other end sends.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import Clock
from lisiere.errors import Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources.base import FaultReport
from lisiere.sources.decoding import decode_image
from lisiere.sources.image_header import UnusableImage
from lisiere.sources.pace import Arrival, Thinning
from lisiere.values import Frame

JPEG_MAX_BYTES = 32 << 20
SILENCE_S = 15.0  # a camera may take seconds to start
CHUNK_BYTES = 1 << 16

_START = b"\xff\xd8"
# In a scan every 0xFF of the data is followed by 0, and restart markers are part of it (ITU-T T.81, B.1.1.5).
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


class Stream(Protocol):
    """Makes frames of the bytes of one camera, as they come."""

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Take the next bytes and yield the frames that they complete."""

    def check_silence(self) -> None:
        """Look how long ago the last frame was.

        Raises:
            Retryable: it was too long ago.
        """


class _Frames:
    """What streams share: thinning, stamps, and how long it has been since a frame could be used."""

    def __init__(self, config: CameraSource, name: str, what: str, clock: Clock) -> None:
        self._name = name
        self._what = what
        self._clock = clock
        self._thinning = Thinning(clock, config.fps)
        self._index = 0
        self._last = clock.monotonic()

    def check_silence(self) -> None:
        """See `Stream.check_silence`."""
        if self._clock.monotonic() - self._last > SILENCE_S:
            raise Retryable(f"{self._what} has given no frame that can be used for {SILENCE_S:.0f} s.")

    def _wanted(self) -> bool:
        if self._thinning.wanted():
            return True
        self._last = self._clock.monotonic()
        return False

    def _frame(self, image: NDArray[np.uint8], arrived: Arrival) -> Frame:
        self._last = self._clock.monotonic()
        frame = Frame(image, arrived.ts, self._name, self._index, arrived.captured)
        self._index += 1
        return frame


class JpegStream(_Frames):
    """Motion JPEG: pictures one after the other, with or without anything between them (HTTP's part headers).

    A picture that cannot be used is reported and left out; one that is not wanted is not decoded.

    Args:
        what: what messages call the stream's origin.
    """

    def __init__(self, config: CameraSource, name: str, what: str, clock: Clock, fault: FaultReport) -> None:
        super().__init__(config, name, what, clock)
        self._fault = fault
        self._most_pixels = config.most_pixels
        self._fps = config.fps
        self._splitter = JpegSplitter(lambda why, says: fault(why, f"{what}: {says}"))

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """See `Stream.feed`."""
        pictures = self._splitter.feed(chunk)
        # Where not all are wanted, of those that came at once the newest is.
        for data in pictures[-1:] if self._fps else pictures:
            if not self._wanted():
                continue
            arrived = Arrival.now(self._clock)
            try:
                image = decode_image(data, f"A frame of {self._what}", self._most_pixels)
            except UnusableImage as error:
                self._fault(error.fault, str(error))
            else:
                yield self._frame(image, arrived)


class RawStream(_Frames):
    """Pixels as they are, frame after frame without anything between.

    Args:
        shape: height, width and 3 for BGR, or height and width for grey: a byte each.
    """

    def __init__(self, config: CameraSource, name: str, what: str, clock: Clock, shape: tuple[int, ...]) -> None:
        super().__init__(config, name, what, clock)
        self._shape = shape
        self._buffer = bytearray(math.prod(shape))
        self._filled = 0

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """See `Stream.feed`."""
        rest = memoryview(chunk)
        while rest:
            taken = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = rest[:taken]
            self._filled += taken
            rest = rest[taken:]
            if self._filled == len(self._buffer):
                self._filled = 0
                if self._wanted():
                    full, self._buffer = self._buffer, bytearray(len(self._buffer))
                    yield self._frame(np.frombuffer(full, np.uint8).reshape(self._shape), Arrival.now(self._clock))


class JpegSplitter:
    """Finds whole JPEGs in a stream of bytes, by walking from marker to marker: thumbnails inside do not end them.

    Args:
        fault: told of a picture that was cut short, is malformed, or longer than JPEG_MAX_BYTES.
    """

    def __init__(self, fault: FaultReport) -> None:
        self._fault = fault
        self._buffer = bytearray()
        self._at = 0  # how far the picture at the buffer's start has been walked; 0: no picture there
        self._in_scan = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the pictures that they complete."""
        self._buffer += chunk
        pictures = []
        while (self._at or self._find_start()) and (end := self._walk()) is not None:
            if end:
                pictures.append(bytes(self._buffer[:end]))
                del self._buffer[:end]
                self._at = 0
        if len(self._buffer) > JPEG_MAX_BYTES:
            self._fault("image_too_large", f"a picture is longer than {JPEG_MAX_BYTES >> 20} MiB.")
            self._buffer.clear()
            self._at = 0
        return pictures

    def _find_start(self) -> bool:
        """Let go what is before the next picture; return whether there is one."""
        start = self._buffer.find(_START)
        if start < 0:
            # The last byte may be the first half of the mark.
            del self._buffer[: len(self._buffer) - self._buffer.endswith(b"\xff")]
            return False
        del self._buffer[:start]
        self._at, self._in_scan = len(_START), False
        return True

    def _walk(self) -> int | None:
        """Go on through the picture.

        Returns:
            Its end; 0 when it was given up, and another may follow; None when its end has not come yet.
        """
        buffer = self._buffer
        while True:
            if self._in_scan:
                found = _MARKER_IN_SCAN.search(buffer, self._at)
                if found is None:
                    self._at = max(self._at, len(buffer) - 1)
                    return None
                self._at, self._in_scan = found.start(), False
            if self._at + 2 > len(buffer):
                return None
            marker = buffer[self._at + 1]
            if buffer[self._at] != 0xFF or marker == 0x00:
                return self._give_up("image_unreadable", "a picture is malformed.", len(_START))
            if marker == 0xD9:
                return self._at + 2
            if marker == 0xD8:
                return self._give_up("image_truncated", "a picture is cut short by the next one.", self._at)
            if marker == 0xFF:  # fill
                self._at += 1
            elif marker in _STANDALONE:
                self._at += 2
            else:
                if self._at + 4 > len(buffer):
                    return None
                length = int.from_bytes(buffer[self._at + 2 : self._at + 4], "big")
                self._at += 2 + max(2, length)
                self._in_scan = marker == 0xDA

    def _give_up(self, fault: str, says: str, keep_from: int) -> int:
        self._fault(fault, says)
        del self._buffer[:keep_from]
        self._at = 0
        return 0
