"""Lines of JSON on a Unix or TCP socket that the device listens on."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import Rejected, Retryable
from lisiere.settings.sensors import SocketSource
from lisiere.sources.base import FaultReport
from lisiere.sources.records import Records
from lisiere.values import Reading

LINE_MAX_BYTES = 1 << 20
CLIENTS_MAX = 64
_POLL_S = 0.2
_CHUNK = 65_536
_CANNOT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class JsonLines:
    """Yields the readings that clients send. Many may be connected; a line that is wrong costs only itself.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: SocketSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._listen = config.listen
        self._clock = clock
        self._fault = fault
        self._records = Records(channels, {name: name for name in channels}, name, config.listen, fault)
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
                        if not self._accept(server, selector, buffers):
                            stop.wait(_POLL_S)  # or it would be asked again at once, for ever
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
    ) -> bool:
        """Let one client in; return False where this machine cannot, as when too many files are open."""
        try:
            client, _ = server.accept()
        except OSError as error:
            if error.errno not in _CANNOT:
                return True  # it left again before it was let in
            self._fault("client_not_accepted", f"{self._listen} cannot let a client in: {error.strerror}.")
            return False
        if len(buffers) >= CLIENTS_MAX:
            self._fault("too_many_clients", f"{self._listen} has {CLIENTS_MAX} clients already.")
            client.close()
            return True
        client.setblocking(False)
        buffers[client] = bytearray()
        selector.register(client, selectors.EVENT_READ)
        return True

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
                    yield from self._records.parse(bytes(line), self._clock.now())
                except Rejected as error:
                    self._fault("line_unusable", f"A line on {self._listen} cannot be used: {error}")


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
