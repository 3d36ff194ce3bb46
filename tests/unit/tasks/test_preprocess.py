"""From frame to tensor: each step is what plain NumPy and OpenCV make of the manifest's words."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.errors import Permanent, Rejected
from lisiere.models import TensorSpec
from lisiere.models.manifest import Dtype, ImageInput
from lisiere.tasks.preprocess import MAX_PIXELS, ImagePreprocess
from support import forget_opencv

Image = NDArray[np.uint8]
Colour = Literal["rgb", "bgr", "gray"]
Fit = Literal["stretch", "crop", "letterbox"]
Layout = Literal["NCHW", "NHWC"]
DTYPES: tuple[Dtype, ...] = ("float32", "float64", "int8", "uint8", "int32", "int64")


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Image:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def make(height: int = 4, width: int = 4, dtype: Dtype = "float32", **how: Any) -> ImagePreprocess:
    given = ImageInput(**how)
    channels = 1 if given.colour == "gray" else 3
    shape = (1, channels, height, width) if given.layout == "NCHW" else (1, height, width, channels)
    return ImagePreprocess(given, TensorSpec(name="image", shape=shape, dtype=dtype))


def naive_area(image: Image, factor: int) -> NDArray[np.float64]:
    """Shrink by a whole factor: the mean of each square."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    squares = image.reshape(height, factor, width, factor, *image.shape[2:]).astype(np.float64)
    return np.asarray(squares.mean(axis=(1, 3)))


