"""A real Mosquitto for tests: on loopback, on a port of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from support import mosquitto


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Mosquitto:
    """A Mosquitto that is started, ended and killed; it keeps its port and its settings.

    It runs as root where the tests do, since it would otherwise give up the right to read its files.
    """

    def __init__(self, folder: Path, settings: str = "allow_anonymous true", port: int | None = None) -> None:
        self._program = mosquitto()
        self.port = port or free_port()
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nuser root\nmax_queued_messages 0\n{settings}\n")
        self._process: subprocess.Popen[str] | None = None
        self._log: threading.Thread | None = None

    def start(self) -> None:
        """Start, and return once it takes connections."""
        self._process = subprocess.Popen(
            [self._program, "-c", str(self._config), "-v"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "running" in line:
                break
        else:
            raise AssertionError(f"Mosquitto ended with {self._process.wait()}.")
        # A log that nobody reads would fill its pipe and stop the broker.
        self._log = threading.Thread(target=self._process.stderr.read)
        self._log.start()

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._end(lambda process: process.kill())

    def stop(self) -> None:
        """End it by its own process id; nothing where it does not run."""
        self._end(lambda process: process.terminate())

    def _end(self, end: Callable[[subprocess.Popen[str]], None]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for _ in range(10):  # Mosquitto misses a signal that comes between its last look for one and its wait
            end(process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
                break
        assert process.poll() is not None, "Mosquitto does not end."
        if self._log is not None:
            self._log.join(10)
            self._log = None
        assert process.stderr is not None
        process.stderr.close()


@contextlib.contextmanager
def running_mosquitto(settings: str = "allow_anonymous true", port: int | None = None) -> Iterator[int]:
    """Run Mosquitto with the given settings, in memory, and yield its port."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Mosquitto(Path(folder), settings, port)
        try:
            broker.start()
            yield broker.port
        finally:
            broker.stop()
