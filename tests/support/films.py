"""Films for the tests of input health: clean streams of many kinds, and faults put into them.

A film is an iterator of frames, uint8 [height, width, 3] in BGR order, made from a seed and nothing else. A fault is a
function that is given each frame from its beginning on, with its number since then.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Film = Iterator[Frame]
Alter = Callable[[Frame, int], Frame]


def scene(seed: int, size: tuple[int, int] = (240, 320)) -> NDArray[np.float32]:
    """Draw a place: a wall and a floor, furniture, some small things, texture. float32 [height, width, 3], 0 … 255."""
    rng = np.random.default_rng(seed)
    height, width = size
    drawn = np.empty((height, width, 3), np.uint8)
    horizon = int(height * rng.uniform(0.4, 0.8))
    drawn[:horizon] = rng.uniform(70, 190, 3)
    drawn[horizon:] = rng.uniform(50, 190, 3)
    for _ in range(rng.integers(5, 14)):
        x, y = rng.uniform(-0.1, 1, 2) * (width, height)
        w, h = rng.uniform(0.05, 0.35, 2) * (width, height)
        colour = rng.uniform(20, 225, 3).tolist()
        if rng.random() < 0.7:
            cv2.rectangle(drawn, (int(x), int(y)), (int(x + w), int(y + h)), colour, -1)
        else:
            cv2.ellipse(drawn, (int(x), int(y)), (int(w / 2), int(h / 2)), 0, 0, 360, colour, -1, cv2.LINE_AA)
    for _ in range(rng.integers(0, 5)):
        at = (rng.uniform(0, 0.8) * width, rng.uniform(0.1, 1) * height)
        cv2.putText(drawn, "GATE 7", (int(at[0]), int(at[1])), 0, width / 500, (20, 20, 20), 1, cv2.LINE_AA)
    place = drawn.astype(np.float32)
    grain = rng.normal(0, rng.uniform(1, 8), (height // 2, width // 2, 1)).astype(np.float32)
    place += cv2.resize(grain, (width, height))[:, :, None]
    light = np.linspace(rng.uniform(0.7, 1), rng.uniform(0.7, 1), width, dtype=np.float32)
    return np.asarray(cv2.GaussianBlur(place * light[:, None], (0, 0), 0.7), np.float32)


def photograph(file: Path, size: tuple[int, int] = (240, 320)) -> NDArray[np.float32]:
    """A photograph as the place that a camera looks at."""
    image = cv2.imread(str(file))
    assert image is not None, file
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), np.float32)


class Noise:
    """A sensor's noise. Making it costs more than all else, so it is one field, read from another place each time."""

    def __init__(self, rng: np.random.Generator, sigma: float) -> None:
        self._rng = rng
        self._sigma = np.float32(sigma)
        self._field = np.zeros((0, 0, 3), np.float32)

    def __call__(self, height: int, width: int) -> NDArray[np.float32]:
        """Return float32 [height, width, 3]."""
        if self._field.shape[0] < height + 97 or self._field.shape[1] < width + 97:
            self._field = self._rng.standard_normal((height + 97, width + 97, 3), np.float32) * self._sigma
        y, x = self._rng.integers(0, 97, 2)
        return self._field[y : y + height, x : x + width]


class Camera:
    """A camera that looks at a place: sensor noise, light, people.

    Args:
        place: see `scene`.
        fps, seconds: how many frames.
        noise: sigma of the sensor's noise, in grey levels.
        light: factor of the light at a time; its default stays.
        people: how many walk through, each over and over.
        person: how wide they are, as a share of the width.
        away: for how many widths of the picture they walk on outside it.
        banding: depth of the bands that lamps draw, moving.
        shake: sigma of the camera's shaking, in pixels.
    """

    def __init__(
        self,
        place: NDArray[np.float32],
        seed: int = 0,
        fps: float = 15,
        seconds: float = 20,
        noise: float = 2.0,
        light: Callable[[float], float] = lambda _: 1.0,
        people: int = 0,
        person: float = 0.15,
        away: float = 0.3,
        shake: float = 0.0,
        banding: float = 0.0,
    ) -> None:
        self.fps = fps
        self._place = place
        self._rng = np.random.default_rng(seed)
        self._frames = int(seconds * fps)
        self._light, self._shake, self._banding, self._away = light, shake, banding, away
        rng, height, width = self._rng, *place.shape[:2]
        self._people: list[Any] = []
        for _ in range(people):
            tall, wide = int(height * rng.uniform(0.6, 1)), max(4, int(width * person * rng.uniform(0.7, 1.3)))
            cloth = cv2.resize(rng.uniform(20, 220, (6, 3, 3)).astype(np.float32), (wide, tall))
            cloth = cloth + rng.standard_normal(cloth.shape, np.float32) * 8
            self._people.append((cloth, rng.uniform(1, 1.6), rng.uniform(4, 9)))
        self._grain = Noise(rng, noise) if noise else None

    def __iter__(self) -> Film:
        """Yield the frames."""
        rng, (height, width) = self._rng, self._place.shape[:2]
        for index in range(self._frames):
            now = index / self.fps
            picture = self._place
            if self._people:
                picture = picture.copy()
                for cloth, phase, period in self._people:
                    x = int(((now / period + phase) % (1.3 + self._away) - 0.3) * width)
                    left, right = max(0, x), min(width, x + cloth.shape[1])
                    if left < right:
                        picture[height - cloth.shape[0] :, left:right] = cloth[:, left - x : right - x]
            if self._shake:
                dx, dy = rng.normal(0, self._shake, 2)
                move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
                moved = cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REFLECT)
                picture = np.asarray(moved, np.float32)
            picture = picture * np.float32(self._light(now))
            if self._banding:
                rows = np.arange(height, dtype=np.float32) / height
                bands = 1 + self._banding * np.sin(2 * np.pi * (3 * rows + now * 7.3))
                picture = picture * bands[:, None, None].astype(np.float32)
            if self._grain is not None:
                picture = picture + self._grain(height, width)
            yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def video(file: Path) -> Film:
    """The frames of a video file."""
    capture = cv2.VideoCapture(str(file))
    try:
        while (read := capture.read())[0]:
            yield np.asarray(read[1], np.uint8)
    finally:
        capture.release()