@settings(deadline=None, max_examples=150)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    channels=st.sampled_from([1, 3]),
    fit=st.sampled_from(["stretch", "crop", "letterbox"]),
    colour=st.sampled_from(["rgb", "bgr", "gray"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    interpolation=st.sampled_from(["area", "linear", "nearest"]),
    dtype=st.sampled_from(DTYPES),
)
def test_any_frame_becomes_exactly_the_declared_tensor(
    size: tuple[int, int],
    target: tuple[int, int],
    channels: int,
    fit: Fit,
    colour: Colour,
    layout: Layout,
    interpolation: str,
    dtype: Dtype,
) -> None:
    preprocess = make(*target, dtype=dtype, fit=fit, colour=colour, layout=layout, interpolation=interpolation)
    image = picture(*size, channels)
    before = image.copy()
    tensor = preprocess(image)
    planes = 1 if colour == "gray" else 3
    assert tensor.shape == ((1, planes, *target) if layout == "NCHW" else (1, *target, planes))
    assert tensor.dtype == np.dtype(dtype)
    assert tensor.flags.c_contiguous
    assert not np.shares_memory(tensor, image)
    assert tensor.min() >= 0
    assert tensor.max() <= (127 if dtype == "int8" else 255)
    assert (image == before).all()


@settings(deadline=None)
@given(factor=st.integers(1, 6), height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_area_is_the_mean_of_each_square(factor: int, height: int, width: int, seed: int) -> None:
    image = picture(height * factor, width * factor, seed=seed)
    tensor = make(height, width, colour="bgr", layout="NHWC")(image)[0]
    # OpenCV rounds to whole pixels, halves either way.
    np.testing.assert_allclose(tensor, naive_area(image, factor), atol=0.501)


def test_of_the_same_size_no_pixel_changes() -> None:
    image = picture(5, 7)
    for fit in ("stretch", "crop", "letterbox"):
        tensor = make(5, 7, colour="bgr", layout="NHWC", fit=fit)(image)
        assert (tensor[0] == image).all()


@pytest.mark.parametrize(
    ("interpolation", "flag"), [("area", cv2.INTER_AREA), ("linear", cv2.INTER_LINEAR), ("nearest", cv2.INTER_NEAREST)]
)
@pytest.mark.parametrize("size", [(37, 53), (3, 5)])
def test_stretch_is_opencvs_resize(interpolation: str, flag: int, size: tuple[int, int]) -> None:
    image = picture(*size)
    tensor = make(10, 12, colour="bgr", layout="NHWC", interpolation=interpolation)(image)
    assert (tensor[0] == cv2.resize(image, (12, 10), interpolation=flag)).all()


def test_crop_takes_the_centre_in_the_targets_proportions() -> None:
    image = picture(20, 50)
    tensor = make(10, 10, colour="bgr", layout="NHWC", fit="crop")(image)
    np.testing.assert_allclose(tensor[0], naive_area(image[:, 15:35], 2), atol=0.501)
    image = picture(50, 20)
    tensor = make(5, 10, colour="bgr", layout="NHWC", fit="crop")(image)
    np.testing.assert_allclose(tensor[0], naive_area(image[20:30], 2), atol=0.501)


@pytest.mark.parametrize("fill", [0, 114, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_letterbox_keeps_proportions_and_fills_the_rest(fill: int, channels: int) -> None:
    image = picture(20, 40, channels)
    colour = "gray" if channels == 1 else "bgr"
    tensor = make(20, 20, colour=colour, layout="NHWC", fit="letterbox", fill=fill)(image)[0]
    assert (tensor[:5] == fill).all()
    assert (tensor[15:] == fill).all()
    np.testing.assert_allclose(tensor[5:15].reshape(naive_area(image, 2).shape), naive_area(image, 2), atol=0.501)


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_proportions_are_fitted(fit: str, size: tuple[int, int]) -> None:
    assert make(8, 8, fit=fit)(picture(*size)).shape == (1, 3, 8, 8)


def test_colours_of_a_colour_frame() -> None:
    image = picture(4, 4)
    blue, green, red = (image[:, :, at].astype(np.float32) for at in range(3))
    assert (make(colour="bgr")(image)[0] == np.stack([blue, green, red])).all()
    assert (make(colour="rgb")(image)[0] == np.stack([red, green, blue])).all()
    # ITU-R BT.601
    np.testing.assert_allclose(make(colour="gray")(image)[0, 0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=1)


def test_colours_of_a_grey_frame() -> None:
    image = picture(4, 4, channels=1)
    assert (make(colour="gray")(image)[0, 0] == image).all()
    assert (make(colour="rgb")(image)[0] == np.stack([image] * 3)).all()
    assert (make(colour="bgr")(image)[0] == np.stack([image] * 3)).all()


def test_both_layouts_hold_the_same_numbers() -> None:
    image = picture(5, 6)
    planes, pixels = make(5, 6, layout="NCHW")(image), make(5, 6, layout="NHWC")(image)
    assert (planes[0] == pixels[0].transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("mean", "scale"),
    [
        ((0.0,), (1 / 255,)),
        ((127.5,), (1 / 127.5,)),
        ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
        ((10.0, 20.0, 30.0), (1.0,)),
        ((0.0,), (1.0, 2.0, 3.0)),
        ((0.0, 0.0, 5.0), (1.0, 1.0, -1.0)),
    ],
)
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_mean_and_scale_are_in_the_order_of_the_colour(
    mean: tuple[float, ...], scale: tuple[float, ...], colour: str, layout: str
) -> None:
    image = picture(4, 4)
    pixels = image[:, :, ::-1] if colour == "rgb" else image
    expected = (pixels.astype(np.float64) - np.asarray(mean)) * np.asarray(scale)
    tensor = make(colour=colour, layout=layout, mean=mean, scale=scale)(image)[0]
    np.testing.assert_allclose(tensor if layout == "NHWC" else tensor.transpose(1, 2, 0), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_whole_numbers_are_rounded_and_kept_within_bounds(dtype: Dtype) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = make(16, 16, dtype=dtype, colour="gray", mean=(100.0,), scale=(1.7,))(image)
    limits = np.iinfo(dtype)
    expected = np.clip(np.rint((image.astype(np.float32) - 100) * np.float32(1.7)), limits.min, limits.max)
    assert (tensor[0, 0] == expected).all()


def test_bytes_do_not_wrap_in_int8() -> None:
    image = np.asarray([[0, 127], [128, 255]], np.uint8)
    assert make(2, 2, dtype="int8", colour="gray")(image).reshape(-1).tolist() == [0, 127, 127, 127]
    centred = make(2, 2, dtype="int8", colour="gray", mean=(128.0,))(image)
    assert centred.reshape(-1).tolist() == [-128, -1, 0, 127]


def test_views_of_a_larger_frame_are_taken() -> None:
    image = picture(20, 20)
    for view in (image[2:10, 3:11], image[::2, ::2], image[::-1], image[:, ::-1], image[:, :, ::-1]):
        for fit in ("stretch", "crop", "letterbox"):
            expected = make(6, 6, fit=fit)(np.ascontiguousarray(view))
            assert (make(6, 6, fit=fit)(view) == expected).all()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.bool_),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.uint8(4),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
    ],
)
def test_what_is_no_frame_is_rejected(image: Any) -> None:
    with pytest.raises(Rejected, match="frame"):
        make()(image)


def test_a_frame_too_large_is_rejected() -> None:
    # One byte of memory, whatever it says of itself.
    image = np.broadcast_to(np.uint8(0), (MAX_PIXELS + 1, 1))
    with pytest.raises(Rejected, match="pixels"):
        make()(image)


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_opencv(monkeypatch)
    with pytest.raises(Permanent, match=r"lisiere\[camera\]"):
        make()
