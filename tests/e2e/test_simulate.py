"""The simulator against the real device process: whatever happens to the network, nothing is lost."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from paho.mqtt import publish

from lisiere.spool import SpoolReader
from lisiere_sim.broker import Address, MosquittoBroker, find_mosquitto
from support import REPOSITORY, require

HAS_DLR = platform.machine() == "x86_64" and sys.platform == "linux"

PIPELINES = [
    {
        "name": "dock",
        "model": "digits",
        "input": {"kind": "camera", "frames": 40, "fps": 10, "freezes": [{"at_s": 7.5, "length_s": 3}]},
    },
    {
        "name": "pump",
        "model": "pump",
        "input": {
            "kind": "pump",
            "faults": [{"kind": "bearing", "at_s": 1, "length_s": 6}],
            "gaps": [{"at_s": 7.5, "length_s": 2.4}],
        },
        "window": {"idle_s": 0.5},
    },
    {"name": "co2", "model": "co2", "input": {"kind": "csv", "rows_per_s": 25}},
]


SIM = {"name": "sim", "pipelines": PIPELINES}


@dataclass
class Outcome:
    """What one run of `lisiere simulate` left behind."""

    code: int
    report: dict[str, Any]
    stdout: str
    stderr: str
    folder: Path

    @property
    def sim(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report["devices"]["sim"]
        return found

    @property
    def sentence(self) -> str:
        return next(line for line in self.stdout.splitlines() if "results accepted" in line)


def simulate(
    folder: Path, models: Path, faults: list[dict[str, Any]], *options: str, duration_s: float = 12, **changes: Any
) -> Outcome:
    """Run a scenario as a user would."""
    scenario = folder / "scenario.yaml"
    document = {"duration_s": duration_s, "seed": 3, "devices": [SIM], "faults": faults, **changes}
    scenario.write_text(yaml.safe_dump(document))
    report, keep = folder / "report.json", folder / "kept"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lisiere", "simulate", str(scenario), "--models", str(models)),
            *("--json", str(report), "--keep", str(keep), *options),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    written = json.loads(report.read_text()) if report.is_file() else {}
    return Outcome(done.returncode, written, done.stdout, done.stderr, keep)


def check_nothing_lost(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.stderr + outcome.stdout
    assert outcome.report["lost"] == 0
    devices = outcome.report["devices"].values()
    for device in devices:
        assert device["lost"] == device["holes"] == device["unreadable"] == device["exit_code"] == 0
    assert [name for device in devices for name in device["pipelines"]] == ["dock", "pump", "co2"]
    for pipeline in (pipeline for device in devices for pipeline in device["pipelines"].values()):
        assert pipeline["lost"] == 0
        assert pipeline["delivered"] == pipeline["accepted"] > 0
        assert pipeline["disordered"] == 0
        assert pipeline["backend"] == ("dlr" if HAS_DLR else "graph")
        assert 0 < pipeline["latency_ms"]["p50"] <= pipeline["latency_ms"]["p95"] <= pipeline["latency_ms"]["p99"]
    assert ", 0 lost" in outcome.sentence


def test_a_cut_loses_nothing_and_the_report_says_so(sample_models: Path, tmp_path: Path) -> None:
    outcome = simulate(tmp_path, sample_models, [{"kind": "cut", "at_s": 4, "length_s": 3}])
    check_nothing_lost(outcome)
    (outage,) = outcome.report["outages"]
    assert outage["start_s"] == pytest.approx(4, abs=1)
    assert outage["length_s"] == pytest.approx(3, abs=1)
    assert outage["backlog"] > 10
    assert 0 <= outage["drain_s"] < 8
    dock = outcome.sim["pipelines"]["dock"]
    assert dock["backlog_peak"] > 10
    assert dock["replayed"] > 10
    assert "the network was away for 3." in outcome.sentence
    assert dock["input_faults"].keys() == {"frozen"}
    assert dock["input_faults"]["frozen"] >= 10
    assert 1 < dock["frozen_after_s"] < 5  # 1.2 s by the rules; a busy machine may be late
    assert "sim/dock: results say of their input: frozen" in outcome.stderr
    assert "sim/dock said that its camera was frozen " in outcome.stdout
    assert outcome.sim["pipelines"]["pump"]["input_faults"]["gap"] >= 1
    silence = outcome.stderr.index("sim/pump: the sensor falls silent")
    assert silence < outcome.stderr.index("sim/pump: the device finds it no_data")
    assert silence < outcome.stderr.index("sim/pump: results say of their input: gap")
    assert " of an input with gap." in outcome.stdout
    for event in (
        "online",
        "bearing fault begins",
        "the device finds it anomalous",
        "link cut",
        "link back",
        "sim stopped with exit code 0",
    ):
        assert event in outcome.stderr
    reader = SpoolReader(outcome.folder / "sim" / "spool")
    assert reader.waiting() == {}
    assert {name: counts.accepted for name, counts in reader.counts().items()} == {
        name: pipeline["accepted"] for name, pipeline in outcome.sim["pipelines"].items()
    }
    reader.close()


def test_kill_minus_9_during_the_cut_loses_nothing(sample_models: Path, tmp_path: Path) -> None:
    """Two devices on one link, a process and a Greengrass component: both are killed while there is no network."""
    require(importlib.util.find_spec("awsiot"), "awsiotsdk")
    faults: list[dict[str, Any]] = [
        {"kind": "cut", "at_s": 3, "length_s": 6},
        {"kind": "kill", "device": "gate", "at_s": 5, "length_s": 1},
        {"kind": "kill", "device": "shed", "at_s": 6, "length_s": 1},
    ]
    devices = [
        {"name": "gate", "pipelines": PIPELINES[:1]},
        {"name": "shed", "runtime": "greengrass", "flavour": "lite", "pipelines": PIPELINES[1:]},
    ]
    outcome = simulate(tmp_path, sample_models, faults, duration_s=14, devices=devices)
    check_nothing_lost(outcome)
    gate, shed = outcome.report["devices"].values()
    assert (gate["runtime"], shed["runtime"]) == ("process", "greengrass")
    for device, at_s in ((gate, 5), (shed, 6)):
        (restart,) = device["restarts"]
        assert restart["start_s"] == pytest.approx(at_s, abs=1)
        assert 0 < restart["length_s"] < 5
    log = outcome.folder / "shed" / "nucleus" / "logs" / "io.lisiere.EdgeInference.log"
    assert "The environment of this version is there already." in log.read_text()
    nucleus = (outcome.folder / "shed" / "nucleus.log").read_text()
    assert "Nucleus lite" in nucleus
    assert nucleus.count("-> RUNNING") == 2
    (outage,) = outcome.report["outages"]
    assert outage["backlog"] > max(gate["pipelines"]["dock"]["backlog_peak"], shed["pipelines"]["co2"]["backlog_peak"])
    assert "gate killed" in outcome.stderr
    assert "gate was killed at" in outcome.stdout
    assert "shed online in the laptop nucleus" in outcome.stderr


def test_a_stall_that_outlasts_the_acknowledgement_loses_nothing(sample_models: Path, tmp_path: Path) -> None:
    outcome = simulate(tmp_path, sample_models, [{"kind": "stall", "at_s": 2, "length_s": 8}], duration_s=14)
    check_nothing_lost(outcome)
    (outage,) = outcome.report["outages"]
    assert (outage["kind"], outage["backlog"] > 30) == ("stall", True)
    assert "has not acknowledged" in (outcome.folder / "sim" / "device.log").read_text()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Address]:
    """A Mosquitto that the simulator has not started."""
    require(find_mosquitto(), "mosquitto")
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    broker = MosquittoBroker(folder)
    yield broker.start()
    broker.stop()


class MosquittoSub:
    """Somebody else's subscriber: mosquitto_sub in a child process, and the ids that it has printed, by pipeline."""

    def __init__(self, broker: Address) -> None:
        host, port = broker
        program = shutil.which("mosquitto_sub")
        require(program, "mosquitto_sub")
        assert program is not None
        self.ids: dict[str, set[str]] = {}
        self._changed = threading.Condition()
        self._subscribed = False
        # What is retained comes as soon as the subscription stands, and so tells that it does.
        publish.single("test/ready", "ready", qos=1, retain=True, hostname=host, port=port)
        kinds = ("result", "event", "score", "backlog")
        topics = ("test/ready", *(f"lisiere/v1/sim/{kind}/+" for kind in kinds))
        options = [part for topic in topics for part in ("-t", topic)]
        self._process = subprocess.Popen(
            [program, "-h", host, "-p", str(port), "-q", "1", *options], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def __enter__(self) -> MosquittoSub:
        with self._changed:
            subscribed = self._changed.wait_for(lambda: self._subscribed, 30)
        if not subscribed:
            self.__exit__()
        assert subscribed
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                if line == "ready\n":
                    self._subscribed = True
                else:
                    envelope = json.loads(line)
                    self.ids.setdefault(envelope["pipeline"], set()).add(envelope["id"])
                self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: sum(map(len, self.ids.values())) >= count, 30)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._thread.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_a_subscriber_of_somebody_else_sees_the_same_ids(
    sample_models: Path, tmp_path: Path, mosquitto: Address
) -> None:
    name = f"{mosquitto[0]}:{mosquitto[1]}"
    with MosquittoSub(mosquitto) as other:
        cut = [{"kind": "cut", "at_s": 4, "length_s": 3}]
        outcome = simulate(tmp_path, sample_models, cut, "--broker", name)
        check_nothing_lost(outcome)
        accepted = {name: pipeline["accepted"] for name, pipeline in outcome.sim["pipelines"].items()}
        other.wait_for(sum(accepted.values()))
    assert outcome.report["broker"] == name
    assert {name: len(ids) for name, ids in other.ids.items()} == accepted
    epoch = outcome.sim["epoch"]
    everything = {f"sim:{epoch}:{seq}" for seq in range(1, sum(accepted.values()) + 1)}
    assert set().union(*other.ids.values()) == everything


