"""Pseudo-terminals: a serial line without hardware."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import tty
from collections.abc import Iterator


class Terminal:
    """A serial port at `path`, and what the device at the other end writes to it."""

    def __init__(self) -> None:
        self._other, self._own = os.openpty()
        tty.setraw(self._own)
        tty.setraw(self._other)
        self.path = os.ttyname(self._own)

    def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._other, data) :]

    def hang_up(self) -> None:
        """Take the device away, as pulling its plug does."""
        if self._other >= 0:
            os.close(self._other)
            self._other = -1

    def close(self) -> None:
        self.hang_up()
        os.close(self._own)


@contextlib.contextmanager
def null_modem() -> Iterator[tuple[str, str]]:
    """Two serial ports, each of which gets what is written to the other."""
    pairs = [os.openpty() for _ in range(2)]
    for pair in pairs:
        for end in pair:
            tty.setraw(end)
    ended, end = os.pipe()
    to = {pairs[0][0]: pairs[1][0], pairs[1][0]: pairs[0][0]}

    def relay() -> None:
        while True:
            ready, _, _ = select.select([ended, *to], [], [])
            if ended in ready:
                return
            for one in ready:
                os.write(to[one], os.read(one, 4096))

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        yield os.ttyname(pairs[0][1]), os.ttyname(pairs[1][1])
    finally:
        os.write(end, b".")
        thread.join(10)
        for descriptor in (ended, end, *pairs[0], *pairs[1]):
            os.close(descriptor)
