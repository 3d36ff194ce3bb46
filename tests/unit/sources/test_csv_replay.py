"""CSV replay: good rows become readings, each bad one costs only itself and is told by line."""

from __future__ import annotations

import math
import resource
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.errors import LisiereError, Permanent, Retryable
from lisiere.settings.sensors import CsvSource
from lisiere.sources.csv_replay import CsvReplay
from lisiere.values import Reading
from support.sources import Faults, Stop


def replay(
    tmp_path: Path, data: str | bytes, channels: tuple[str, ...] = ("level",), **config: Any
) -> tuple[list[Reading], Faults]:
    file = tmp_path / "tide.csv"
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    faults, clock = Faults(), ManualClock()
    source = CsvReplay(CsvSource(path=str(file), **config), "tide", channels, clock, faults)
    return list(source.items(threading.Event())), faults


def same(readings: list[Reading], *expected: tuple[float, tuple[float, ...]]) -> bool:
    found = [(one.ts, one.values) for one in readings]
    return repr(found) == repr(list(expected))  # NaN is itself here


def test_rows_become_readings_in_event_time(tmp_path: Path) -> None:
    readings, faults = replay(tmp_path, "time,level\n10,1.5\n20,2\n30,-3e2\n")
    assert readings == [Reading(10, (1.5,), "tide"), Reading(20, (2,), "tide"), Reading(30, (-300,), "tide")]
    assert faults == []


def test_channels_come_in_the_order_asked_for(tmp_path: Path) -> None:
    readings, _ = replay(tmp_path, "wind,time,level,rain\n1,10,2,3\n", ("rain", "wind", "level"))
    assert same(readings, (10.0, (3.0, 1.0, 2.0)))


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    readings, _ = replay(tmp_path, "zeit,pegel\n10,2\n", time="zeit", columns={"level": "pegel"})
    assert same(readings, (10.0, (2.0,)))


def test_stamps_may_be_iso_8601(tmp_path: Path) -> None:
    readings, _ = replay(tmp_path, "time,level\n1970-01-01T00:00:10Z,1\n1970-01-01 01:00:20+01:00,2\n")
    assert [one.ts for one in readings] == [10, 20]


@pytest.mark.parametrize("stamp", ["", "yesterday", "nan", "inf", "1e300", "2026-13-01", "1700000000000"])
def test_a_bad_stamp_costs_its_row(tmp_path: Path, stamp: str) -> None:
    readings, faults = replay(tmp_path, f"time,level\n10,1\n{stamp},2\n30,3\n")
    assert same(readings, (10.0, (1.0,)), (30.0, (3.0,)))
    assert faults.names == ["csv_bad_time"]
    assert "Line 3" in faults[0][1]


@pytest.mark.parametrize("cell", ["n/a", "1,5".replace(",", ";"), "nan", "NaN", "inf", "-inf", "1e999", "0x10", "--"])
def test_what_is_no_number_is_a_missing_value_and_told(tmp_path: Path, cell: str) -> None:
    readings, faults = replay(tmp_path, f"time,level\n10,{cell}\n20,2\n")
    assert same(readings, (10.0, (math.nan,)), (20.0, (2.0,)))
    assert faults.names == ["csv_not_a_number"]
    assert "Line 2" in faults[0][1]
    assert cell in faults[0][1]


@pytest.mark.parametrize("cell", ["", "  ", "\t"])
def test_an_empty_cell_is_a_missing_value_and_no_fault(tmp_path: Path, cell: str) -> None:
    readings, faults = replay(tmp_path, f"time,level,wind\n10,{cell},4\n", ("level", "wind"))
    assert same(readings, (10.0, (math.nan, 4.0)))
    assert faults == []


def test_ragged_rows_are_left_out_by_line_and_blank_ones_in_silence(tmp_path: Path) -> None:
    readings, faults = replay(tmp_path, "time,level\n10\n\n20,2,3\n30,3\n\n")
    assert same(readings, (30.0, (3.0,)))
    assert faults.names == ["csv_ragged_row", "csv_ragged_row"]
    assert ["Line 2" in faults[0][1], "Line 4" in faults[1][1]] == [True, True]


def test_a_row_cut_off_in_the_middle_is_ragged(tmp_path: Path) -> None:
    readings, faults = replay(tmp_path, "time,level\n10,1\n2")
    assert same(readings, (10.0, (1.0,)))
    assert faults.names == ["csv_ragged_row"]


def test_out_of_order_rows_are_handed_on_as_they_are(tmp_path: Path) -> None:
    readings, faults = replay(tmp_path, "time,level\n30,3\n10,1\n20,2\n20,2\n")
    assert [one.ts for one in readings] == [30, 10, 20, 20]
    assert faults == []


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbftime,level\n10,1\n",
        b"time,level\r\n10,1\r\n",
        b'"time","level"\n"10","1"\n',
        b" time , level \n 10 , 1 \n",
        b"time,level\n10,1",
        "time,level,größe\n10,1,ü\n".encode(),
    ],
)
def test_bom_line_ends_quotes_and_spaces_do_not_matter(tmp_path: Path, data: bytes) -> None:
    readings, faults = replay(tmp_path, data)
    assert same(readings, (10.0, (1.0,)))
    assert faults == []


