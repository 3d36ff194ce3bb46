"""An RTSP camera for tests: motion JPEG as RTP, interleaved on the connection (RFC 2326, RFC 2435)."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator

_PACKET = 1200  # bytes of a picture in one packet
_TICKS = 90_000 // 25  # of RTP's clock, from picture to picture


class RtspCamera(socketserver.ThreadingTCPServer):
    """Plays `film()` to each client, one JPEG after the other, and hangs up at its end.

    Attributes:
        film: makes the pictures for the next client: baseline, 4:2:0, sides that 8 divides.
        players: how many clients have asked for it.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, film: Callable[[], Iterator[bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.film = film
        self.players = 0
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"rtsp://127.0.0.1:{self.server_address[1]}/stream"

    def process_request(self, request: object, client_address: object) -> None:
        """Keep the connection, to be cut at the end."""
        assert isinstance(request, socket.socket)
        self._open.add(request)
        super().process_request(request, client_address)

    def close(self) -> None:
        """End it, and every client's connection."""
        self.shutdown()
        self._thread.join(10)
        for connection in self._open:
            connection.close()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Whoever has gone is no error."""


class _Session(socketserver.StreamRequestHandler):
    server: RtspCamera

    def handle(self) -> None:
        """Answer until the client plays; then send pictures."""
        while (line := self.rfile.readline().decode()).strip():
            method, headers = line.split()[0], {}
            while (line := self.rfile.readline().decode()).strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            self._answer(method, headers)
            if method == "PLAY":
                self.server.players += 1
                self._play(self.server.film())
                return

    def _answer(self, method: str, headers: dict[str, str]) -> None:
        body, more = "", []
        if method == "OPTIONS":
            more = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
        elif method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:video\r\n"
            more = [
                "Content-Type: application/sdp",
                f"Content-Length: {len(body)}",
                f"Content-Base: {self.server.url}/",
            ]
        elif method == "SETUP":
            more = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 7"]
        elif method == "PLAY":
            more = ["Session: 7"]
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers.get('cseq', '0')}", *more]
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _play(self, film: Iterator[bytes]) -> None:
        number = 0
        for at, picture in enumerate(film):
            tables, width, height, scan = _parts(picture)
            for begin in range(0, len(scan), _PACKET):
                piece = scan[begin : begin + _PACKET]
                head = struct.pack(">I", begin) + bytes([1, 255, width // 8, height // 8])
                if begin == 0:
                    head += struct.pack(">HH", 0, len(tables)) + tables
                last = 0x80 if begin + len(piece) == len(scan) else 0
                rtp = struct.pack(">BBHII", 0x80, last | 26, number & 0xFFFF, at * _TICKS, 7) + head + piece
                self.wfile.write(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
                number += 1


def _parts(picture: bytes) -> tuple[bytes, int, int, bytes]:
    """A JPEG's quantisation tables, width, height, and the data of its scan."""
    tables, width, height, at = b"", 0, 0, 2
    while True:
        marker, length = picture[at + 1], int.from_bytes(picture[at + 2 : at + 4], "big")
        segment = picture[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xDB:
            tables += b"".join(segment[one + 1 : one + 65] for one in range(0, len(segment), 65))
        elif marker == 0xC0:
            height, width = struct.unpack(">HH", segment[1:5])
        elif marker == 0xDA:
            return tables, width, height, picture[at:-2]
