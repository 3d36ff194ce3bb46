"""Log files with a bound, and the way of a child's output into one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

_READ = 1 << 16
_LINE_MAX = 16 * 1024
_LAST_READS = 16
# What a child may write in a second, on average. One that writes more is slowed by its own pipe.
BYTES_PER_S = 2 * 1024 * 1024
FILE_BYTES = 10 * 1024 * 1024


class LogFile:
    """Appends lines to a file, which is renamed to `NAME.1` when it is full: two files' worth are kept.

    What the disk does not take is lost, and the next line that it takes says how much that was.

    Args:
        size: bytes at which it is full.
    """

    def __init__(self, file: Path, size: int = FILE_BYTES) -> None:
        self._file = file
        self._size = size
        self._stream = file.open("ab", buffering=0)
        self._lost = 0
        self._why = ""

    def write(self, kind: str, lines: list[bytes]) -> None:
        """Append lines, each with the time (UTC) and where it comes from."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = f"{now} {kind}: ".encode()
        text = b"".join(head + line + b"\n" for line in lines)
        if self._lost:
            text = f"{now} nucleus: {self._lost} lines before this one were lost: {self._why}\n".encode() + text
        try:
            self._stream.write(text)
            if self._stream.tell() >= self._size:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # somebody has taken it away
                    self._file.replace(self._file.with_name(f"{self._file.name}.1"))
                full, self._stream = self._stream, self._file.open("ab", buffering=0)
                full.close()
        except OSError as error:
            self._lost += len(lines)
            self._why = error.strerror or repr(error)
        else:
            self._lost = 0

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Output:
    """Reads one pipe of a child line by line, no faster than the bound, and hands the lines on.

    Args:
        descriptor: the reading end; closed at the end of the child's output.
        take: called with lines, without their ends.
        rate: bytes a second.
    """

    def __init__(self, descriptor: int, take: Callable[[list[bytes]], None], rate: float = BYTES_PER_S) -> None:
        self._descriptor = descriptor
        self._take = take
        self._rate = rate
        self._rest = b""
        self._open = True
        self._pause: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def close(self) -> None:
        """Take what is left in the pipe and close it. Calling it twice does no harm."""
        for _ in range(_LAST_READS):
            if not self._open:
                return
            self._read(last=True)
        self._end()

    def _read(self, last: bool = False) -> None:
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            if last:
                self._end()
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_MAX:
            lines.append(self._rest)
            self._rest = b""
        if lines:
            self._take([line[:_LINE_MAX] for line in lines])
        if not last:
            self._loop.remove_reader(self._descriptor)
            self._pause = self._loop.call_later(len(data) / self._rate, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._open:
            self._loop.add_reader(self._descriptor, self._read)

    def _end(self) -> None:
        if not self._open:
            return
        self._open = False
        if self._pause is not None:
            self._pause.cancel()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        if self._rest:
            self._take([self._rest])
            self._rest = b""
