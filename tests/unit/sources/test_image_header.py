"""The size in an image's header: the decoder's own, whatever the format; and what it keeps from being decoded."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.sources.decoding import decode_image
from lisiere.sources.image_header import UnusableImage, check_pixels, image_size
from support.pictures import claiming, encoded, jpeg, noise

MOST = 64_000_000
FORMATS = (".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm")


@settings(deadline=None, max_examples=60)
@given(suffix=st.sampled_from(FORMATS), width=st.integers(1, 700), height=st.integers(1, 700), grey=st.booleans())
def test_it_is_the_size_that_decoding_gives(suffix: str, width: int, height: int, grey: bool) -> None:
    grey = suffix == ".pgm" or (grey and suffix != ".ppm")
    shape = (height, width) if grey else (height, width, 3)
    data = encoded(suffix, np.full(shape, 90, np.uint8))
    assert image_size(data) == (width, height)
    assert decode_image(data, "x", MOST).shape == (height, width, 3)


@pytest.mark.parametrize(
    ("suffix", "flags"),
    [
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        (".jpg", (cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80)),  # lossy; above 100 it is lossless
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
        (".ppm", (cv2.IMWRITE_PXM_BINARY, 0)),
        (".pbm", (cv2.IMWRITE_PXM_BINARY, 1)),
    ],
)
def test_it_knows_the_other_forms_of_a_format(suffix: str, flags: tuple[int, ...]) -> None:
    image = noise(height=33, width=57)
    data = encoded(suffix, image[:, :, 0] if suffix == ".pbm" else image, *flags)
    assert image_size(data) == (57, 33)


def test_a_webp_with_transparency_has_its_size_elsewhere() -> None:
    image = np.dstack([noise(), np.full((32, 40), 9, np.uint8)])
    data = encoded(".webp", image, cv2.IMWRITE_WEBP_QUALITY, 50)
    assert data[12:16] == b"VP8X"
    assert image_size(data) == (40, 32)


def test_a_thumbnail_is_not_the_image() -> None:
    whole, thumbnail = jpeg(height=48, width=64), jpeg(height=8, width=8)
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    assert image_size(whole[:2] + segment + whole[2:]) == (64, 48)


def test_fill_bytes_and_markers_without_a_length_are_passed_over() -> None:
    data = jpeg(height=10, width=20)
    assert image_size(data[:2] + b"\xff\x01\xff\xff\xff" + data[2:]) == (20, 10)


def test_comments_stand_between_the_numbers_of_a_pnm() -> None:
    assert image_size(b"P5 # grey\n# 3 1\n 7 # wide\n5\n255\n" + bytes(35)) == (7, 5)


def test_a_bmp_may_start_at_the_top_or_be_of_the_oldest_form() -> None:
    data = bytearray(encoded(".bmp", noise()))
    data[22:26] = struct.pack("<i", -32)
    assert image_size(bytes(data)) == (40, 32)
    assert image_size(b"BM" + bytes(12) + struct.pack("<IHH", 12, 640, 480) + bytes(8)) == (640, 480)


@settings(max_examples=200)
@given(
    start=st.sampled_from(
        [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFFxxxxWEBP", b"RIFFxxxxWEBPVP8L", b"P6 "]
    ),
    rest=st.binary(max_size=80),
)
def test_any_bytes_have_a_size_or_none(start: bytes, rest: bytes) -> None:
    size = image_size(start + rest)
    assert size is None or (size[0] >= 0 and size[1] >= 0)


SEEDS = [encoded(suffix, noise()) for suffix in (".jpg", ".png", ".bmp", ".webp", ".ppm")] + [
    encoded(".jpg", noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    encoded(".webp", noise(), cv2.IMWRITE_WEBP_QUALITY, 50),
    encoded(".webp", np.dstack([noise(), noise()[:, :, 0]]), cv2.IMWRITE_WEBP_QUALITY, 50),
]


@settings(deadline=None, max_examples=150)
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4),
)
def test_no_damage_makes_a_decoder_see_another_size(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    """What would be a way past the bound: a header that says one thing here, and another to the decoder."""
    data = bytearray(seed)
    for at, taken, put in changes:
        data[at : at + taken] = put
    size = image_size(bytes(data))
    if size is not None and size[0] * size[1] < 1 << 20:
        try:
            image = decode_image(bytes(data), "x", 1 << 20)
        except UnusableImage:
            return
        assert (image.shape[1], image.shape[0]) == size


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".ppm"])
def test_an_image_bomb_is_refused_before_it_is_decoded(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("It was decoded.")

    monkeypatch.setattr(cv2, "imdecode", never)
    data = claiming(suffix, 10_000, 10_000)
    assert len(data) < 5000
    with pytest.raises(UnusableImage, match=r"x has 10000x10000 pixels, 100.0 million; 64 million") as caught:
        decode_image(data, "x", MOST)
    assert caught.value.fault == "image_too_large"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".ppm"])  # a WebP cannot say 0
@pytest.mark.parametrize(("width", "height"), [(0, 16), (16, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(suffix: str, width: int, height: int) -> None:
    with pytest.raises(UnusableImage) as caught:
        decode_image(claiming(suffix, width, height), "x", MOST)
    assert caught.value.fault == "image_empty"


def test_the_bound_is_the_configured_one() -> None:
    data = encoded(".png", noise(height=32, width=40))
    assert decode_image(data, "x", 32 * 40).shape == (32, 40, 3)
    with pytest.raises(UnusableImage, match="are allowed"):
        decode_image(data, "x", 32 * 40 - 1)
    with pytest.raises(UnusableImage, match="are allowed"):
        check_pixels(1 << 40, 1 << 40, "x", MOST)


@pytest.mark.parametrize(
    "data", [b"GIF89a" + bytes(40), b"II*\0" + bytes(40), b"#?RADIANCE\n\n-Y 1 +X 1\n", b"P7\n", b"\0" * 64]
)
def test_a_format_whose_size_cannot_be_told_is_not_decoded(data: bytes) -> None:
    with pytest.raises(UnusableImage, match="is not a whole JPEG, PNG, BMP, WebP or PNM image") as caught:
        decode_image(data, "x", MOST)
    assert caught.value.fault == "image_unreadable"


def test_a_truncated_image_is_told_as_such() -> None:
    for suffix in (".jpg", ".png", ".bmp"):
        with pytest.raises(UnusableImage) as caught:
            decode_image(encoded(suffix, noise())[:-3], "x", MOST)
        assert caught.value.fault == "image_truncated"
