"""Bad input through whole pipelines: each is named in health, and none ends anybody else's pipeline."""

from __future__ import annotations

import json
import math
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere.backends import open_model
from lisiere.clock import ManualClock, SystemClock
from lisiere.config import PipelineConfig, SpoolConfig, parse_config
from lisiere.errors import ConfigError
from lisiere.health import PipelineHealth
from lisiere.models import open_package
from lisiere.pipeline import Pipeline, check_pairing, model_engine, open_pipeline
from lisiere.runtime import Runtime
from lisiere.settings.channels import ChannelConfig
from lisiere.settings.sensors import JsonlSource, SocketSource
from lisiere.spool import Spool, SpoolReader
from lisiere.timeline import Timeline
from lisiere.values import Reading
from support import tiny
from support.brokers import free_port
from support.modbus import ModbusServer, device
from support.sources import until

T0 = 1.7e9


class Run:
    """A recorded file through a detector of four rows, to its end: what came of it."""

    def __init__(self, folder: Path, lines: list[str], **channels: ChannelConfig) -> None:
        file = folder / "series.jsonl"
        file.write_text("".join(line + "\n" for line in lines))
        health = PipelineHealth("hum")
        clock = ManualClock(T0 + 1e6)
        spool = Spool(SpoolConfig(path=str(folder / "spool"), linger_ms=0), clock)
        config = PipelineConfig(
            name="hum",
            source=JsonlSource(path=str(file)),
            model=str(tiny.detector(folder / "model")),
            backend="onnx",
            channels=channels,
        )
        pipeline = open_pipeline(config, "$.pipelines[0]", spool, clock, Timeline(clock), health)

        def read() -> None:
            pipeline.read()
            pipeline.end()

        reader = threading.Thread(target=read)
        reader.start()
        pipeline.work()
        reader.join(10)
        assert not reader.is_alive()
        spool.close()
        pipeline.close()
        rows = SpoolReader(folder / "spool")
        self.results = [json.loads(row.body) for row in rows.after(0, 100_000)]
        rows.close()
        self.counters = health.snapshot()[2]


def series(count: int, step: float = 0.1) -> list[str]:
    return [line(at * step, 0.1) for at in range(count)]


def line(ts: float, value: object) -> str:
    return json.dumps({"ts": T0 + ts, "vibration": value})


def changed(lines: list[str], at: int, new: str) -> list[str]:
    return [*lines[:at], new, *lines[at + 1 :]]


def test_clean_input_has_no_faults(tmp_path: Path) -> None:
    run = Run(tmp_path, series(16), vibration=ChannelConfig(min=0, max=1, max_rate=1, gap_s=0.5))
    assert len(run.results) == 4
    assert run.counters == {"read": 16, "results": 4}


@pytest.mark.parametrize(
    ("spoilt", "counters"),
    [
        (lambda good: changed(good, 5, line(0.5, math.nan)), {"line_unusable": 1}),
        (lambda good: changed(good, 5, line(0.5, math.inf)), {"line_unusable": 1}),
        (lambda good: changed(good, 5, line(0.5, 1e300)), {"reading_not_a_number": 1}),
        (lambda good: changed(good, 5, line(0.5, "0.1")), {"not_a_number": 1, "reading_not_a_number": 1}),
        (lambda good: changed(good, 5, line(0.5, None)), {"not_a_number": 1, "reading_not_a_number": 1}),
        (lambda good: changed(good, 5, "{"), {"line_unusable": 1}),
        (lambda good: [*good[:6], good[5], *good[6:]], {"reading_duplicate": 1}),
        (lambda good: [*good[:6], good[2], *good[6:]], {"reading_out_of_order": 1}),
        (lambda good: [*good[:6], json.dumps({"ts": 5, "vibration": 1}), *good[6:]], {"reading_out_of_order": 1}),
    ],
    ids=["NaN", "infinity", "beyond", "text", "null", "no JSON", "twice", "back", "1970"],
)
def test_one_bad_reading_is_named_and_the_rest_goes_on(
    tmp_path: Path, spoilt: Callable[[list[str]], list[str]], counters: dict[str, int]
) -> None:
    run = Run(tmp_path, spoilt(series(16)))
    assert {name: times for name, times in run.counters.items() if name not in ("read", "results")} == counters
    assert len(run.results) == 4


