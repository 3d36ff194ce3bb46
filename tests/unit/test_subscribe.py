"""`lisiere subscribe`, as a child process and by its lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere.cli import main
from lisiere.subscribe import line
from lisiere.subscriber import (
    Anomaly,
    Classification,
    Detection,
    Forecast,
    Link,
    Missed,
    NewEpoch,
    Result,
    Status,
    Unreadable,
)
from lisiere.values import DetectedObject, InputInfo
from lisiere_sim.broker import Address, free_port
from support.brokers import running_mosquitto
from support.publisher import Device
from support.wire import Envelopes


@pytest.fixture
def broker() -> Iterator[Address]:
    with running_mosquitto() as port:
        yield "127.0.0.1", port


@pytest.fixture
def device(broker: Address) -> Iterator[Device]:
    made = Device(broker)
    made.send("status", made.make.status(), retain=True)  # what a subscriber prints first: then it is there
    yield made
    made.close()


class Child:
    """The command as its users start it."""

    def __init__(self, broker: Address, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lisiere", "subscribe", f"{broker[0]}:{broker[1]}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self, number: signal.Signals | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=20)
        return self.process.returncode


def test_results_go_to_one_stream_and_what_was_missed_to_the_other(broker: Address, device: Device) -> None:
    with Child(broker) as child:
        assert child.err.readline() == "sim is online.\n"
        device.results(1)
        assert child.out.readline() == "2026-01-31T07:36:16.123Z sim/dock: 7 (0.981)\n"
        device.send("gap", device.make.gap(3, [(2, 2)], {"dock": 1}))
        assert child.err.readline().startswith("You missed 1 result of `dock` from sim between ")
        assert child.end(signal.SIGTERM) == 3


def test_events_and_scores_are_told_in_sentences(broker: Address, device: Device) -> None:
    with Child(broker) as child:
        assert child.err.readline() == "sim is online.\n"
        device.send("event/dock", device.make.event(1))
        assert child.out.readline() == ("2026-01-31T07:36:16.123Z sim/dock: new 7, since 2026-01-31T07:36:15.000Z\n")
        device.send("score/dock", device.make.score(2))
        assert child.out.readline() == (
            "2026-01-31T07:36:16.123Z sim/dock: the forecast of 2026-01-31T07:00:00.000Z was off by 0.500 (level), "
            "skill 0.50\n"
        )
        assert child.end(signal.SIGTERM) == 0


def test_json_is_one_object_a_line(broker: Address, device: Device, tmp_path: Path) -> None:
    with Child(broker, "--json", "--device", "sim", "--memory", str(tmp_path / "seen.json")) as child:
        assert json.loads(child.out.readline())["schema"] == "lisiere.status/1"
        device.results(1)
        assert json.loads(child.out.readline()) == json.loads(device.make.result(1))
        device.send("gap", device.make.gap(3, [(2, 2)], {"dock": 1}))
        missed = json.loads(child.out.readline())
        assert (missed["event"], missed["reason"], missed["ranges"]) == ("missed", "spool_full", [[2, 2]])
        assert child.end(signal.SIGINT) == 3
        assert (tmp_path / "seen.json").exists()


def test_it_ends_after_so_many(broker: Address, device: Device) -> None:
    with Child(broker, "--count", "2") as child:
        child.err.readline()
        device.results(1, 2, 3)
        assert child.end() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([f"127.0.0.1:{free_port()}"], 1, "cannot be reached"),
        (["broker:none"], 2, "is no broker"),
        (["broker", "--certificate", "x"], 2, "go together"),
        (["broker", "--ca", "/nowhere"], 2, "cannot be used"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["subscribe", *arguments]) == code
    assert said in capsys.readouterr().err


def result(**changes: Any) -> Result:
    return msgspec.json.decode(Envelopes(changes={"result": {}, **changes}).result(1), type=Result)


def test_every_event_has_its_line() -> None:
    anomaly = msgspec.structs.replace(result(replay=True), result=Anomaly(state="no_data", score=None, threshold=2.0))
    assert line(anomaly) == "2026-01-31T07:36:16.123Z sim/dock: no_data (no score, threshold 2.000) (late)"
    gone = msgspec.structs.replace(anomaly, input=InputInfo(faults=("gap", "stuck:flow")))
    assert str(line(gone)).endswith("(no score, threshold 2.000); input: gap, stuck:flow (late)")
    label = Classification(label="7", score=0.6, top=[], decided=False, set=["7", "1"])
    doubtful = msgspec.structs.replace(result(), result=label)
    assert line(doubtful) == "2026-01-31T07:36:16.123Z sim/dock: 7 (0.600, not decided) or 1"
    cat = DetectedObject(label="cat", score=0.9, box=(0.0, 0.0, 1.0, 1.0))
    seen = msgspec.structs.replace(result(), result=Detection(objects=[cat], width=9, height=9))
    assert line(seen) == "2026-01-31T07:36:16.123Z sim/dock: cat (0.900)"
    forecast = Forecast(horizon=["a", "b"], quantiles={"0.1": [0.0, 0.0], "0.5": [1.0, 2.0]})
    unsure = msgspec.structs.replace(result(ts_quality="unsynced"), result=forecast)
    assert line(unsure) == "2026-01-31T07:36:16.123Z (unsynced) sim/dock: 1.000 at a, 2.000 at b"
    missed = Missed(device="d", epoch="e", reason="new", ranges=[(1, 2)], count=2, counts={"a": 1, "b": 1})
    assert line(missed) == "You missed 2 results (1 of `a` and 1 of `b`) from d (seq 1 to 2), for the reason 'new'."
    assert line(NewEpoch(device="d", epoch="e", before="c")) == "d has a new spool; its numbers start anew."
    assert line(Unreadable(topic="t", why="Why.")) == "A message on t was left out. Why."
    assert line(Link(connected=False, why="Why.")) == "The connection was lost. Why."
    assert line(Link(connected=True)) == "Connected again."
    status = Status(device="d", state="offline", epoch="e", ts="x", version="1")
    assert line(status) == "d is offline."
