"""The device under test: what every kind of it can do, `lisiere run` as a child process, and what a spool says."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import msgspec
import yaml
from msgspec import Struct

from lisiere.errors import Permanent
from lisiere.spool import Counts, SpoolReader
from lisiere_sim import scenario
from lisiere_sim.broker import Address

STOP_DRAIN_S = 15.0
_STOP_GRACE_S = 15.0


class Device(Protocol):
    """What the runner asks of a device, whatever it runs in.

    Attributes:
        spool: the folder of its spool.
    """

    spool: Path

    def start(self) -> None:
        """Start it; its birth message says when it is there."""

    def kill(self) -> None:
        """End the device without warning, as a power cut does."""

    def revive(self) -> None:
        """Have it started again after `kill`."""

    def alive(self) -> bool:
        """Whether it has been started and not ended."""

    def stop(self) -> int:
        """Ask it to stop, wait while it drains, and return its exit code.

        Raises:
            Permanent: it did not end in time; it has been killed.
        """

    def check(self) -> None:
        """Make sure that it is alive.

        Raises:
            Permanent: it has ended by itself.
        """

    def last_words(self) -> str:
        """Return the end of its log, to put behind a message."""

    def close(self) -> None:
        """End whatever is left of it, at once. Calling it twice does no harm."""


def pipelines_config(
    device: scenario.Device, sources: dict[str, dict[str, Any]], models: dict[str, Path]
) -> list[dict[str, Any]]:
    """Build the `pipelines` of a device's configuration.

    Args:
        device: what runs.
        sources: what each pipeline reads, by its name.
        models: the folder of each pipeline's model, by its name.
    """
    return [
        {
            "name": pipeline.name,
            "source": sources[pipeline.name],
            "model": str(models[pipeline.name]),
            "queue": msgspec.to_builtins(pipeline.queue),
            **({} if pipeline.decision is None else {"decision": msgspec.to_builtins(pipeline.decision)}),
            **({} if pipeline.window is None else {"window": _given(pipeline.window)}),
        }
        for pipeline in device.pipelines
    ]


def _given(part: Struct) -> dict[str, Any]:
    """What of a part is not as it is by default: components are configured by what is set alone."""
    return {name: value for name, value in msgspec.to_builtins(part).items() if value != getattr(type(part)(), name)}


def device_config(
    name: str, pipelines: list[dict[str, Any]], link: Address, prefix: str, protocol: str = "auto"
) -> dict[str, Any]:
    """Build the configuration document of a device that connects by itself.

    Args:
        name: the device's.
        pipelines: see `pipelines_config`.
        link: where the device finds its broker: the proxy.
        prefix: the first levels of its topics.
        protocol: which version of MQTT the broker speaks.
    """
    return {
        "device": name,
        "topic_prefix": prefix,
        "pipelines": pipelines,
        # Short, so that a stalled link is noticed within a scenario.
        "transport": {
            "type": "mqtt",
            "host": link[0],
            "port": link[1],
            "protocol": protocol,
            "keepalive_s": 10,
            "connect_timeout_s": 3,
            "ack_timeout_s": 5,
            # The broker is ours and discards nothing.
            "publishes_per_s": 0,
            "kib_per_s": 0,
        },
        "spool": {"path": "spool"},
        "health_interval_s": 5,
        "metrics_interval_s": 5,
        "retry_max_s": 2,
        "stop_drain_s": STOP_DRAIN_S,
    }


class DeviceProcess:
    """`lisiere run` in a child process that can be killed and started again.

    Args:
        folder: its working folder: config.yaml, device.log, spool/.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder = folder
        self._config = folder / "config.yaml"
        self._config.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        self.log = folder / "device.log"
        self.spool = folder / "spool"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process. Its output is appended to the log."""
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with a file written above
                [sys.executable, "-m", "lisiere", "run", str(self._config)],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the simulator, which then stops the device properly
            )

    def kill(self) -> None:
        """End it without warning, as a power cut does to a process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def revive(self) -> None:
        """Start it again; see `Device.revive`."""
        self.start()

    def alive(self) -> bool:
        """Whether the process is there; see `Device.alive`."""
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """End it; see `Device.close`."""
        self.kill()

    def stop(self) -> int:
        """Ask it to stop, wait while it drains, and return its exit code.

        Raises:
            Permanent: it did not end in time; it has been killed.
        """
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_DRAIN_S + _STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Permanent(
                f"The device did not stop within {STOP_DRAIN_S + _STOP_GRACE_S:g} s of SIGTERM.{self.last_words()}"
            ) from None

    def check(self) -> None:
        """Make sure that it is alive.

        Raises:
            Permanent: it has ended by itself.
        """
        if self._process is not None and (code := self._process.poll()) is not None:
            raise Permanent(f"The device ended by itself with exit code {code}.{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log; see `Device.last_words`."""
        return last_lines(self.log)


def last_lines(log: Path) -> str:
    """Return the end of a log, to put behind a message; nothing when there is none."""
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.is_file() else []
    return "".join(f"\n  {line}" for line in lines[-8:])


class SpoolView:
    """What the device's spool says, read-only; empty for as long as there is none. For one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reader: SpoolReader | None = None

    def counts(self) -> dict[str, Counts]:
        """Return what was accepted, acknowledged and evicted, by pipeline."""
        reader = self._open()
        return reader.counts() if reader else {}

    def waiting(self) -> dict[str, int]:
        """Return how many results wait, by pipeline."""
        reader = self._open()
        return reader.waiting() if reader else {}

    @property
    def epoch(self) -> str:
        """The id of the spool; empty when there is none."""
        reader = self._open()
        return reader.epoch if reader else ""

    @property
    def highest(self) -> int:
        """The highest seq ever given."""
        reader = self._open()
        return reader.highest if reader else 0

    def close(self) -> None:
        """Let go of the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> SpoolReader | None:
        if self._reader is None:
            try:
                self._reader = SpoolReader(self._folder)
            except Permanent:
                return None  # the device has not made it yet
        return self._reader