def test_a_sensor_whose_clock_falls_back_to_1970_is_watched_again(tmp_path: Path) -> None:
    run = Run(tmp_path, [*series(16), *(json.dumps({"ts": at * 0.1, "vibration": 0.1}) for at in range(80))])
    assert run.counters["reading_clock_restarted"] == 1
    assert run.counters["reading_out_of_order"] > 0
    assert run.results[-1]["window"]["end"].startswith("1970-01-01")
    assert run.results[-1]["result"]["state"] == "normal"


def test_a_channel_that_vanishes_is_named(tmp_path: Path) -> None:
    gone = [json.dumps({"ts": T0 + 0.8 + at * 0.1, "other": 1}) for at in range(8)]
    run = Run(tmp_path, [*series(8), *gone, *series(32)[16:]], vibration=ChannelConfig(gap_s=0.3))
    assert run.counters["line_unusable"] == 8
    assert run.counters["gap:vibration"] == 1
    assert [result["result"]["state"] for result in run.results][-1] == "normal"


@pytest.mark.parametrize(
    ("spoilt", "channel", "fault"),
    [
        (changed(series(16), 5, line(0.5, 99)), ChannelConfig(max=10), "out_of_range:vibration"),
        (changed(series(16), 5, line(0.5, 0.9)), ChannelConfig(max_rate=2), "rate:vibration"),
        (series(16), ChannelConfig(stuck_s=1.0), "stuck:vibration"),
        ([*series(4), *series(16)[8:]], ChannelConfig(gap_s=0.2), "gap:vibration"),
    ],
    ids=["range", "rate", "stuck", "gap"],
)
def test_what_cannot_be_is_counted_and_in_the_results(
    tmp_path: Path, spoilt: list[str], channel: ChannelConfig, fault: str
) -> None:
    run = Run(tmp_path, spoilt, vibration=channel)
    assert run.counters[fault] > 0
    told = [result["input"]["faults"] for result in run.results]
    assert any(fault in faults for faults in told)
    assert told[0] == []


def test_what_is_withheld_no_model_sees(tmp_path: Path) -> None:
    spoilt = changed(series(16), 5, line(0.5, 99))
    (tmp_path / "mark").mkdir()
    (tmp_path / "withhold").mkdir()
    marked = Run(tmp_path / "mark", spoilt, vibration=ChannelConfig(max=10))
    withheld = Run(tmp_path / "withhold", spoilt, vibration=ChannelConfig(max=10, policy="withhold"))
    assert [result["result"]["state"] for result in marked.results] == ["normal", "anomalous", "normal", "normal"]
    assert [result["result"]["state"] for result in withheld.results] == ["normal", "no_data", "normal", "normal"]