@pytest.mark.parametrize("data", ["", "\n", "time\n10\n", "level\n1\n", "Time,Level\n10,1\n", "time;level\n10;1\n"])
def test_a_missing_column_is_permanent_and_says_which(tmp_path: Path, data: str) -> None:
    with pytest.raises(Permanent, match=r"but not (time|level)"):
        replay(tmp_path, data)


def test_a_file_without_rows_gives_none(tmp_path: Path) -> None:
    assert replay(tmp_path, "time,level\n") == ([], [])


@pytest.mark.parametrize(
    ("bad", "fault"),
    [(b"11,\xff", "csv_not_a_number"), (b'11,"' + b"9" * 200_000, "csv_bad_row"), (b"\xff1,1", "csv_bad_time")],
)
def test_what_is_no_csv_in_utf_8_costs_only_its_row(tmp_path: Path, bad: bytes, fault: str) -> None:
    readings, faults = replay(tmp_path, b"time,level\n10,1\n" + bad + b"\n12,2\n")
    good = [one for one in readings if not math.isnan(one.values[0])]
    assert same(good, (10.0, (1.0,)), (12.0, (2.0,)))
    assert faults.names == [fault]
    assert "Line 3 of " in faults[0][1]


@pytest.mark.parametrize(
    "data", [b"\xff\xfet\x00i\x00", b"time,\x1b[2J\n", b"time,\xff\n10,1\n", b"x" * 3_000_000, b"," * 100_000]
)
def test_a_file_that_is_no_csv_in_utf_8_is_permanent(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Permanent, match="CSV in UTF-8") as caught:
        replay(tmp_path, data)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_file_that_is_not_there_is_retryable(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        source = CsvReplay(CsvSource(path=str(path)), "tide", ("level",), ManualClock(), Faults())
        with pytest.raises(Retryable, match=str(path)):
            list(source.items(threading.Event()))


def write(tmp_path: Path, *stamps: float) -> Path:
    file = tmp_path / "tide.csv"
    file.write_text("time,level\n" + "".join(f"{stamp},1\n" for stamp in stamps))
    return file


@pytest.mark.parametrize(("speed", "waits"), [(1.0, [5, 0, 10, 1]), (10.0, [0.5, 0, 1, 0.1]), (0.5, [10, 0, 20, 2])])
def test_speed_is_how_fast_the_recorded_time_passes(tmp_path: Path, speed: float, waits: list[float]) -> None:
    clock = ManualClock()
    stop = Stop(clock)
    config = CsvSource(path=str(write(tmp_path, 100, 105, 90, 115, 116)), speed=speed)
    readings = list(CsvReplay(config, "tide", ("level",), clock, Faults()).items(stop))
    assert len(readings) == 5
    assert stop.waits == pytest.approx(waits)


def test_without_speed_nothing_waits(tmp_path: Path) -> None:
    clock = ManualClock()
    stop = Stop(clock)
    config = CsvSource(path=str(write(tmp_path, 0, 1e9)))
    assert len(list(CsvReplay(config, "tide", ("level",), clock, Faults()).items(stop))) == 2
    assert stop.waits == []


def test_a_gap_of_centuries_at_a_crawl_can_be_waited_for(tmp_path: Path) -> None:
    stop = threading.Event()
    config = CsvSource(path=str(write(tmp_path, -6e10, 2e11)), speed=1e-300)
    items = CsvReplay(config, "tide", ("level",), ManualClock(), Faults()).items(stop)
    assert next(items).ts == -6e10
    stop.set()
    assert list(items) == []


def test_a_stop_ends_it(tmp_path: Path) -> None:
    stop = threading.Event()
    config = CsvSource(path=str(write(tmp_path, *range(100))))
    items = CsvReplay(config, "tide", ("level",), ManualClock(), Faults()).items(stop)
    next(items)
    stop.set()
    assert list(items) == []


def test_each_opening_begins_at_the_beginning_and_closes_the_file(tmp_path: Path) -> None:
    config = CsvSource(path=str(write(tmp_path, 1, 2)))
    source = CsvReplay(config, "tide", ("level",), ManualClock(), Faults())
    assert [one.ts for one in source.items(threading.Event())] == [1, 2]
    half = source.items(threading.Event())
    assert next(half).ts == 1
    half.close()  # type: ignore[attr-defined]
    assert [one.ts for one in source.items(threading.Event())] == [1, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_at_all_give_readings_faults_or_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    try:
        readings, _ = replay(tmp_path, b"time,level\n10,1\n" + data)
    except LisiereError:
        return
    assert all(math.isfinite(one.ts) for one in readings)


def test_a_line_without_end_takes_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "tide.csv"
    with file.open("wb") as stream:
        stream.write(b"time,level\n10,1\n20,")
        stream.truncate(64 << 20)  # zeros, which take no room on the disk
    faults = Faults()
    items = CsvReplay(CsvSource(path=str(file)), "tide", ("level",), ManualClock(), faults).items(threading.Event())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert next(items).ts == 10
    assert list(items) == []
    assert set(faults.names) == {"csv_bad_row"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10  # KiB
