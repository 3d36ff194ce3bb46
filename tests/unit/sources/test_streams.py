"""Streams of bytes: the same frames however the bytes are cut, bounded, and in step again after what is wrong."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.errors import Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources import streams
from lisiere.sources.streams import SILENCE_S, JpegSplitter, JpegStream, RawStream
from lisiere.values import Frame
from support.pictures import claiming, encoded, jpeg, noise
from support.sources import Faults

PART = b"\r\n--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 12\r\n\r\n"


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data cut at the given places."""
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def split(data: bytes, size: int = 1 << 30) -> tuple[list[bytes], Faults]:
    faults = Faults()
    splitter = JpegSplitter(faults)
    return [picture for at in range(0, len(data), size) for picture in splitter.feed(data[at : at + size])], faults


def jpeg_stream(clock: ManualClock | None = None, **config: Any) -> tuple[JpegStream, Faults]:
    faults = Faults()
    source = CameraSource(command=("x",), **config)
    return JpegStream(source, "camera", "The camera x", clock or ManualClock(), faults), faults


def level(frame: Frame) -> int:
    return round(float(frame.image.mean()))


PICTURES = [
    jpeg(10),
    encoded(".jpg", noise(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    encoded(".jpg", noise(1), cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    jpeg(200, 8, 8),
]
LARGE = encoded(".jpg", noise(2, 160, 160), cv2.IMWRITE_JPEG_QUALITY, 95)


@settings(deadline=None, max_examples=80)
@given(
    order=st.lists(st.integers(0, len(PICTURES) - 1), max_size=5),
    between=st.sampled_from([b"", PART, b"\xff", b"junk \xff\x00 \xff"]),
    cuts=st.lists(st.integers(0, 1 << 16), max_size=30),
)
def test_pictures_come_whole_however_the_bytes_are_cut(order: list[int], between: bytes, cuts: list[int]) -> None:
    faults = Faults()
    splitter = JpegSplitter(faults)
    data = between + b"".join(PICTURES[at] + between for at in order)
    found = [picture for piece in pieces(data, cuts) for picture in splitter.feed(piece)]
    assert found == [PICTURES[at] for at in order]
    assert faults == []


def test_byte_by_byte_is_no_different() -> None:
    assert split(PART.join(PICTURES), 1) == (PICTURES, [])


def test_a_thumbnail_does_not_end_its_picture() -> None:
    whole, thumbnail = jpeg(50), jpeg(5, 8, 8)
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    for size in (1, 7, 1 << 20):
        assert split(with_thumbnail * 2, size) == ([with_thumbnail] * 2, [])


@pytest.mark.parametrize("missing", [2, 30, 300])
def test_a_picture_that_is_cut_short_costs_only_itself(missing: int) -> None:
    good = jpeg(50)
    found, faults = split(good + PART + encoded(".jpg", noise())[:-missing] + PART + good + good, 11)
    assert found == [good, good, good]
    assert faults.names == ["image_truncated"]


def test_a_malformed_picture_costs_only_itself() -> None:
    good = jpeg(50)
    found, faults = split(good + b"\xff\xd8nonsense" + good + b"\xff\xd8\xff\x00" + good)
    assert found == [good] * 3
    assert faults.names == ["image_unreadable"] * 2


def test_a_segment_longer_than_its_picture_does_not_swallow_what_follows() -> None:
    good = jpeg(50)
    found, faults = split(b"\xff\xd8\xff\xe0\x00\x20" + good * 3, 5)
    assert found[-1] == good
    assert len(faults) >= 1
    assert len(found) + 1 >= len([good] * 3)


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_after_any_bytes_it_finds_its_step_again(data: bytes, cuts: list[int]) -> None:
    splitter = JpegSplitter(Faults())
    for piece in pieces(data, cuts):
        splitter.feed(piece)
    # Three of them are longer than any segment that the bytes before them can announce.
    found = [picture for _ in range(4) for picture in splitter.feed(LARGE)]
    assert found[-1] == LARGE


def test_what_is_kept_of_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "JPEG_MAX_BYTES", 10_000)
    faults = Faults()
    splitter = JpegSplitter(faults)
    good = jpeg(50)
    start = good[: good.index(b"\xff\xda") + 14]
    for piece in [start, *[b"\x55" * 997] * 100]:
        assert splitter.feed(piece) == []
        assert len(splitter._buffer) <= 10_000
    assert set(faults.names) == {"image_too_large"}
    assert splitter.feed(good) == [good]
    for _ in range(100):  # nor is what is no picture at all
        splitter.feed(b"\x55" * 997)
        assert len(splitter._buffer) <= 1


def test_frames_are_decoded_stamped_and_counted() -> None:
    clock = ManualClock(100.0)
    stream, faults = jpeg_stream(clock)
    clock.advance(3.0)
    frames = list(stream.feed(jpeg(10) + PART + jpeg(200)))
    assert [level(frame) for frame in frames] == [10, 200]
    assert [(frame.ts, frame.captured, frame.index, frame.source) for frame in frames] == [
        (103.0, 3.0, 0, "camera"),
        (103.0, 3.0, 1, "camera"),
    ]
    assert faults == []


def test_each_unusable_picture_is_counted_by_name_and_the_stream_goes_on() -> None:
    stream, faults = jpeg_stream()
    bomb = claiming(".jpg", 10_000, 10_000)
    empty = claiming(".jpg", 0, 0)
    short = encoded(".jpg", noise())[:-40]
    frames = list(stream.feed(bomb + empty + short + jpeg(90) + b"\xff\xd8\xff\xd9" + jpeg(91)))
    assert [level(frame) for frame in frames] == [90, 91]
    assert sorted(faults.names) == ["image_empty", "image_too_large", "image_truncated", "image_unreadable"]
    assert all("The camera x" in sentence for _, sentence in faults)


def test_a_change_of_size_is_a_frame_of_another_size() -> None:
    stream, faults = jpeg_stream()
    frames = list(stream.feed(jpeg(1, 48, 64) + jpeg(1, 24, 32) + jpeg(1, 96, 128)))
    assert [frame.image.shape for frame in frames] == [(48, 64, 3), (24, 32, 3), (96, 128, 3)]
    assert faults == []


def test_frames_beyond_the_rate_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    real = cv2.imdecode

    def count(*asked: Any) -> Any:
        decoded.append(1)
        return real(*asked)

    monkeypatch.setattr(cv2, "imdecode", count)
    clock = ManualClock(100.0)
    stream, _ = jpeg_stream(clock, fps=5.0)
    frames: list[Frame] = []
    for _ in range(90):
        clock.advance(1 / 30)
        frames += stream.feed(jpeg())
    assert len(frames) == len(decoded) == 15
    assert np.diff([frame.ts for frame in frames]) == pytest.approx(0.2, abs=0.04)
    assert [frame.index for frame in frames] == list(range(15))


def test_of_a_burst_the_newest_is_taken_where_not_all_are_wanted() -> None:
    burst = b"".join(jpeg(level) for level in (10, 90, 200))
    assert [level(frame) for frame in jpeg_stream(fps=5.0)[0].feed(burst)] == [200]
    assert [level(frame) for frame in jpeg_stream()[0].feed(burst)] == [10, 90, 200]


@pytest.mark.parametrize("fed", [b"", b"no picture", b"\xff\xd8\xff\xd9", jpeg()[:-9]])
def test_a_stream_without_a_usable_frame_is_given_up(fed: bytes) -> None:
    clock = ManualClock()
    stream, _ = jpeg_stream(clock)
    for _ in range(int(SILENCE_S)):
        clock.advance(1.0)
        assert list(stream.feed(fed)) == []
        stream.check_silence()
    clock.advance(0.1)
    with pytest.raises(Retryable, match="The camera x has given no frame"):
        stream.check_silence()


def test_frames_that_are_not_wanted_are_no_silence() -> None:
    clock = ManualClock()
    stream, _ = jpeg_stream(clock, fps=0.01)
    for _ in range(60):
        clock.advance(1.0)
        list(stream.feed(jpeg()))
        stream.check_silence()


@settings(deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(3, 4, 3), (3, 4), (1, 16, 3)]),
    count=st.integers(0, 5),
    more=st.integers(0, 10),
    cuts=st.lists(st.integers(0, 1000), max_size=20),
)
def test_raw_frames_come_whole_however_the_bytes_are_cut(
    shape: tuple[int, ...], count: int, more: int, cuts: list[int]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
    source = CameraSource(command=("x",), format="bgr", width=16, height=16)
    stream = RawStream(source, "camera", "x", ManualClock(), shape)
    frames = [frame for piece in pieces(images.tobytes() + b"\x07" * more, cuts) for frame in stream.feed(piece)]
    assert [frame.index for frame in frames] == list(range(count))
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert not any(np.shares_memory(a.image, b.image) for a, b in itertools.pairwise(frames))


def test_raw_frames_beyond_the_rate_are_let_go() -> None:
    clock = ManualClock(100.0)
    source = CameraSource(command=("x",), format="gray", width=16, height=16, fps=5.0)
    stream = RawStream(source, "camera", "x", clock, (2, 2))
    levels: list[int] = []
    for at in range(90):
        clock.advance(1 / 30)
        levels += [int(frame.image[0, 0]) for frame in stream.feed(bytes([at] * 4))]
    assert len(levels) == 15
    assert levels == sorted(levels)
