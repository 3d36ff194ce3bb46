"""Brokers to deliver to: one inside this process, a Mosquitto started for the run, or one that is there already."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Protocol

from lisiere.errors import ConfigError, Permanent
from lisiere_sim.loopthread import LoopThread

LOOPBACK = "127.0.0.1"
_START_S = 10.0
_STOP_S = 10.0

Address = tuple[str, int]


class Broker(Protocol):
    """What the runner asks of a broker.

    Attributes:
        protocol: which version of MQTT it speaks, as a device's configuration says it.
    """

    name: str
    protocol: str

    def start(self) -> Address:
        """Start it, wait until it listens, and return where.

        Raises:
            Permanent: it cannot be started or reached.
        """

    def stop(self) -> None:
        """Stop it if this object started it. Calling it twice does no harm."""


class EmbeddedBroker:
    """amqtt in a thread of this process, on loopback, on a port that the operating system picks."""

    name = "embedded"
    protocol = "3.1.1"  # amqtt waits for more of an MQTT 5 CONNECT that has a will, instead of refusing it

    def __init__(self) -> None:
        self._thread: LoopThread | None = None

    def start(self) -> Address:
        """Start; see `Broker.start`."""
        # It warns of every client that leaves without a DISCONNECT, which here is the purpose of the exercise.
        for logger in ("amqtt", "transitions"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        # Only here: a run against another broker needs no amqtt.
        from lisiere_sim.amqtt_broker import KeepingBroker

        async def begin() -> KeepingBroker:
            broker = KeepingBroker()
            await broker.start()
            return broker

        thread = LoopThread("embedded-broker")
        try:
            broker = thread.call(begin(), _START_S)
        except Exception as error:
            thread.stop()
            raise Permanent(f"The embedded broker does not start: {error}") from error
        self._thread, self._broker = thread, broker
        return LOOPBACK, broker.port()

    def stop(self) -> None:
        """Stop; see `Broker.stop`."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        try:
            thread.call(self._broker.shutdown(), _STOP_S)
        finally:
            thread.stop()


class MosquittoBroker:
    """A Mosquitto of this machine, as a child process on loopback that never drops what it has queued."""

    name = "mosquitto"
    protocol = "auto"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Address:
        """Start; see `Broker.start`."""
        program = find_mosquitto()
        if program is None:
            raise ConfigError("Mosquitto is not installed. Install it, or use --broker embedded.", "--broker")
        port = free_port()
        config = self._folder / "mosquitto.conf"
        config.write_text(
            f"listener {port} {LOOPBACK}\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n"
            "max_inflight_messages 0\nlog_dest stdout\n",
            encoding="utf-8",
        )
        log = self._folder / "mosquitto.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - Mosquitto, with a file written above
                [program, "-c", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            if _listens((LOOPBACK, port)):
                return LOOPBACK, port
            time.sleep(0.02)  # there is nothing to wait on but the port itself
        self.stop()
        raise Permanent(f"Mosquitto did not start: {log.read_text('utf-8', 'replace').strip()[-400:]}")

    def stop(self) -> None:
        """Stop; see `Broker.stop`."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class ExternalBroker:
    """A broker that somebody else runs, without a user name or TLS."""

    protocol = "auto"

    def __init__(self, host: str, port: int) -> None:
        self.name = f"{host}:{port}"
        self._address = (host, port)

    def start(self) -> Address:
        """Make sure that it is there; see `Broker.start`."""
        if not _listens(self._address):
            raise Permanent(f"No broker answers at {self.name}.")
        return self._address

    def stop(self) -> None:
        """Leave it running; see `Broker.stop`."""


def choose_broker(text: str, folder: Path) -> Broker:
    """Return the broker that `--broker` asks for.

    Args:
        text: `embedded`, `mosquitto` or HOST:PORT.
        folder: where a child's configuration and log may go.

    Raises:
        ConfigError: it is none of these.
    """
    if text == "embedded":
        return EmbeddedBroker()
    if text == "mosquitto":
        return MosquittoBroker(folder)
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"{text!r} is not a broker: write embedded, mosquitto or HOST:PORT.", "--broker")
    return ExternalBroker(host.strip("[]"), int(port))


def find_mosquitto() -> str | None:
    """Return the path of the mosquitto program; Debian puts it where only root's PATH looks."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(address: Address) -> bool:
    try:
        with socket.create_connection(address, timeout=2):
            return True
    except OSError:
        return False
