"""A folder of images, in the order of their names; or one image."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import Clock
from lisiere.errors import Retryable
from lisiere.settings.sources import ImagesSource
from lisiere.sources.base import FaultReport
from lisiere.sources.decoding import decode_image
from lisiere.sources.image_header import UnusableImage
from lisiere.sources.pace import Pacer
from lisiere.values import Frame

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})
FILE_MAX_BYTES = 64 << 20


class Images:
    """Yields a folder's images. One that cannot be used is reported by name and left out."""

    def __init__(self, config: ImagesSource, name: str, clock: Clock, fault: FaultReport) -> None:
        self._config = config
        self._folder = Path(config.path)
        self._most_pixels = config.most_pixels
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield the images, once or in a loop; the folder is read anew each time round. See `Source.items`."""
        pacer = Pacer(self._clock, stop)
        index = 0
        while not stop.is_set():
            good = 0
            for file in self._files():
                if stop.is_set():
                    return
                try:
                    image = read_image(file, self._most_pixels)
                except UnusableImage as error:
                    self._fault(error.fault, str(error))
                    continue
                yield Frame(image, self._clock.now(), self._name, index, self._clock.monotonic())
                good, index = good + 1, index + 1
                if self._config.fps and not pacer.wait(1 / self._config.fps):
                    return
            if not self._config.loop:
                return
            if not good:
                raise Retryable(f"No image in {self._folder} can be read.")

    def _files(self) -> list[Path]:
        if self._folder.is_file():
            return [self._folder]
        try:
            files = sorted(file for file in self._folder.iterdir() if file.suffix.lower() in SUFFIXES)
        except OSError as error:
            raise Retryable(f"The folder {self._folder} cannot be read: {error.strerror}.") from error
        if not files:
            raise Retryable(f"The folder {self._folder} holds no images.")
        return files


def read_image(file: Path, most_pixels: int) -> NDArray[np.uint8]:
    """Decode one image file to uint8 [height, width, 3], BGR.

    Raises:
        UnusableImage: it is unreadable, too large, truncated or not an image.
        Permanent: OpenCV is not installed.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise UnusableImage("image_unreadable", f"{file} is not a file.")
        if status.st_size > FILE_MAX_BYTES:
            raise UnusableImage("image_too_large", f"{file} has {status.st_size} bytes; {FILE_MAX_BYTES} are allowed.")
        data = file.read_bytes()
    except OSError as error:
        raise UnusableImage("image_unreadable", f"{file} cannot be read: {error.strerror}.") from error
    return decode_image(data, str(file), most_pixels)
