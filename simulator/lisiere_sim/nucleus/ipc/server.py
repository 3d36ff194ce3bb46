"""The server of the Core IPC: connections, their handshake, their streams, and the bounds of all these."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.call import Operation
from lisiere_sim.nucleus.flavour import Flavour
from lisiere_sim.nucleus.ipc.connection import Connection
from lisiere_sim.nucleus.ipc.journal import Journal

# What a Unix socket's address can hold, without the byte that ends it.
_PATH_MAX = 107
# For the calls that are under way to heed that they are cancelled.
_STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: clients at once; `each` of one component, and `strangers` that have not shown a token yet, so
            that neither leaves no room for the others.
        streams: open streams of one connection, subscriptions and calls under way together.
        calls: calls of one connection under way; more are not read before these are answered.
        unsent: bytes that wait for one client to read them; one that lets more gather is disconnected.
        connect_s: seconds that a client may take from connecting to having shown its token.
        linger_s: seconds that a client which is shown the door may take to read why.
    """

    connections: int = 512
    each: int = 128
    strangers: int = 128
    streams: int = 1024
    calls: int = 256
    unsent: int = 16 * 1024 * 1024
    connect_s: float = 10.0
    linger_s: float = 1.0


class IpcServer:
    """Answers the clients of one Unix socket with a set of operations.

    A client that breaks the protocol loses its own connection and nothing else happens.

    Args:
        socket: the socket's path.
        authenticate: returns the component that a token stands for, or None.
        operations: by their short names; what is not among them is answered with ServiceError.
    """

    def __init__(
        self,
        socket: Path,
        authenticate: Callable[[str], str | None],
        operations: Mapping[str, Operation],
        flavour: Flavour,
        journal: Journal,
        limits: Limits | None = None,
    ) -> None:
        self.socket = socket
        self.authenticate = authenticate
        self.operations = operations
        self.flavour = flavour
        self.journal = journal
        self.limits = limits or Limits()
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the path is too long for a socket, or another nucleus listens there.
        """
        path = str(self.socket)
        if len(path.encode()) > _PATH_MAX:
            raise ConfigError(f"{path} is too long for a socket ({_PATH_MAX} bytes); choose a shorter root.", "--root")
        if _answers(path):
            raise ConfigError(f"Another nucleus listens on {path}; stop it, or choose another root.", "--root")
        loop = asyncio.get_running_loop()
        # A socket that nobody listens on any more is replaced.
        self._server = await loop.create_unix_server(lambda: Connection(self), path, backlog=self.limits.connections)
        # A component may run as another user. Its token says who it is; the folder's rights say who comes this far.
        self.socket.chmod(0o666)

    async def stop(self) -> None:
        """End all connections and take the socket away."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        gone = [connection.gone for connection in self.connections]
        for connection in list(self.connections):
            connection.end()
        if gone:
            await asyncio.wait(gone, timeout=_STOP_S)
        self.socket.unlink(missing_ok=True)

    def disconnect(self, component: str) -> None:
        """End all connections of a component, which has ended or whose token is worth nothing any more."""
        for connection in [one for one in self.connections if one.component == component]:
            connection.end()


def _answers(path: str) -> bool:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