@pytest.mark.parametrize("rows", [65_536, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_burst_takes_bounded_memory_and_is_worked_off(tmp_path: Path, rows: int) -> None:
    """Many rows at once, a thousand of them a step; the queue holds 1,024 readings whatever comes."""
    at_once = 1000
    lines = [
        json.dumps({"ts": T0 + at * 0.1, "step_s": 1e-6, "vibration": [0.1] * at_once}) for at in range(rows // at_once)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = Run(tmp_path, lines, vibration=ChannelConfig(min=0, max=1))
    assert run.counters["read"] == at_once * len(lines)
    assert len(run.results) == len(lines) // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB; all readings are 200 MB


def test_a_live_sensor_that_is_silent_is_named_while_it_is(tmp_path: Path) -> None:
    class Silent:
        """A source that is open and says nothing."""

        def items(self, stop: threading.Event) -> Iterator[Reading]:
            stop.wait(20)
            yield from ()

    clock, health = ManualClock(T0), PipelineHealth("hum")
    spool = Spool(SpoolConfig(path=str(tmp_path / "spool"), linger_ms=0), clock)
    package = open_package(tiny.detector(tmp_path / "model"))
    config = PipelineConfig(
        name="hum",
        source=SocketSource(listen="tcp:127.0.0.1:0"),
        model=str(package.path),
        channels={"vibration": ChannelConfig(gap_s=5)},
    )
    engine = model_engine(package, open_model(package, "onnx"), clock)
    pipeline = Pipeline(config, Silent(), engine, spool, Timeline(clock), health)
    worker = threading.Thread(target=pipeline.work)
    worker.start()
    clock.advance(6)
    until(lambda: health.snapshot()[2] == {"gap:vibration": 1})
    pipeline.end()
    worker.join(10)
    assert not worker.is_alive()
    spool.close()
    pipeline.close()


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    tiny.forecaster(tmp_path / "tide")
    return PipelineConfig(name="tide", source=JsonlSource(path="x"), model=str(tmp_path / "tide"))


@pytest.mark.parametrize(
    ("name", "channel", "at"),
    [("levle", ChannelConfig(), ".levle"), ("level", ChannelConfig(unit="ft"), ".level.unit")],
)
def test_channels_are_those_of_the_model_in_its_unit(
    config: PipelineConfig, name: str, channel: ChannelConfig, at: str
) -> None:
    manifest = open_package(Path(config.model or "")).manifest
    fitting = msgspec.structs.replace(config, channels={"level": ChannelConfig(unit="m", max=5)})
    assert check_pairing(fitting, manifest, "$.pipelines[0].source") == ("level",)
    with pytest.raises(ConfigError) as error:
        check_pairing(msgspec.structs.replace(config, channels={name: channel}), manifest, "$.pipelines[0].source")
    assert error.value.path == f"$.pipelines[0].channels{at}"


def test_no_pipeline_dies_of_anothers_fault(tmp_path: Path) -> None:
    """A device that refuses everything, a broker that is not there and a file of rubbish beside a good series."""
    tiny.detector(tmp_path / "model")
    (tmp_path / "rubbish.jsonl").write_bytes(b"\xff\n{\n[]\n" * 100)
    (tmp_path / "good.jsonl").write_text("\n".join(series(400)))
    with ModbusServer([device(1, {0: [0]})]) as server:
        sources: dict[str, dict[str, Any]] = {
            "refused": {
                "type": "modbus",
                "host": "127.0.0.1",
                "port": server.port,
                "interval_s": 0.01,
                "values": {"vibration": {"address": 77}},
            },
            "away": {"type": "mqtt", "host": "127.0.0.1", "port": free_port(), "topics": [{"topic": "a"}]},
            "rubbish": {"type": "jsonl", "path": "rubbish.jsonl"},
            "good": {"type": "jsonl", "path": "good.jsonl"},
        }
        pipelines = [{"name": name, "model": "model", "source": source} for name, source in sources.items()]
        runtime = Runtime(parse_config({"device": "d", "pipelines": pipelines}, tmp_path), SystemClock())
        health = runtime.reports.health
        running = threading.Thread(target=runtime.run)
        running.start()
        until(
            lambda: (
                health["good"].snapshot()[0] == "ended"
                and health["rubbish"].snapshot()[0] == "ended"
                and health["away"].snapshot()[0] == "waiting"
                and health["refused"].snapshot()[2].get("modbus_exception", 0) >= 3
            )
        )
        assert health["refused"].snapshot()[0] == "running"
        runtime.stop()
        running.join(20)
        assert not running.is_alive()
    assert health["good"].snapshot()[2] == {"read": 400, "results": 100}
    assert health["rubbish"].snapshot()[2] == {"line_unusable": 300}
    assert health["away"].snapshot()[2]["source_unavailable"] >= 1
    assert health["refused"].snapshot()[2]["reading_not_a_number"] >= 3
