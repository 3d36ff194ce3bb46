"""What is measured of a frame: bounded in size, and honest about what cannot be measured."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from lisiere.errors import Permanent, Rejected
from lisiere.sight.measures import look_at
from support import films, forget_opencv


def test_light_is_measured_in_grey_levels() -> None:
    image = np.full((48, 64, 3), 100, np.uint8)
    image[:12] = 255
    look = look_at(image)
    assert look.level == pytest.approx(100 + 155 / 4)
    assert look.bright == 255
    assert look.clipped == pytest.approx(0.25)
    assert look.sharpness is None or look.sharpness > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (3, 500), (480, 640, 1), (17, 9, 3), (2160, 3840), (5, 4000, 3)])
def test_every_size_can_be_measured_and_the_small_picture_stays_small(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    look = look_at(image)
    assert 1 <= look.thumb.shape[0] <= 96
    assert 1 <= look.thumb.shape[1] <= 128
    assert look.grid.size <= 200_000
    assert abs(look.level - image.mean()) < 12


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 640), (480, 0, 3)])
def test_a_frame_without_pixels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Rejected, match="has no pixels"):
        look_at(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4, 4), np.uint8), ((4,), np.uint8), ((4, 4), np.float32)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(Rejected, match="uint8 in grey or BGR"):
        look_at(np.zeros(shape, dtype))


def test_grey_and_colour_are_one() -> None:
    grey = films.scene(3)[:, :, 1].astype(np.uint8)
    one, other = look_at(grey), look_at(np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(one.thumb, other.thumb)
    assert one.sharpness == other.sharpness


@pytest.mark.parametrize("seed", range(4))
def test_sharpness_falls_with_blur_and_not_with_noise_light_or_content(seed: int) -> None:
    place = films.scene(seed, (480, 640))

    def sharpness(picture: Any, noise: float = 0.0) -> float:
        rough = picture + np.random.default_rng(1).normal(0, noise, picture.shape)
        found = look_at(np.clip(rough, 0, 255).astype(np.uint8)).sharpness
        assert found is not None
        return found

    sharp = sharpness(place)
    assert sharpness(cv2.GaussianBlur(place, (0, 0), 3)) < 0.4 * sharp
    assert sharpness(cv2.GaussianBlur(place, (0, 0), 3), noise=6) < 0.45 * sharp
    assert sharpness(place, noise=8) == pytest.approx(sharp, rel=0.35)
    assert sharpness(place * 0.5) == pytest.approx(sharp, rel=0.35)
    half = place.copy()
    half[:, :320] = 120
    assert sharpness(half) > 0.6 * sharp


def test_without_edges_there_is_no_sharpness() -> None:
    noise = np.random.default_rng(1).normal(90, 9, (240, 320))
    assert look_at(np.clip(noise, 0, 255).astype(np.uint8)).sharpness is None


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_opencv(monkeypatch)
    with pytest.raises(Permanent, match=r"lisiere\[camera\]"):
        look_at(np.zeros((4, 4), np.uint8))
