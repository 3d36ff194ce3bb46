"""Frames, held against botocore's reader of the same format."""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.nucleus.ipc.frames import Decoder, Frame, FrameError, encode, encode_raw

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name not in (":message-type", ":message-flags", ":stream-id")
)
HEADERS = st.dictionaries(NAMES, st.text(st.characters(codec="utf-8"), max_size=30), max_size=5)
KINDS, FLAGS, STREAMS = st.integers(0, 7), st.integers(0, 3), st.integers(0, 2**31 - 1)
FRAMES = st.builds(Frame, KINDS, FLAGS, STREAMS, HEADERS, st.binary(max_size=200))


def bytes_of(frame: Frame) -> bytes:
    return encode(frame.type, frame.flags, frame.stream, frame.headers, frame.payload)  # type: ignore[arg-type]


def header(name: str, kind: int, value: bytes) -> bytes:
    return bytes([len(name.encode())]) + name.encode() + bytes([kind]) + value


COMMON = b"".join(header(name, 4, bytes(4)) for name in (":message-type", ":message-flags", ":stream-id"))


@settings(max_examples=50, deadline=None)
@given(FRAMES)
def test_botocore_reads_what_is_written(frame: Frame) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(bytes_of(frame))
    (event,) = buffer
    seen: Any = event.headers
    common = {":message-type": frame.type, ":message-flags": frame.flags, ":stream-id": frame.stream}
    assert seen == {**common, **frame.headers}
    assert event.payload == frame.payload


@settings(max_examples=50, deadline=None)
@given(st.lists(FRAMES, max_size=4), st.data())
def test_frames_are_found_wherever_the_bytes_are_cut(frames: list[Frame], data: Any) -> None:
    stream = b"".join(map(bytes_of, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder, found = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += list(decoder.feed(stream[start:end]))
    assert found == frames


@settings(max_examples=50, deadline=None)
@given(FRAMES, st.data())
def test_a_changed_bit_is_noticed(frame: Frame, data: Any) -> None:
    raw = bytearray(bytes_of(frame))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        list(Decoder().feed(bytes(raw)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_the_headers_are_there_is_a_frame_or_a_frame_error(headers: bytes) -> None:
    for raw in (headers, COMMON + headers):
        try:
            (frame,) = Decoder().feed(encode_raw(raw, b"x"))
        except FrameError:
            continue
        assert frame.payload == b"x"


def test_every_type_of_header_is_read() -> None:
    raw = COMMON + b"".join(
        [
            header("true", 0, b""),
            header("false", 1, b""),
            header("byte", 2, b"\xff"),
            header("i16", 3, b"\xff\xfe"),
            header("i64", 5, struct.pack(">q", -3)),
            header("bytes", 6, b"\x00\x02\x00\xff"),
            header("string", 7, b"\x00\x02\xc3\xa9"),
            header("time", 8, struct.pack(">q", 1_700_000_000_000)),
            header("uuid", 9, bytes(range(16))),
        ]
    )
    (frame,) = Decoder().feed(encode_raw(raw, b""))
    assert frame.headers == {
        "true": True,
        "false": False,
        "byte": -1,
        "i16": -2,
        "i64": -3,
        "bytes": b"\x00\xff",
        "string": "é",
        "time": 1_700_000_000_000,
        "uuid": uuid.UUID(bytes=bytes(range(16))).bytes,
    }


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        (b"", "message-type"),
        (header(":message-type", 7, b"\x00\x010"), "message-type"),
        (header(":message-type", 0, b""), "message-type"),
        (COMMON.replace(b"\x04\x00\x00\x00\x00", b"\x04\x00\x00\x00\x08", 1), "message type is 8"),
        (COMMON + header("x", 10, b""), "type of header is 10"),
        (COMMON + header("x", 7, b"\x00\x05ab"), "headers"),
        (COMMON + header("x", 7, b"\x00\x01\xff"), "headers"),
        (COMMON + header("x", 0, b"") * 2, "twice"),
        (COMMON + header("", 0, b""), "without a name"),
        (COMMON + b"\x05ab", "headers"),
        (COMMON + header("x", 9, b"ab"), "headers"),
    ],
)
def test_wrong_headers_are_refused(headers: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        list(Decoder().feed(encode_raw(headers, b"")))


@pytest.mark.parametrize(
    ("total", "headers"), [(0, 0), (15, 0), (20, 8), (0xFFFFFFFF, 0), (0xFFFFFFFF, 0xFFFFFFFF), (300_000, 200_000)]
)
def test_lengths_that_cannot_be_are_refused_before_anything_is_waited_for(total: int, headers: int) -> None:
    prelude = struct.pack(">II", total, headers)
    with pytest.raises(FrameError):
        list(Decoder().feed(prelude + struct.pack(">I", zlib.crc32(prelude)) + b"xxxx"))


def test_a_long_frame_is_refused_by_its_first_bytes() -> None:
    raw = encode(0, 0, 1, {}, bytes(1000))
    assert len(list(Decoder(len(raw)).feed(raw))) == 1
    with pytest.raises(FrameError, match="are taken"):
        list(Decoder(len(raw) - 1).feed(raw[:16]))
