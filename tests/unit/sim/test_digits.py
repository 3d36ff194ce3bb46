"""The renderer: a seed decides the frame, the digit is in the picture, and pictures differ as camera frames do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("cv2", reason="the renderer needs OpenCV")

from lisiere_sim.digits import GLYPH_MAX, render


@pytest.fixture
def glyph() -> NDArray[np.uint8]:
    """A seven: a bar above, a slanted stroke below."""
    glyph = np.zeros((8, 8), np.uint8)
    glyph[0:2, 1:7] = GLYPH_MAX
    for row in range(2, 8):
        glyph[row, 6 - row // 2 : 8 - row // 2] = GLYPH_MAX
    return glyph


@pytest.mark.parametrize("size", [(120, 160), (240, 320), (90, 60)])
def test_a_frame_has_the_size_that_was_asked_for(glyph: NDArray[np.uint8], size: tuple[int, int]) -> None:
    frame = render(glyph, np.random.default_rng(1), size)
    assert frame.shape == (*size, 3)
    assert frame.dtype == np.uint8


def test_the_seed_decides_the_frame(glyph: NDArray[np.uint8]) -> None:
    first, again, other = (render(glyph, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_glyph_is_not_written_to(glyph: NDArray[np.uint8]) -> None:
    before = glyph.copy()
    render(glyph, np.random.default_rng(1))
    assert np.array_equal(glyph, before)


def test_the_digit_is_in_the_frame_and_inside_the_centre_square(glyph: NDArray[np.uint8]) -> None:
    blank = np.zeros_like(glyph)
    for seed in range(20):
        # The same chance with and without ink: what differs is the digit (and the blur about it).
        with_ink = render(glyph, np.random.default_rng(seed)).astype(int)
        without = render(blank, np.random.default_rng(seed)).astype(int)
        rows, columns = np.nonzero(np.abs(with_ink - without).max(axis=2) > 8)
        assert len(rows) > 100
        assert rows.min() >= 0
        assert columns.min() >= 20 - 3
        assert columns.max() < 140 + 3


def test_light_background_and_polarity_vary(glyph: NDArray[np.uint8]) -> None:
    frames = [render(glyph, np.random.default_rng(seed)) for seed in range(40)]
    means = [float(frame.mean()) for frame in frames]
    assert min(means) < 60
    assert max(means) > 180
    assert all(frame.std() > 3 for frame in frames)
