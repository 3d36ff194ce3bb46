"""Time: stamps are written and read as RFC 3339, and nothing outside the calendar gets in."""

from __future__ import annotations

import ctypes
import sys
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import TS_MAX, TS_MIN, ManualClock, SystemClock, parse_ts, rfc3339
from lisiere.errors import Rejected


@pytest.mark.parametrize(
    ("ts", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_769_844_976.123, "2026-01-31T07:36:16.123Z"),
        (0.9996, "1970-01-01T00:00:01.000Z"),
        (59.9999, "1970-01-01T00:01:00.000Z"),
        (-0.001, "1969-12-31T23:59:59.999Z"),
        (-378_691_200.0, "1958-01-01T00:00:00.000Z"),
        (951_782_400.0, "2000-02-29T00:00:00.000Z"),
        (TS_MIN, "0001-01-01T00:00:00.000Z"),
        (TS_MAX, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_rfc3339_is_utc_with_milliseconds(ts: float, text: str) -> None:
    assert rfc3339(ts) == text


@given(st.floats(TS_MIN, TS_MAX))
def test_what_is_written_can_be_read_back_to_the_millisecond(ts: float) -> None:
    assert parse_ts(rfc3339(ts)) == pytest.approx(ts, abs=0.0006)


@given(st.integers(int(TS_MIN), int(TS_MAX)))
def test_rfc3339_agrees_with_datetime(ts: int) -> None:
    moment = datetime.fromisoformat(rfc3339(ts).replace("Z", "+00:00"))
    assert (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() == ts


@pytest.mark.parametrize(
    ("text", "ts"),
    [
        ("1700000000", 1_700_000_000.0),
        ("1700000000.25", 1_700_000_000.25),
        ("1.7e9", 1_700_000_000.0),
        ("-5", -5.0),
        (" 12 ", 12.0),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10", 10.0),
        ("1970-01-01 00:00:10", 10.0),
        ("1970-01-01", 0.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1969-12-31T19:00:00-05:00", 0.0),
        ("1970-01-01T00:00:00.500Z", 0.5),
        (" 1970-01-01T00:00:01Z\t", 1.0),
    ],
)
def test_numbers_and_iso_8601_are_read(text: str, ts: float) -> None:
    assert parse_ts(text) == ts


@pytest.mark.parametrize("text", ["", " ", "yesterday", "2026-13-01", "2026-02-30T00:00:00Z", "12:00", "0x10", "1,5"])
def test_what_is_no_stamp_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="not a time stamp"):
        parse_ts(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e300", "1700000000000", "-1e12", "9" * 400])
def test_moments_outside_the_calendar_are_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="years 1 to 9999"):
        parse_ts(text)


@given(st.text(max_size=40))
def test_any_text_is_a_stamp_or_rejected(text: str) -> None:
    try:
        ts = parse_ts(text)
    except Rejected:
        return
    assert TS_MIN <= ts <= TS_MAX
    rfc3339(ts)


def test_a_long_text_is_not_repeated_in_the_message() -> None:
    with pytest.raises(Rejected) as caught:
        parse_ts("x" * 100_000)
    assert len(str(caught.value)) < 200


def test_a_manual_clock_moves_when_told_to() -> None:
    clock = ManualClock(100.0, "unsynced")
    assert (clock.now(), clock.monotonic(), clock.quality()) == (100.0, 0.0, "unsynced")
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (102.5, 2.5)


def test_the_system_clock_goes_on() -> None:
    clock = SystemClock()
    first = clock.monotonic()
    assert clock.monotonic() >= first
    assert abs(clock.now() - datetime.now(timezone.utc).timestamp()) < 5


def test_the_system_clock_knows_its_quality() -> None:
    assert SystemClock().quality() in ("synced", "unsynced", "unknown")


@pytest.mark.parametrize(("state", "quality"), [(0, "synced"), (3, "synced"), (5, "unsynced"), (-1, "unknown")])
def test_quality_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, state: int, quality: str) -> None:
    class Library:
        def __init__(self, name: None) -> None:
            pass

        def adjtimex(self, buffer: ctypes.Array[ctypes.c_char]) -> int:
            assert len(buffer) >= 208
            assert not any(buffer.raw)  # modes 0: it only reads
            return state

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert SystemClock().quality() == quality


def test_quality_is_unknown_elsewhere_than_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", never)
    assert SystemClock().quality() == "unknown"
