"""Frames of the event-stream protocol: bytes in, frames out, and the other way.

One frame, big-endian: u32 total | u32 length of the headers | u32 CRC-32 of those eight bytes | headers | payload |
u32 CRC-32 of all before it. A header is u8 length of its name, name, u8 type, value.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Value = bool | int | bytes | str

# What a frame says that it is (`:message-type`) and what it says besides (`:message-flags`).
MESSAGE, ERROR, PING, PING_RESPONSE, CONNECT, CONNECT_ACK, PROTOCOL_ERROR, INTERNAL_ERROR = range(8)
ACCEPTED, TERMINATE = 1, 2

# The limits that the protocol sets itself.
HEADERS_MAX = 128 * 1024
FRAME_MAX = 24 * 1024 * 1024

_PRELUDE = struct.Struct(">III")
_AROUND = 16
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_NUMBERS = {2: struct.Struct(">b"), 3: struct.Struct(">h"), 4: struct.Struct(">i"), 5: struct.Struct(">q")}
_TIMESTAMP, _UUID, _BYTES, _STRING = 8, 9, 6, 7
_NUMBERS[_TIMESTAMP] = struct.Struct(">q")
_TYPE, _FLAGS, _STREAM = b"\x0d:message-type\x04", b"\x0e:message-flags\x04", b"\x0a:stream-id\x04"


class FrameError(Exception):
    """What came is no frame. Nothing that follows it can be read either, so the connection must end."""


class Frame(NamedTuple):
    """One frame; its three common headers stand apart from the others."""

    type: int
    flags: int
    stream: int
    headers: dict[str, Value]
    payload: bytes


class Decoder:
    """Cuts frames out of what a socket gives; holds back at most one that is not whole yet.

    Attributes:
        frame_max: bytes of the largest frame that is waited for.
    """

    def __init__(self, frame_max: int = FRAME_MAX) -> None:
        self.frame_max = frame_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are whole now.

        Raises:
            FrameError: a length, a checksum, a header or a common header is wrong.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < _PRELUDE.size or len(self._rest) < self._total(self._rest, 0):
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        start = 0
        while len(data) - start >= _PRELUDE.size:
            total = self._total(data, start)
            if len(data) - start < total:
                break
            yield _decode(data, start, total)
            start += total
        self._rest += memoryview(data)[start:]

    def _total(self, data: bytes | bytearray, start: int) -> int:
        total, headers, checksum = _PRELUDE.unpack_from(data, start)
        if zlib.crc32(memoryview(data)[start : start + 8]) != checksum:
            raise FrameError("The checksum of a frame's first eight bytes is wrong.")
        if headers > HEADERS_MAX or total < _AROUND + headers:
            raise FrameError(f"A frame of {total} bytes cannot have {headers} bytes of headers.")
        if total > self.frame_max:
            raise FrameError(f"A frame has {total} bytes; up to {self.frame_max} are taken.")
        return int(total)


def encode(kind: int, flags: int, stream: int, headers: Mapping[str, str] | None = None, payload: bytes = b"") -> bytes:
    """Return one frame with the common headers and, after them, string headers."""
    words = b"".join(
        b"%c%b\x07%b%b" % (len(name), name, _U16.pack(len(value)), value)
        for name, value in ((name.encode(), value.encode()) for name, value in (headers or {}).items())
    )
    return encode_raw(_common(kind, flags, stream) + words, payload)


def encode_raw(headers: bytes, payload: bytes) -> bytes:
    """Return one frame around headers that are encoded already."""
    prelude = struct.pack(">II", _AROUND + len(headers) + len(payload), len(headers))
    body = b"".join((prelude, _U32.pack(zlib.crc32(prelude)), headers, payload))
    return body + _U32.pack(zlib.crc32(body))


def _common(kind: int, flags: int, stream: int) -> bytes:
    return b"".join(
        (
            _TYPE,
            kind.to_bytes(4, "big"),
            _FLAGS,
            flags.to_bytes(4, "big"),
            _STREAM,
            stream.to_bytes(4, "big", signed=True),
        )
    )


def _decode(data: bytes, start: int, total: int) -> Frame:
    end = start + total - 4
    view = memoryview(data)
    if zlib.crc32(view[start:end]) != _U32.unpack_from(data, end)[0]:
        raise FrameError("The checksum of a frame is wrong.")
    first = start + _PRELUDE.size
    after = first + _U32.unpack_from(data, start + 4)[0]
    headers = _headers(data, first, after)
    kind, flags, stream = (_number(headers, name) for name in (":message-type", ":message-flags", ":stream-id"))
    if not 0 <= kind <= INTERNAL_ERROR:
        raise FrameError(f"No message type is {kind}.")
    return Frame(kind, flags, stream, headers, bytes(view[after:end]))


def _number(headers: dict[str, Value], name: str) -> int:
    value = headers.pop(name, None)
    if type(value) is not int:
        raise FrameError(f"A frame has no number as {name}.")
    return value


def _headers(data: bytes, place: int, end: int) -> dict[str, Value]:
    headers: dict[str, Value] = {}
    try:
        while place < end:
            length = data[place]
            name = data[place + 1 : place + 1 + length].decode()
            kind = data[place + 1 + length]
            place += 2 + length
            value: Value
            if kind in (_STRING, _BYTES):
                length = _U16.unpack_from(data, place)[0]
                raw = data[place + 2 : place + 2 + length]
                value = raw.decode() if kind == _STRING else raw
                place += 2 + length
            elif kind in _NUMBERS:
                value = _NUMBERS[kind].unpack_from(data, place)[0]
                place += _NUMBERS[kind].size
            elif kind <= 1:
                value = kind == 0
            elif kind == _UUID:
                value = data[place : place + 16]
                place += 16
            else:
                raise FrameError(f"No type of header is {kind}.")
            if not name or name in headers:
                raise FrameError("A frame has a header without a name, or one twice.")
            headers[name] = value
    except (IndexError, struct.error, UnicodeDecodeError):
        raise FrameError("A frame's headers cannot be read.") from None
    if place != end:
        raise FrameError("A frame's headers are longer than it says.")
    return headers
