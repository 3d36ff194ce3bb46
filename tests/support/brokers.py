"""A real Mosquitto for tests: on loopback, on a port of its own, in memory."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from support import mosquitto


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running_mosquitto(settings: str = "allow_anonymous true", port: int | None = None) -> Iterator[int]:
    """Run Mosquitto with the given settings and yield its port; it is ended by its own process id.

    It runs as root where the tests do, since it would otherwise give up the right to read its files.
    """
    program = mosquitto()
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mosquitto.conf"
        config.write_text(f"listener {port} 127.0.0.1\nuser root\nmax_queued_messages 0\n{settings}\n")
        process = subprocess.Popen(
            [program, "-c", str(config), "-v"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        log: threading.Thread | None = None
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "running" in line:
                    break
            else:
                raise AssertionError(f"Mosquitto ended with {process.wait()}.")
            # A log that nobody reads would fill its pipe and stop the broker.
            log = threading.Thread(target=process.stderr.read)
            log.start()
            yield port
        finally:
            process.terminate()
            process.wait(10)
            if log is not None:
                log.join(10)
            assert process.stderr is not None
            process.stderr.close()
