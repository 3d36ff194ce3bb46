"""A folder of images: the good ones become frames in order, the bad ones are named and left out."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.settings.sources import ImagesSource
from lisiere.sources import images as module
from lisiere.sources.images import FILE_MAX_BYTES, Images
from lisiere.values import Frame
from support import forget_opencv
from support.pictures import claiming
from support.sources import Faults, Stop

MOST_PIXELS = ImagesSource(path="x").most_pixels
FORMATS = (".jpg", ".png", ".bmp", ".webp", ".ppm")


@pytest.fixture(autouse=True)
def _opencv_is_quiet() -> None:
    # The name has moved: OpenCV 4 has the first, 5 the second.
    found: Any = cv2
    (found.setLogLevel if hasattr(found, "setLogLevel") else found.utils.logging.setLogLevel)(0)


def read_image(file: Path) -> NDArray[np.uint8]:
    return module.read_image(file, MOST_PIXELS)


def picture(level: int = 120, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def encoded(suffix: str, image: NDArray[np.uint8] | None = None, *flags: int) -> bytes:
    good, data = cv2.imencode(suffix, picture() if image is None else image, flags)
    assert good
    return bytes(data.tobytes())


def noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (32, 40, 3)).astype(np.uint8)


def source(folder: Path, **config: Any) -> tuple[Images, Faults]:
    faults = Faults()
    return Images(ImagesSource(path=str(folder), **config), "pictures", ManualClock(50.0), faults), faults


def frames(folder: Path, **config: Any) -> tuple[list[Frame], Faults]:
    images, faults = source(folder, **config)
    return list(images.items(threading.Event())), faults


def test_images_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for level, name in ((30, "c.png"), (10, "a.PNG"), (20, "b.bmp")):
        (tmp_path / name).write_bytes(encoded(Path(name.lower()).suffix, picture(level)))
    (tmp_path / "notes.txt").write_text("no image, and no fault")
    found, faults = frames(tmp_path)
    assert [int(frame.image[0, 0, 0]) for frame in found] == [10, 20, 30]
    assert [frame.index for frame in found] == [0, 1, 2]
    assert {(frame.ts, frame.source) for frame in found} == {(50.0, "pictures")}
    assert faults == []


def test_one_image_may_be_named_alone(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), picture(len(name)))
    images, faults = source(tmp_path / "b.png", loop=True)
    items = images.items(threading.Event())
    assert [next(items).index for _ in range(3)] == [0, 1, 2]
    assert faults == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_is_decoded_to_bgr_bytes(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((12, 16, 3), np.uint8)
    image[:] = (200, 100, 20)
    (tmp_path / f"x{suffix}").write_bytes(encoded(suffix, image))
    found = read_image(tmp_path / f"x{suffix}")
    assert (found.shape, found.dtype.name) == ((12, 16, 3), "uint8")
    np.testing.assert_allclose(found.astype(int), image, atol=6)


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".jpg"])
def test_a_grey_image_comes_with_three_channels(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").write_bytes(encoded(suffix, np.full((8, 9), 77, np.uint8)))
    assert read_image(tmp_path / f"x{suffix}").shape == (8, 9, 3)


def test_transparency_and_sixteen_bits_are_reduced_to_bgr_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png", np.full((4, 5, 4), 9, np.uint8)))
    (tmp_path / "b.png").write_bytes(encoded(".png", np.full((4, 5, 3), 9 * 257, np.uint16)))
    for name in ("a.png", "b.png"):
        found = read_image(tmp_path / name)
        assert (found.shape, found.dtype.name) == ((4, 5, 3), "uint8")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_image_is_rejected(tmp_path: Path, suffix: str, share: float) -> None:
    data = encoded(suffix, noise())
    file = tmp_path / f"x{suffix}"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(Rejected, match=r"x\."):
        read_image(file)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
@pytest.mark.parametrize("missing", [1, 2, 8])
def test_even_the_last_bytes_are_missed(tmp_path: Path, suffix: str, missing: int) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(encoded(suffix, noise())[:-missing])
    with pytest.raises(Rejected, match="truncated"):
        read_image(file)


def test_a_truncated_progressive_jpeg_is_rejected(tmp_path: Path) -> None:
    data = encoded(".jpg", noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert data.count(b"\xff\xda") > 1
    file = tmp_path / "x.jpg"
    file.write_bytes(data)
    assert read_image(file).shape == (32, 40, 3)
    for at in range(data.find(b"\xff\xda"), len(data) - 1, 37):
        file.write_bytes(data[:at])
        with pytest.raises(Rejected):
            read_image(file)


def test_a_thumbnail_does_not_pass_for_the_end_of_its_image(tmp_path: Path) -> None:
    whole, thumbnail = encoded(".jpg", noise()), encoded(".jpg", picture(10, 8, 8))
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    file = tmp_path / "x.jpg"
    file.write_bytes(whole[:2] + segment + whole[2:])
    assert read_image(file).shape == (32, 40, 3)
    for cut in (2, 500, len(whole) - 30, len(whole)):
        file.write_bytes((whole[:2] + segment + whole[2:])[:-cut])
        with pytest.raises(Rejected):
            read_image(file)


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\n", b"SEFT" + b"camera notes" * 20])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_what_a_camera_appends_does_no_harm(tmp_path: Path, suffix: str, tail: bytes) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(encoded(suffix, noise()) + tail)
    assert read_image(file).shape == (32, 40, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"This is not an image.\n",
        b"<html>404</html>",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\xff\xd9",
        b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82",
        b"BM" + b"\0" * 60,
        b"\0" * 4096,
        b"P6 99999 99999 255\n",
    ],
)
def test_what_is_no_image_is_rejected_whatever_its_name(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "x.jpg"
    file.write_bytes(data)
    with pytest.raises(Rejected, match=r"x\.jpg"):
        read_image(file)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_rejected(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x.jpg")
    with pytest.raises(Rejected, match=r"x\.jpg"):
        read_image(tmp_path / "x.jpg")


def test_a_file_that_is_gone_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Rejected, match="cannot be read"):
        read_image(tmp_path / "x.jpg")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as stream:
        stream.truncate(FILE_MAX_BYTES + 1)
    with pytest.raises(Rejected, match="are allowed"):
        read_image(tmp_path / "x.jpg")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    suffix=st.sampled_from(FORMATS),
    cut=st.floats(0, 1),
    at=st.floats(0, 1),
    junk=st.binary(max_size=8),
)
def test_any_damage_is_an_image_or_rejected(tmp_path: Path, suffix: str, cut: float, at: float, junk: bytes) -> None:
    data = bytearray(encoded(suffix, noise()))
    start = int(at * len(data))
    data[start : start + len(junk)] = junk
    file = tmp_path / f"x{suffix}"
    file.write_bytes(data[: int(len(data) * (1 - cut**3))])
    try:
        found = read_image(file)
    except Rejected as error:
        assert str(file) in str(error)  # noqa: PT017 - both ends are allowed
    else:
        assert (found.dtype.name, found.ndim) == ("uint8", 3)


def test_a_bad_image_is_told_by_name_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    (tmp_path / "b.png").write_bytes(b"no")
    (tmp_path / "c.png").write_bytes(encoded(".png"))
    found, faults = frames(tmp_path)
    assert [frame.index for frame in found] == [0, 1]
    assert [name for name, _ in faults] == ["image_unreadable"]
    assert "b.png" in faults[0][1]


@pytest.mark.parametrize("loop", [False, True])
def test_an_empty_or_absent_folder_is_retryable(tmp_path: Path, loop: bool) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for folder, says in ((tmp_path, "no images"), (tmp_path / "absent", "cannot be read")):
        images, _ = source(folder, loop=loop)
        with pytest.raises(Retryable, match=says):
            list(images.items(threading.Event()))


def test_a_loop_goes_round_and_reads_the_folder_anew(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png", picture(1)))
    images, _ = source(tmp_path, loop=True)
    stop = threading.Event()
    items = images.items(stop)
    levels = [int(next(items).image[0, 0, 0]) for _ in range(2)]
    (tmp_path / "b.png").write_bytes(encoded(".png", picture(2)))
    rest = [next(items) for _ in range(4)]
    levels += [int(frame.image[0, 0, 0]) for frame in rest]
    assert levels == [1, 1, 1, 2, 1, 2]
    assert [frame.index for frame in rest] == [2, 3, 4, 5]
    stop.set()
    assert list(items) == []


def test_a_folder_that_vanishes_in_a_loop_is_retryable(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(".png"))
    images, _ = source(folder, loop=True)
    items = images.items(threading.Event())
    next(items)
    shutil.rmtree(folder)
    with pytest.raises(Retryable, match="cannot be read"):
        next(items)


def test_a_file_that_vanishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(".png"))
    images, faults = source(tmp_path)
    items = images.items(threading.Event())
    next(items)
    (tmp_path / "b.png").unlink()
    assert len(list(items)) == 1
    assert [name for name, _ in faults] == ["image_unreadable"]


def test_a_loop_over_bad_images_alone_does_not_spin(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    images, faults = source(tmp_path, loop=True)
    with pytest.raises(Retryable, match="No image"):
        list(images.items(threading.Event()))
    assert len(faults) == 1


def test_once_round_bad_images_alone_is_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    found, faults = frames(tmp_path)
    assert (found, len(faults)) == ([], 1)


def test_frames_come_at_the_rate_asked_for(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(encoded(".png"))
    clock = ManualClock(100.0)
    stop = Stop(clock)
    images = Images(ImagesSource(path=str(tmp_path), fps=4.0), "pictures", clock, Faults())
    assert [frame.ts for frame in images.items(stop)] == [100.0, 100.25, 100.5]
    assert stop.waits == [0.25] * 3


def test_a_stop_ends_it(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encoded(".png"))
    stop = threading.Event()
    images, _ = source(tmp_path, loop=True, fps=0.001)
    items = images.items(stop)
    next(items)
    stop.set()
    assert list(items) == []
    assert list(images.items(stop)) == []


def test_without_opencv_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encoded(".png"))
    forget_opencv(monkeypatch)
    with pytest.raises(Permanent, match=r"lisiere\[camera\]"):
        read_image(tmp_path / "x.png")


def test_each_bad_image_is_counted_under_what_is_wrong_with_it(tmp_path: Path) -> None:
    bad = {
        "a.png": claiming(".png", 10_000, 10_000),
        "b.png": claiming(".png", 0, 40),
        "c.jpg": encoded(".jpg", noise())[:-2],
        "d.png": b"GIF89a",
    }
    for name, data in {**bad, "e.png": encoded(".png")}.items():
        (tmp_path / name).write_bytes(data)
    found, faults = frames(tmp_path)
    assert faults.names == ["image_too_large", "image_empty", "image_truncated", "image_unreadable"]
    assert all(name in sentence for name, (_, sentence) in zip(bad, faults, strict=True))
    assert len(found) == 1


def test_the_number_of_pixels_is_bounded_as_configured(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png", picture(1, 100, 101)))
    (tmp_path / "b.png").write_bytes(encoded(".png", picture(1, 100, 100)))
    found, faults = frames(tmp_path, max_megapixels=0.01)
    assert (len(found), faults.names) == (1, ["image_too_large"])


def test_frames_say_when_they_had_come(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(".png"))
    clock = ManualClock(100.0)
    clock.advance(7.0)
    images = Images(ImagesSource(path=str(tmp_path)), "pictures", clock, Faults())
    assert [(frame.ts, frame.captured) for frame in images.items(threading.Event())] == [(107.0, 7.0)]
