"""JSON-lines replay: a line is a reading, by its own time; one that is wrong costs only itself."""

from __future__ import annotations

import math
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import ManualClock
from lisiere.errors import Retryable
from lisiere.settings.sensors import JsonlSource
from lisiere.sources.jsonl_replay import LINE_MAX_BYTES, JsonlReplay
from lisiere.values import Reading
from support.sources import Faults, Stop


def replayed(file: Path, *channels: str, **config: Any) -> tuple[list[Reading], Faults, list[float]]:
    clock, faults = ManualClock(), Faults()
    stop = Stop(clock)
    source = JsonlReplay(JsonlSource(path=str(file), **config), "jsonl", channels, clock, faults)
    return list(source.items(stop)), faults, stop.waits


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "series.jsonl"


def test_lines_are_readings_in_the_order_of_the_channels(file: Path) -> None:
    file.write_text(
        '{"ts": 10, "b": 2, "a": 1}\n\n{"ts": "1970-01-01T00:00:20Z", "a": 3, "b": 4}\r\n'
        '{"ts": 30, "step_s": 0.5, "a": [5, 6], "b": [7, 8]}'
    )
    readings, faults, waits = replayed(file, "a", "b")
    assert [(one.ts, one.values) for one in readings] == [(10, (1, 2)), (20, (3, 4)), (30, (5, 7)), (30.5, (6, 8))]
    assert {one.source for one in readings} == {"jsonl"}
    assert (faults, waits) == ([], [])


def test_keys_may_have_other_names_and_stand_below_others(file: Path) -> None:
    file.write_text('{"t": 1500, "ENERGY": {"Power": 5, "All": [{}]}, "a.b": 6}\n')
    keys = {"power": "ENERGY.Power", "dotted": "a.b"}
    readings, _, _ = replayed(file, "power", "dotted", keys=keys, time="t", time_unit="ms")
    assert readings == [Reading(1.5, (5, 6), "jsonl")]


def test_speed_keeps_the_recorded_intervals_and_time_that_goes_back_waits_for_nothing(file: Path) -> None:
    file.write_text("".join(f'{{"ts": {ts}, "a": 0}}\n' for ts in (0, 10, 4, 30)))
    readings, _, waits = replayed(file, "a", speed=10)
    assert [one.ts for one in readings] == [0, 10, 4, 30]
    assert waits == pytest.approx([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"nonsense", "malformed"),
        (b"\xff\xfe", ""),
        (b"[1]", "not a JSON object"),
        (b'{"a": 5}', "no time stamp 'ts'"),
        (b'{"ts": null, "a": 5}', "no time stamp 'ts'"),
        (b'{"ts": "then", "a": 5}', "not a time stamp"),
        (b'{"ts": 1, "b": 5}', "none of the channels a"),
        (b'{"ts": 1, "a": NaN}', "malformed"),
    ],
)
def test_a_line_that_is_wrong_costs_only_itself(file: Path, line: bytes, says: str) -> None:
    file.write_bytes(line + b'\n{"ts": 2, "a": 7}\n')
    readings, faults, _ = replayed(file, "a")
    assert [one.ts for one in readings] == [2]
    assert faults.names == ["line_unusable"]
    assert f"Line 1 of {file} cannot be used" in faults[0][1]
    assert says in faults[0][1]


@pytest.mark.parametrize("value", ["null", '"5"', "true", "{}", "1" + "0" * 400])
def test_a_value_that_is_no_number_is_missing_and_told(file: Path, value: str) -> None:
    file.write_text(f'{{"ts": 1, "a": {value}, "b": 1}}\n')
    readings, faults, _ = replayed(file, "a", "b")
    assert math.isnan(readings[0].values[0])
    assert faults.names == ["not_a_number"]


def test_a_channel_that_vanishes_is_missing_and_told(file: Path) -> None:
    file.write_text('{"ts": 1, "a": 1, "b": 1}\n{"ts": 2, "a": 1}\n')
    readings, faults, _ = replayed(file, "a", "b")
    assert math.isnan(readings[1].values[1])
    assert faults == [("channel_missing", f"{file} gave a record without 'b'.")]


def test_a_stamp_of_1970_is_taken_as_it_is(file: Path) -> None:
    file.write_text('{"ts": 1, "a": 1}\n')
    assert replayed(file, "a")[0][0].ts == 1


def test_a_line_that_is_too_long_is_left_out_in_bounded_memory(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b'{"ts": 1, "a": 1}\n{"ts": 2, "a": "')
        stream.seek(64 << 20, 1)
        stream.write(b'"}\n{"ts": 3, "a": 3}\n' + b"x" * (LINE_MAX_BYTES + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    readings, faults, _ = replayed(file, "a")
    assert [one.ts for one in readings] == [1, 3]
    assert [(name, sentence.split()[1]) for name, sentence in faults] == [
        ("line_too_long", "2"),
        ("line_too_long", "4"),
    ]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB


def test_a_file_that_is_not_there_may_come(file: Path) -> None:
    with pytest.raises(Retryable, match="cannot be read: No such file"):
        replayed(file, "a")


def test_a_stop_ends_it(file: Path) -> None:
    file.write_text('{"ts": 1, "a": 1}\n' * 3)
    stop = threading.Event()
    items = JsonlReplay(JsonlSource(path=str(file)), "jsonl", ("a",), ManualClock(), Faults()).items(stop)
    next(items)
    stop.set()
    assert list(items) == []
