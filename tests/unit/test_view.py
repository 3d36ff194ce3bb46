"""The view: region, mask, rotation and flip, in that order, on frames of any size, which are never written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere.settings.view import ViewConfig
from lisiere.values import Frame
from lisiere.view import View
from support.pictures import claiming, noise
from support.sources import Faults

HEIGHT, WIDTH = 60, 80


def frame(image: NDArray[np.uint8]) -> Frame:
    return Frame(image, 1.5, "camera", 7, 2.5)


def viewed(image: NDArray[np.uint8], **config: Any) -> NDArray[np.uint8]:
    before = image.copy()
    found = View(ViewConfig(**config), True, Faults())(frame(image))
    np.testing.assert_array_equal(image, before)
    assert (found.ts, found.source, found.index, found.captured) == (1.5, "camera", 7, 2.5)
    assert found.image.dtype == np.uint8
    return found.image


@pytest.fixture(params=["colour", "grey"])
def image(request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    found = np.maximum(noise(height=HEIGHT, width=WIDTH), np.uint8(1))  # no pixel of it is black
    return found if request.param == "colour" else np.ascontiguousarray(found[:, :, 0])


def test_without_a_view_a_frame_is_as_it_came(image: NDArray[np.uint8]) -> None:
    given_ = frame(image)
    assert View(None, True, Faults())(given_) is given_
    np.testing.assert_array_equal(viewed(image), image)


def test_a_region_in_pixels_or_shares(image: NDArray[np.uint8]) -> None:
    expected = image[15:45, 20:60]
    np.testing.assert_array_equal(viewed(image, region=(20, 15, 40, 30)), expected)
    np.testing.assert_array_equal(viewed(image, region=(0.25, 0.25, 0.5, 0.5)), expected)
    np.testing.assert_array_equal(viewed(image, region=(0, 0, 1, 1)), image)
    np.testing.assert_array_equal(viewed(image, region=(0, 0, WIDTH, HEIGHT)), image)


def test_a_region_that_is_not_cropped_leaves_the_rest_black(image: NDArray[np.uint8]) -> None:
    found = viewed(image, region=(20, 15, 40, 30), crop=False)
    expected = np.zeros_like(image)
    expected[15:45, 20:60] = image[15:45, 20:60]
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None, max_examples=100)
@given(
    x=st.floats(0, 1),
    y=st.floats(0, 1),
    wide=st.floats(0, 1, exclude_min=True),
    high=st.floats(0, 1, exclude_min=True),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_shares_fit_every_frame(x: float, y: float, wide: float, high: float, size: tuple[int, int]) -> None:
    region = (x, y, min(wide, 1 - x), min(high, 1 - y))
    found = viewed(np.full(size, 9, np.uint8), region=region)
    assert found.size >= 1
    assert abs(found.shape[1] - region[2] * size[1]) <= 1
    assert abs(found.shape[0] - region[3] * size[0]) <= 1


@pytest.mark.parametrize("region", [(0, 0, WIDTH + 1, 10), (0, 0, 10, HEIGHT + 1), (70, 0, 20, 10), (0, 2000, 10, 10)])
def test_a_region_that_leaves_the_frame_is_refused(image: NDArray[np.uint8], region: tuple[float, ...]) -> None:
    with pytest.raises(Rejected, match="leaves the frame, which has 80x60 pixels"):
        viewed(image, region=region)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [None, "horizontal", "vertical"])
def test_it_turns_clockwise_and_flips_afterwards(image: NDArray[np.uint8], rotate: int, flip: Any) -> None:
    expected = np.rot90(image, -rotate // 90)
    if flip is not None:
        expected = np.flip(expected, 1 if flip == "horizontal" else 0)
    np.testing.assert_array_equal(viewed(image, rotate=rotate, flip=flip), expected)


def test_polygons_turn_black(image: NDArray[np.uint8]) -> None:
    found = viewed(image, mask=(((0, 0), (39, 0), (39, 59), (0, 59)), ((70, 50), (79, 50), (79, 59), (70, 59))))
    assert not found[:, :40].any()
    assert not found[50:, 70:].any()
    np.testing.assert_array_equal(found[:50, 40:], image[:50, 40:])
    left = viewed(image, mask=(((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)),))
    assert not left[:, :40].any()
    np.testing.assert_array_equal(left[:, 41:], image[:, 41:])


def test_a_polygon_that_leaves_the_frame_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(Rejected, match="polygon of the mask leaves the frame"):
        viewed(image, mask=(((0, 0), (81, 0), (0, 10)),))


def test_the_mask_is_in_the_cameras_own_frame(image: NDArray[np.uint8]) -> None:
    """Not in the region, and not turned with it."""
    found = viewed(image, mask=(((0, 0), (39, 0), (39, 59), (0, 59)),), region=(20, 15, 40, 30), rotate=90)
    expected = image.copy()
    expected[:, :40] = 0
    np.testing.assert_array_equal(found, np.rot90(expected[15:45, 20:60], -1))


def test_a_mask_may_be_drawn(image: NDArray[np.uint8], tmp_path: Path) -> None:
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[10:50, 5:30] = 255
    drawn[0, 0], drawn[0, 1] = 127, 128
    cv2.imwrite(str(tmp_path / "mask.png"), drawn)
    found = viewed(image, mask=str(tmp_path / "mask.png"))
    seen = drawn >= 128
    np.testing.assert_array_equal(found[seen], image[seen])
    assert not found[~seen].any()
    both = viewed(image, mask=str(tmp_path / "mask.png"), region=(0, 0, 80, 20), crop=False)
    np.testing.assert_array_equal(both[:20], found[:20])
    assert not both[20:].any()


def test_a_mask_of_another_size_is_refused(image: NDArray[np.uint8], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((30, 40), np.uint8))
    with pytest.raises(Rejected, match=r"mask\.png has 40x30 pixels, the frame 80x60"):
        viewed(image, mask=str(tmp_path / "mask.png"))


@pytest.mark.parametrize("data", [None, b"", b"no image", claiming(".png", 10_000, 10_000)])
def test_a_mask_that_is_no_image_is_refused_at_the_start(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "mask.png").write_bytes(data)
    with pytest.raises(Rejected, match=r"The mask .*mask\.png"):
        View(ViewConfig(mask=str(tmp_path / "mask.png")), True, Faults())


def test_frames_that_change_their_size_are_told_and_go_on() -> None:
    faults = Faults()
    view = View(ViewConfig(region=(0, 0, 50, 50)), True, faults)
    sizes = [(60, 80), (60, 80), (40, 40), (40, 40), (120, 160)]
    shapes: list[tuple[int, ...] | None] = []
    for size in sizes:
        try:
            shapes.append(view(frame(np.zeros(size, np.uint8))).image.shape)
        except Rejected:
            shapes.append(None)
    assert shapes == [(50, 50), (50, 50), None, None, (50, 50)]
    assert faults == [
        ("frame_size_changed", "Frames have 40x40 pixels now; they had 80x60."),
        ("frame_size_changed", "Frames have 160x120 pixels now; they had 40x40."),
    ]


@pytest.mark.parametrize(("steady", "told"), [(True, 1), (False, 0)])
def test_only_a_camera_is_meant_to_keep_its_size(steady: bool, told: int) -> None:
    faults = Faults()
    view = View(None, steady, faults)
    for size in ((4, 4), (4, 5)):
        view(frame(np.zeros(size, np.uint8)))
    assert len(faults) == told
