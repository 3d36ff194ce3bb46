"""A subscriber that hears all that a broker wrote to it, even to the last byte before the broker was killed.

It speaks MQTT by a bare socket: a client library stops reading when its own acknowledgement finds the line dead. Its
session is the broker's to keep, and it acknowledges nothing (QoS 0), so that the broker holds nothing back for it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

from support.wire import CONNACK, PUBLISH

SUBACK = 0x90


class Ear:
    """Everything that is published below a topic, in order, over as many connections as it takes.

    Attributes:
        heard: topic and payload of each message.
    """

    def __init__(self, port: int, topic: str) -> None:
        self._address = ("127.0.0.1", port)
        self._topic = topic
        self.heard: list[tuple[str, bytes]] = []
        self._changed = threading.Condition()
        self._link: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def connect(self) -> None:
        """Connect and subscribe; return once the broker has agreed."""
        link = socket.create_connection(self._address, timeout=10)
        name, topic = b"ear", self._topic.encode()
        # CONNECT: MQTT 3.1.1, the session stays, no keep-alive.
        link.sendall(_packet(0x10, b"\0\4MQTT\4\0\0\0" + struct.pack("!H", len(name)) + name))
        link.sendall(_packet(0x82, b"\0\1" + struct.pack("!H", len(topic)) + topic + b"\0"))
        stream = link.makefile("rb")
        first, _ = _read(stream.read)
        assert first == CONNACK
        self._link = link
        agreed = threading.Event()

        def read() -> None:
            with stream, contextlib.suppress(EOFError, OSError):
                while True:
                    kind, body = _read(stream.read)
                    if kind & 0xF0 == SUBACK:
                        agreed.set()
                    elif kind & 0xF0 == PUBLISH:
                        length = struct.unpack("!H", body[:2])[0]
                        with self._changed:
                            self.heard.append((body[2 : 2 + length].decode(), body[2 + length :]))
                            self._changed.notify_all()

        link.settimeout(None)
        self._reader = threading.Thread(target=read)
        self._reader.start()
        assert agreed.wait(10)

    def wait(self, number: int, timeout: float) -> bool:
        """Wait until so many messages have been heard in all; return whether they were."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.heard) >= number, timeout)

    def last_words(self) -> None:
        """Read what a broker that is gone has left, and end the connection."""
        if self._reader is not None:
            self._reader.join(10)
            assert not self._reader.is_alive()
        if self._link is not None:
            self._link.close()

    def close(self) -> None:
        """End the connection."""
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)
        self.last_words()


def _packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


def _read(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    """Read one packet: its first byte and its body."""

    def exactly(size: int) -> bytes:
        data = read(size)
        if len(data) < size:
            raise EOFError
        return data

    kind, length, shift = exactly(1)[0], 0, 0
    while True:
        digit = exactly(1)[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return kind, exactly(length)