def test_mosquitto_as_a_child_serves_as_well(sample_models: Path, tmp_path: Path) -> None:
    require(find_mosquitto(), "mosquitto")
    delay = [{"kind": "delay", "at_s": 2, "length_s": 3, "delay_ms": 200}]
    outcome = simulate(tmp_path, sample_models, delay, "--broker", "mosquitto", duration_s=11)
    check_nothing_lost(outcome)
    assert outcome.report["outages"] == []


def test_a_pipeline_that_delivers_nothing_is_exit_code_3(sample_models: Path, tmp_path: Path) -> None:
    camera = {**PIPELINES[0], "input": {"kind": "camera", "frames": 40, "fps": 10}}
    slow = [camera, {"name": "co2", "model": "co2", "input": {"kind": "csv", "rows_per_s": 0.01}}]
    outcome = simulate(tmp_path, sample_models, [], duration_s=2, devices=[{**SIM, "pipelines": slow}])
    assert outcome.code == 3
    assert outcome.sim["pipelines"]["co2"]["delivered"] == 0
    assert "Nothing came from sim/co2." in outcome.stdout


@pytest.mark.parametrize(
    ("changes", "options", "code", "text"),
    [
        ({"speed": 2}, (), 2, "speed"),
        (
            {"devices": [{**SIM, "pipelines": [{**PIPELINES[0], "model": "absent"}]}]},
            (),
            2,
            "lisiere compile models/absent/job.json",
        ),
        ({}, ("--broker", "nowhere"), 2, "HOST:PORT"),
        ({}, ("--broker", "127.0.0.1:1"), 1, "No broker answers"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    changes: dict[str, Any], options: tuple[str, ...], code: int, text: str, sample_models: Path, tmp_path: Path
) -> None:
    outcome = simulate(tmp_path, sample_models, [], *options, **changes)
    assert outcome.code == code
    assert text in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_an_interrupt_leaves_nothing_behind(sample_models: Path, tmp_path: Path) -> None:
    require(importlib.util.find_spec("awsiot"), "awsiotsdk")
    scenario = tmp_path / "scenario.yaml"
    devices = [
        {**SIM, "pipelines": PIPELINES[:1]},
        {"name": "shed", "runtime": "greengrass", "pipelines": PIPELINES[1:2]},
    ]
    scenario.write_text(yaml.safe_dump({"duration_s": 600, "devices": devices}))
    options = ["--models", str(sample_models), "--keep", str(tmp_path / "kept")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lisiere", "simulate", str(scenario), *options],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "shed online" in line:
            break
    assert len(processes_of(tmp_path / "kept")) >= 3
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()  # ends when the simulator and whatever inherited its stderr have ended
    process.stderr.close()
    assert process.wait(30) == 1
    assert "nterrupted" in rest
    until = time.monotonic() + 10  # what a killed nucleus has left ends with it, but not in the same moment
    while processes_of(tmp_path / "kept") and time.monotonic() < until:
        time.sleep(0.05)
    assert not processes_of(tmp_path / "kept")


def processes_of(folder: Path) -> list[str]:
    """The processes of this machine that run something in a folder, but for the simulator itself."""
    running = psutil.process_iter(["cmdline"])
    return [str(process) for process in running if any(f"{folder}/" in part for part in process.info["cmdline"] or [])]
