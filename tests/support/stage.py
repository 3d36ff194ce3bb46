"""A device that is `lisiere run`, a Mosquitto that may be killed, and a subscriber that hears all of it.

Mosquitto passes a message on before it acknowledges it: to a subscriber that is there, or into a session that it read
from disk when it started. So it may be killed whenever the subscriber listens, and what it had acknowledged has been
heard.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lisiere.spool import SpoolReader
from support import REPOSITORY, tiny
from support.brokers import Mosquitto
from support.ear import Ear

WINDOW = 16
TOPIC = "lisiere/v1/pi-1/"
BROKER = """allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval 0
queue_qos0_messages true
max_inflight_messages 0
"""


class Host:
    """Starts and kills `lisiere run`, each a process of its own."""

    def __init__(self, config: Path, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._stderr = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=REPOSITORY / "tests",
            env=environment,
        )
        self.pid = 0

    def start(self) -> None:
        self.pid = self._ask(["run", str(self._config)])

    def kill(self) -> None:
        assert self._ask({"kill": self.pid}) == -signal.SIGKILL, "The device ended before it was killed."

    def end(self) -> int:
        """Ask the device to stop, and return how it ended."""
        os.kill(self.pid, signal.SIGTERM)
        return self._ask({"end": self.pid})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)
        self._stderr.close()

    def _ask(self, order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def configuration(
    folder: Path, port: int, per_second: float, rows: int = 200_000, transport: Mapping[str, float] | None = None
) -> Path:
    """Write the configuration of a device with so many results a second (0: as many as it can), and its readings.

    Args:
        rows: of readings, four to a result.
        transport: settings of the connection; without limits on its speed unless given.
    """
    with (folder / "hum.csv").open("w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(["time", "vibration"])
        lines.writerows([f"{1_700_000_000 + at / 10:.1f}", at % 7 / 7] for at in range(rows))
    file = folder / "device.yaml"
    limits = {"publishes_per_s": 0.0, "kib_per_s": 0.0, **(transport or {})}
    pipeline = {
        "name": "hum",
        "source": {"type": "csv", "path": "hum.csv", "speed": per_second * 0.4},  # a result is four rows, 0.1 s apart
        "model": str(tiny.detector(folder / "model")),
        "backend": "onnx",
    }
    settings = {
        "device": "pi-1",
        "transport": {"type": "mqtt", "host": "127.0.0.1", "port": port, "window": WINDOW, **limits},
        "stop_drain_s": 120,
        "health_interval_s": 0.2,
        "pipelines": [pipeline],
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@dataclass(frozen=True)
class Stage:
    """The three, and the folder that they are in."""

    folder: Path
    broker: Mosquitto
    ear: Ear
    host: Host

    @property
    def log(self) -> str:
        """The end of what the device logged."""
        return (self.folder / "device.log").read_text()[-3000:]


@contextlib.contextmanager
def stage(
    folder: Path,
    per_second: float,
    environment: Mapping[str, str] | None = None,
    transport: Mapping[str, float] | None = None,
    rows: int = 200_000,
) -> Iterator[Stage]:
    """A broker that has the subscriber's session on disk, the subscriber, and what runs the device.

    Args:
        per_second: results.
        environment: of the device.
        transport: settings of the connection.
        rows: of readings, four to a result: the device ends when they do.
    """
    broker = Mosquitto(folder, BROKER.format(folder=folder))
    ear = Ear(broker.port, TOPIC + "#")
    config = configuration(folder, broker.port, per_second, rows, transport)
    host = Host(config, folder / "device.log", environment)
    try:
        broker.start()
        ear.connect()
        broker.stop()  # which writes the session down; it is never written again
        ear.last_words()
        broker.start()
        ear.connect()
        yield Stage(folder, broker, ear, host)
    finally:
        host.close()
        ear.close()
        broker.stop()


def check(staged: Stage) -> int:
    """Hold what was heard against the spool: nothing lost, order kept, at most a window twice for each connection lost.

    The device must have ended after it delivered all. Returns how many results were accepted.
    """
    staged.ear.wait(10**9, 0.2)
    reader = SpoolReader(staged.folder / "spool")
    epoch, highest, waiting = reader.epoch, reader.highest, sum(reader.waiting().values())
    counts = reader.counts()["hum"]
    reader.close()
    assert waiting == 0, f"{waiting} results still wait."
    first: dict[str, list[int]] = {}  # by topic, the seqs of first deliveries
    seen: dict[int, tuple[int, Any]] = {}  # seq -> in which connection it was heard last, and its result
    explained: set[int] = set()
    twice: Counter[int] = Counter()  # by the connection whose end made a message come again
    connection = 0
    for topic, payload in staged.ear.heard:
        name, message = topic.removeprefix(TOPIC), json.loads(payload)
        if name == "status":
            connection += message["state"] == "online"
        if not name.startswith(("result/", "backlog/", "gap")):
            continue
        assert message["epoch"] == epoch
        seq, body = message["seq"], message.get("result", message.get("ranges"))
        if seq in seen:
            before, same = seen[seq]
            assert body == same, f"The seq {seq} stands for two results."
            assert before != connection, f"The seq {seq} came twice in one connection."
            twice[before] += 1
        else:
            first.setdefault(name, []).append(seq)
        seen[seq] = connection, body
        if name == "gap":
            explained.update(seq for low, high in message["ranges"] for seq in range(low, high + 1))
    lost = [seq for seq in range(1, highest + 1) if seq not in seen and seq not in explained]
    assert not lost, f"{len(lost)} of {highest} results are lost, first {lost[0]}."
    for name, seqs in first.items():
        assert seqs == sorted(seqs), f"First deliveries on {name} are out of order."
    assert counts.accepted == counts.gone
    heard = len(seen) - len(first.get("gap", ())) + sum(twice.values())
    assert counts.sent + WINDOW * (connection - 1) >= heard, f"{heard} results came, and {counts.sent} were sent."
    most = max(twice.values(), default=0)
    print(  # noqa: T201 - the figures of docs/TESTING.md
        f"{counts.accepted} accepted, none lost, {sum(twice.values())} twice, at most {most} for one of {connection} "
        "connections"
    )
    assert most <= WINDOW, f"A kill made {most} messages come twice; {WINDOW} may be under way."
    return counts.accepted
