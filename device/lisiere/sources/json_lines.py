"""Lines of JSON on a Unix or TCP socket that the device listens on."""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lisiere.clock import Clock, parse_ts
from lisiere.errors import Rejected, Retryable
from lisiere.settings.sensors import SocketSource
from lisiere.sources.base import FaultReport
from lisiere.values import Reading

LINE_MAX_BYTES = 1 << 20
ROWS_MAX = 65_536  # in one line
CLIENTS_MAX = 64
STEP_MAX_S = 1e9
_POLL_S = 0.2
_CHUNK = 65_536


class JsonLines:
    """Yields the readings that clients send. Many may be connected; a line that is wrong costs only itself.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: SocketSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._listen = config.listen
        self._name = name
        self._channels = channels
        self._clock = clock
        self._fault = fault
        self.address: Any = None  # what the socket is bound to, once it listens

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Listen and yield until stopped; see `Source.items`."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            server = stack.enter_context(self._bind(stack))
            selector.register(server, selectors.EVENT_READ)
            buffers: dict[socket.socket, bytearray] = {}
            stack.callback(_close_all, buffers)
            while not stop.is_set():
                for key, _ in selector.select(_POLL_S):
                    if key.fileobj is server:
                        self._accept(server, selector, buffers)
                    else:
                        client = key.fileobj
                        assert isinstance(client, socket.socket)  # noqa: S101 - nothing else is registered
                        yield from self._receive(client, selector, buffers)

    def _bind(self, stack: contextlib.ExitStack) -> socket.socket:
        kind, _, where = self._listen.partition(":")
        try:
            if kind == "unix":
                path = Path(where)
                path.parent.mkdir(parents=True, exist_ok=True)
                # Left behind by a process that was killed; anything but a socket is somebody's file, and one that
                # answers is somebody's socket.
                if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(where):
                    path.unlink()
                server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    server.bind(where)
                except OSError:
                    server.close()
                    raise
                stack.callback(lambda: path.unlink(missing_ok=True))
                path.chmod(0o660)
            else:
                host, _, port = where.rpartition(":")
                server = socket.create_server((host, int(port)))
            server.listen()
        except OSError as error:
            raise Retryable(f"{self._listen} cannot be listened on: {error.strerror or error}.") from error
        server.setblocking(False)
        self.address = server.getsockname()
        return server

    def _accept(
        self, server: socket.socket, selector: selectors.BaseSelector, buffers: dict[socket.socket, bytearray]
    ) -> None:
        try:
            client, _ = server.accept()
        except OSError:
            return  # it left again before it was let in
        if len(buffers) >= CLIENTS_MAX:
            self._fault("too_many_clients", f"{self._listen} has {CLIENTS_MAX} clients already.")
            client.close()
            return
        client.setblocking(False)
        buffers[client] = bytearray()
        selector.register(client, selectors.EVENT_READ)

    def _receive(
        self, client: socket.socket, selector: selectors.BaseSelector, buffers: dict[socket.socket, bytearray]
    ) -> Iterator[Reading]:
        try:
            chunk = client.recv(_CHUNK)
        except OSError:
            chunk = b""
        buffer = buffers[client]
        buffer += chunk
        *lines, rest = buffer.split(b"\n")
        if not chunk or len(rest) > LINE_MAX_BYTES:
            if len(rest) > LINE_MAX_BYTES:
                self._fault("line_too_long", f"A line on {self._listen} exceeds {LINE_MAX_BYTES} bytes.")
            elif rest:
                self._fault("line_cut_off", f"A client of {self._listen} left in the middle of a line.")
            selector.unregister(client)
            del buffers[client]
            client.close()
        else:
            buffers[client] = rest
        for line in lines:
            if line.strip():
                try:
                    yield from self._parse(bytes(line))
                except Rejected as error:
                    self._fault("line_unusable", f"A line on {self._listen} cannot be used: {error}")

    def _parse(self, line: bytes) -> list[Reading]:
        try:
            document = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(f"{error}.") from error
        if not isinstance(document, dict):
            raise Rejected("it is not a JSON object.")
        stamp = document.get("ts")
        if isinstance(stamp, bool) or not isinstance(stamp, int | float | str | None):
            raise Rejected("`ts` is neither a number nor text.")
        ts = self._clock.now() if stamp is None else parse_ts(str(stamp))
        absent = [name for name in self._channels if name not in document]
        if len(absent) == len(self._channels):
            raise Rejected(f"it has none of the channels {', '.join(absent)}.")
        columns = [document.get(name) for name in self._channels]
        if not any(isinstance(column, list) for column in columns):
            return [Reading(ts, tuple(self._number(value) for value in columns), self._name)]
        step = document.get("step_s")
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= STEP_MAX_S:
            raise Rejected("lists of numbers need `step_s`, the seconds between them, above 0 and at most 1e9.")
        length = max(len(column) for column in columns if isinstance(column, list))
        if length > ROWS_MAX or any(not isinstance(column, list) or len(column) != length for column in columns):
            raise Rejected(f"its channels are not lists of one length of at most {ROWS_MAX}.")
        return [
            Reading(ts + at * step, tuple(self._number(value) for value in row), self._name)
            for at, row in enumerate(zip(*columns, strict=True))
        ]

    def _number(self, value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # JSON's whole numbers have no bound
                return float(value)
        self._fault("not_a_number", f"{self._listen} got {str(value)[:40]!r} where a number belongs.")
        return math.nan


def _close_all(clients: dict[socket.socket, bytearray]) -> None:
    for client in clients:
        client.close()


def _answers(path: str) -> bool:
    """Whether a process listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # busy, or not ours to touch
    return True
