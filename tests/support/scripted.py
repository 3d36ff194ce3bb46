"""A broker of the tests' own making, for answers that no real one gives when it is asked to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

CONNECT, SUBSCRIBE = 1, 8
_PATIENCE_S = 10


class Scripted:
    """A broker of one's own making: it answers each packet as a function says, which may close the connection.

    Attributes:
        levels: the protocol level of each CONNECT that came.
    """

    def __init__(self, answer: Callable[[int, bytes], bytes | None]) -> None:
        self._answer = answer
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.levels: list[int] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE_S)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            with link, link.makefile("rb") as stream:
                while head := stream.read(1):
                    length = shift = 0
                    while (byte := stream.read(1)[0]) & 0x80:
                        length, shift = length | (byte & 0x7F) << shift, shift + 7
                    body = stream.read(length | byte << shift)
                    if head[0] >> 4 == CONNECT:
                        self.levels.append(body[6])
                    answer = self._answer(head[0] >> 4, body)
                    if answer is None:
                        break
                    link.sendall(answer)
