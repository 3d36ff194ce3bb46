"""The line: a socket for paho whose small reads and writes cost no call into the system each.

paho reads an acknowledgement in three pieces and sends every message by itself. Those calls were most of what
delivering a message cost.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

import paho.mqtt.client as paho

_READ_BYTES = 1 << 16
_LOT_BYTES = 1 << 13  # leave at once, so that the other end has work while more is made


class Line:
    """A non-blocking socket with a buffer on either side. For one thread.

    What is sent leaves by `flush`. An error while flushing is raised once what had come before it is read.

    Args:
        link: a connected socket, or one of TLS.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._read = b""
        self._at = 0  # of what was read, how much has been taken
        self._unsent = bytearray()
        self._error: OSError | None = None

    @property
    def unsent(self) -> bool:
        """Whether something has yet to leave."""
        return bool(self._unsent) and self._error is None

    def fileno(self) -> int:
        """Return the descriptor, to wait for."""
        return self._link.fileno()

    def setblocking(self, flag: bool) -> None:
        """Set whether the socket blocks: it must not."""
        self._link.setblocking(flag)

    def send(self, data: bytes) -> int:
        """Take all of it, to be sent by `flush` at the latest."""
        self._unsent += data
        if len(self._unsent) >= _LOT_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Send what the socket takes; the rest stays."""
        try:
            while self._unsent and self._error is None:
                del self._unsent[: self._link.send(self._unsent)]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._error = error

    def recv(self, size: int) -> bytes:
        """Return at most so many bytes; none when the other end has closed.

        Raises:
            BlockingIOError: nothing has come.
            OSError: the connection is lost.
        """
        if self._at == len(self._read):
            self._read, self._at = b"", 0
            try:
                self._read = self._link.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise self._error or BlockingIOError from None
        taken = self._read[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def pending(self) -> int:
        """Return how many bytes can be read although the descriptor has none, or whether an error is to be raised."""
        inside = self._link.pending() if isinstance(self._link, ssl.SSLSocket) else 0
        return len(self._read) - self._at + inside + (self._error is not None)

    def close(self) -> None:
        """Send what can be sent, and close the socket."""
        with contextlib.suppress(OSError):
            self.flush()
        self._link.close()


class LineClient(paho.Client):  # type: ignore[misc]  # paho's is untyped here
    """paho's client on a `Line`."""

    def _create_socket(self) -> Any:
        link = super()._create_socket()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a `Line` gathers by itself
        return Line(link)