def compressed(film: Film, file: Path, fps: float, code: str = "mp4v") -> Film:
    """What a lossy codec leaves of a film: the whole of it is written to `file` first, then read."""
    first = next(film)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*code), fps, first.shape[1::-1])
    assert writer.isOpened(), code
    for frame in itertools.chain([first], film):
        writer.write(frame)
    writer.release()
    return video(file)


def altered(film: Film, alter: Alter, start: int, stop: int | None = None) -> Film:
    """Put a fault into the frames from `start` until before `stop`."""
    for index, frame in enumerate(film):
        inside = index >= start and (stop is None or index < stop)
        yield alter(frame, index - start) if inside else frame


def freeze(clock: bool = False) -> Alter:
    """The first frame for ever; with `clock`, under a clock that runs on."""
    kept: list[Frame] = []

    def alter(frame: Frame, number: int) -> Frame:
        if not kept:
            kept.append(frame.copy())
        shown = kept[0].copy()
        if not clock:
            return shown
        cv2.putText(shown, f"12:00:{number:06d}", (4, 14), 0, frame.shape[1] / 800, (255, 255, 255), 1)
        return shown

    return alter


def cover(
    colour: tuple[int, int, int] = (4, 4, 4), noise: float = 2.0, shading: float = 0.0, share: float = 1.0
) -> Alter:
    """A cap, a hand or a sheet of paper before the lens: one colour, shaded softly, with the sensor's noise.

    Args:
        share: how much of the picture's width it covers, from the left.
    """
    grain = Noise(np.random.default_rng(5), noise)

    def alter(frame: Frame, number: int) -> Frame:
        height, width = frame.shape[0], round(frame.shape[1] * share)
        slope = np.linspace(1 - shading, 1 + shading, width, dtype=np.float32)[None, :, None]
        picture = np.ones((height, width, 1), np.float32) * np.array(colour, np.float32) * slope
        covered = frame.copy()
        covered[:, :width] = np.clip(picture + grain(height, width), 0, 255)
        return covered

    return alter


def blur(sigma: float, noise: float = 0.0) -> Alter:
    """A lens that is out of focus or fogged; `noise` is what the sensor adds behind it."""
    grain = Noise(np.random.default_rng(5), noise)

    def alter(frame: Frame, number: int) -> Frame:
        soft = cv2.GaussianBlur(frame, (0, 0), sigma).astype(np.float32)
        if noise:
            soft += grain(*frame.shape[:2])
        return np.clip(np.rint(soft), 0, 255).astype(np.uint8)

    return alter


def shift(right: int, down: int = 0, turn: float = 0.0, roll: bool = False, zoom: float = 1.0) -> Alter:
    """A camera that was pushed: what comes in at the edges is mirrored, or with `roll` what left on the other side."""

    def alter(frame: Frame, number: int) -> Frame:
        if roll:
            return np.asarray(np.roll(frame, (down, right), (0, 1)), np.uint8)
        height, width = frame.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), turn, zoom)
        matrix[:, 2] += (right, down)
        return np.asarray(cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT), np.uint8)

    return alter


def over_expose(gain: float = 2.2, offset: float = 60) -> Alter:
    """Far too much light."""
    return lambda frame, _: np.asarray(cv2.convertScaleAbs(frame, alpha=gain, beta=offset), np.uint8)
