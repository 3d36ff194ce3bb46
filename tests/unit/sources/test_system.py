"""The device itself, by psutil itself."""

from __future__ import annotations

import builtins
import math
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any, get_args

import psutil
import pytest

from lisiere.clock import ManualClock, SystemClock
from lisiere.config import parse_config
from lisiere.errors import Permanent, Retryable
from lisiere.runtime import Runtime
from lisiere.settings.sensors import Measure, SystemSource
from lisiere.sources.system import System
from support.sources import Faults, Stop, until, without

Entry = namedtuple("Entry", ["label", "current"])


def source(*channels: str, faults: Faults | None = None, **config: Any) -> tuple[System, ManualClock]:
    clock = ManualClock(500.0)
    told = faults if faults is not None else Faults()
    return System(SystemSource(**config), "system", channels, clock, told), clock


def test_every_measure_is_told_in_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Machines of clouds and containers tell no temperature.
    heat = {"cpu": [Entry("", 41.0), Entry("", None)], "disk": [Entry("", 43.5)]}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: heat, raising=False)
    measures = get_args(Measure)
    made, clock = source(*measures)
    reading = next(made.items(Stop(clock)))
    assert reading.ts == 510.0  # after one interval, over which the CPU was watched
    told = dict(zip(measures, reading.values, strict=True))
    for name in ("cpu_percent", "memory_percent", "disk_percent"):
        assert 0 <= told[name] <= 100
    assert 0 < told["memory_available_mb"] * 1e6 <= psutil.virtual_memory().total
    assert 0 <= told["disk_free_mb"] * 1e6 <= psutil.disk_usage("/").total
    assert all(told[name] >= 0 for name in ("load_1", "load_5", "load_15"))
    assert told["temperature"] == 43.5


def test_channels_may_have_names_of_their_own() -> None:
    made, clock = source("heap", "load_1", values={"heap": "memory_percent"})
    items = made.items(Stop(clock))
    assert [next(items).ts for _ in range(3)] == [510.0, 520.0, 530.0]


def test_a_channel_that_is_no_measure_is_refused() -> None:
    made, clock = source("vibration")
    with pytest.raises(Permanent, match="'vibration' is not a measure"):
        next(made.items(Stop(clock)))


def test_a_machine_without_a_sensor_of_temperature_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    made, clock = source("temperature")
    with pytest.raises(Permanent, match="no sensor of temperature"):
        next(made.items(Stop(clock)))


def test_a_measure_that_fails_is_that_channels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults()
    made, clock = source("disk_percent", "memory_percent", faults=faults)
    items = made.items(Stop(clock))
    assert 0 <= next(items).values[0] <= 100

    def gone(_path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(psutil, "disk_usage", gone)
    values = next(items).values
    assert math.isnan(values[0])
    assert values[1] > 0
    assert faults.names == ["system_unreadable"]


def test_a_disk_that_is_not_there_may_come() -> None:
    made, clock = source("disk_percent", disk="/no/such/disk")
    with pytest.raises(Retryable, match="disk_percent cannot be told"):
        next(made.items(Stop(clock)))


def test_a_stop_in_the_first_interval_ends_it() -> None:
    made, _ = source("load_1")
    stop = threading.Event()
    stop.set()
    assert list(made.items(stop)) == []


def test_without_psutil_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", without("psutil"))
    made, clock = source("load_1")
    with pytest.raises(Permanent, match=r"lisiere\[sensors\]"):
        next(made.items(Stop(clock)))


def test_a_device_watches_itself_without_a_model(tmp_path: Path) -> None:
    watched = ["cpu_percent", "memory_percent", "load_1"]
    pipeline = {
        "name": "device",
        "source": {"type": "system", "interval_s": 0.1},
        "detector": {"channels": watched, "step_s": 0.1},
    }
    runtime = Runtime(parse_config({"device": "d", "pipelines": [pipeline]}, tmp_path), SystemClock())
    health = runtime.reports.health["device"]
    running = threading.Thread(target=runtime.run)
    running.start()
    until(lambda: health.snapshot()[2].get("results", 0) >= 3)
    runtime.stop()
    running.join(20)
    assert not running.is_alive()
    assert health.snapshot()[2]["read"] >= 3
