"""Time that was wrong when it was told, and put right when it was known."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock, SystemClock, TsQuality, rfc3339
from lisiere.timeline import STEP_S, Origin, Timeline

TRUE = 1_800_000_000.0  # what the time is in these tests when `monotonic` is 0
YEARS_10 = 10 * 365.25 * 86_400


class Machine:
    """A clock that is off by so much, and a watch over it."""

    def __init__(self, off: float, quality: TsQuality = "unsynced", folder: Path | None = None) -> None:
        self.clock = ManualClock(TRUE + off, quality)
        self.timeline = Timeline(self.clock, folder)

    @property
    def true(self) -> float:
        return TRUE + self.clock.monotonic()

    def sync(self) -> None:
        """NTP finds the time, steps the clock and says so."""
        self.clock.step(self.true - self.clock.now(), "synced")


def test_a_clock_that_is_right_needs_nothing() -> None:
    machine = Machine(0.0, "synced")
    machine.clock.advance(10)
    stamp = machine.timeline.stamp()
    assert (stamp.ts, stamp.quality, stamp.origin) == (machine.true, "synced", None)
    assert machine.timeline.steps == 0


@pytest.mark.parametrize("off", [-YEARS_10, YEARS_10, -TRUE, -3600.0, 86_400.0, -1.0, 0.2])
def test_what_was_stamped_before_the_clock_was_set_is_corrected(off: float) -> None:
    machine = Machine(off)
    machine.clock.advance(100)
    stamp, true = machine.timeline.stamp(), machine.true
    assert stamp.quality == "unsynced"
    assert stamp.ts == pytest.approx(true + off)
    assert stamp.origin is not None
    assert machine.timeline.corrected(stamp.ts, stamp.origin) is None
    machine.clock.advance(3600)
    machine.sync()
    assert machine.timeline.corrected(stamp.ts, stamp.origin) == pytest.approx(true, abs=0.001)
    assert machine.timeline.stamp().quality == "synced"
    assert machine.timeline.steps == 1


def test_a_clock_that_was_set_is_not_believed_until_somebody_vouches_for_it() -> None:
    machine = Machine(-YEARS_10)
    machine.clock.advance(5)
    machine.clock.step(YEARS_10 + 50)  # by hand
    stamp = machine.timeline.stamp()
    assert stamp.quality == "jumped"
    machine.clock.advance(5)
    machine.sync()
    assert stamp.origin is not None
    assert machine.timeline.corrected(stamp.ts, stamp.origin) == pytest.approx(TRUE + 5, abs=0.001)


def test_a_clock_that_is_spoilt_after_it_was_right_is_seen_through_at_once() -> None:
    machine = Machine(0.0, "synced")
    machine.clock.advance(5)
    machine.clock.step(-YEARS_10, "unsynced")
    stamp = machine.timeline.stamp()
    assert (stamp.quality, stamp.origin) == ("corrected", None)
    assert stamp.ts == pytest.approx(machine.true, abs=0.001)


def test_a_clock_that_runs_freely_is_not_called_corrected() -> None:
    machine = Machine(0.0, "synced")
    machine.clock.step(0.0, "unsynced")  # no server answers any more
    machine.clock.advance(7200)
    stamp = machine.timeline.stamp()
    assert stamp.quality == "unsynced"
    assert stamp.origin is not None
    assert machine.timeline.corrected(stamp.ts, stamp.origin) is None


@pytest.mark.parametrize("off", [5.0, -5.0, YEARS_10, -YEARS_10])
def test_what_was_told_before_a_step_and_stamped_after_it_is_told_apart(off: float) -> None:
    machine = Machine(off)
    machine.clock.advance(60)
    captured, true = machine.clock.now(), machine.true
    machine.timeline.quality()
    machine.clock.advance(1)
    machine.sync()
    stamp = machine.timeline.stamp(captured)
    assert stamp.quality == "corrected"
    assert stamp.ts == pytest.approx(true, abs=0.001)


def test_a_stamp_of_another_clock_is_left_alone() -> None:
    machine = Machine(0.0, "synced")
    assert machine.timeline.stamp(12.5).ts == 12.5


def test_midnight_and_new_year_are_nothing_special() -> None:
    clock = ManualClock(1_798_761_599.5, "synced")  # 2026-12-31T23:59:59.5Z
    timeline = Timeline(clock)
    before = timeline.stamp()
    clock.advance(1.0)
    after = timeline.stamp()
    assert (rfc3339(before.ts), rfc3339(after.ts)) == ("2026-12-31T23:59:59.500Z", "2027-01-01T00:00:00.500Z")
    assert (before.quality, after.quality, timeline.steps) == ("synced", "synced", 0)


def test_a_leap_second_that_is_stepped_is_noticed_and_right_on_both_sides() -> None:
    clock = ManualClock(1_483_228_700.0, "unsynced")  # 100 s before the leap second of 2016
    timeline = Timeline(clock)
    early = timeline.stamp()
    clock.advance(40)
    clock.step(0.0, "synced")
    timeline.quality()
    clock.advance(30)
    timeline.quality()
    clock.advance(30)
    clock.step(-1.0)  # 23:59:59 comes twice
    late = timeline.stamp()
    assert (late.quality, late.ts, timeline.steps) == ("synced", 1_483_228_799.0, 1)
    assert early.origin is not None
    assert timeline.corrected(early.ts, early.origin) == pytest.approx(early.ts, abs=0.001)  # and not a second less


def test_a_leap_second_that_is_smeared_is_no_step() -> None:
    class Smeared(ManualClock):
        """Monotonic and wall time are slewed alike, as Linux does."""

    clock = Smeared(1_483_228_700.0, "synced")
    timeline = Timeline(clock)
    for _ in range(1000):
        clock.advance(86.4 * (1 - 1 / 86_400))
        assert timeline.stamp().quality == "synced"
    assert timeline.steps == 0


def test_where_the_system_cannot_say_slow_drift_is_no_step_and_a_step_is() -> None:
    machine = Machine(0.0, "unknown")
    for _ in range(100):
        machine.clock.advance(60)
        machine.clock.step(0.02)  # 333 ppm
        assert machine.timeline.stamp().quality == "unknown"
    machine.clock.step(5.0)
    assert machine.timeline.stamp().quality == "jumped"


def test_a_restart_on_the_same_boot_knows_what_the_last_one_learnt(tmp_path: Path) -> None:
    machine = Machine(-YEARS_10, folder=tmp_path)
    machine.clock.advance(9)
    stamp = machine.timeline.stamp()
    machine.sync()
    machine.timeline.quality()
    again = Timeline(machine.clock, tmp_path)
    assert stamp.origin is not None
    assert again.corrected(stamp.ts, stamp.origin) == pytest.approx(TRUE + 9, abs=0.001)


def test_a_restart_before_the_time_is_known_loses_nothing(tmp_path: Path) -> None:
    machine = Machine(-YEARS_10, folder=tmp_path)
    machine.clock.advance(9)
    stamp = machine.timeline.stamp()
    again = Timeline(machine.clock, tmp_path)
    machine.clock.advance(9)
    machine.sync()
    assert stamp.origin is not None
    assert again.corrected(stamp.ts, stamp.origin) == pytest.approx(TRUE + 9, abs=0.001)


def test_another_boot_is_corrected_by_what_was_known_of_it_alone(tmp_path: Path) -> None:
    first = ManualClock(TRUE, "synced", boot="first")
    Timeline(first, tmp_path)
    later = Timeline(ManualClock(TRUE + 9000, "synced", boot="later"), tmp_path)
    assert later.corrected(0.0, Origin("first", 7.0)) == pytest.approx(TRUE + 7)
    assert later.corrected(0.0, Origin("never heard of", 7.0)) is None


def test_what_is_kept_has_a_bound(tmp_path: Path) -> None:
    for number in range(18):
        clock = ManualClock(TRUE, "synced", boot=f"boot-{number}")
        timeline = Timeline(clock, tmp_path)
        for _ in range(9):
            clock.advance(5)
            clock.step(1.0)
            timeline.quality()
    kept = json.loads((tmp_path / "clock.json").read_text())["truths"]
    assert len({truth["boot"] for truth in kept}) == 16
    assert len(kept) == 16 * 8


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', "\x00" * 100])
def test_a_damaged_file_is_told_and_costs_corrections_alone(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "clock.json").write_text(text)
    Timeline(ManualClock(TRUE, "unsynced"), tmp_path)
    assert "cannot be read" in caplog.text
    Timeline(ManualClock(TRUE, "synced"), tmp_path)  # and writes a good one over it
    assert msgspec.json.decode((tmp_path / "clock.json").read_bytes())["schema"] == "lisiere.clock/1"


def test_a_disk_that_refuses_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    timeline = Timeline(ManualClock(TRUE, "synced"), tmp_path / "file")
    assert timeline.quality() == "synced"
    assert "cannot be written" in caplog.text


def test_the_system_clock_has_a_boot_and_does_not_step_while_it_is_watched() -> None:
    clock = SystemClock()
    assert clock.boot() == clock.boot() == SystemClock().boot()
    timeline = Timeline(clock)
    for _ in range(1000):
        timeline.stamp()
    assert timeline.steps == 0


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.floats(0, 1e5)),
        st.tuples(st.just("step"), st.floats(-1e9, 1e9).filter(lambda step: abs(step) > 2 * STEP_S)),
        st.tuples(st.just("stamp"), st.just(0.0)),
        st.tuples(st.just("restart"), st.just(0.0)),
    ),
    max_size=30,
)


@given(_EVENTS, st.floats(-1e9, 1e9))
def test_after_any_history_every_stamp_of_the_boot_is_right(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, float]], off: float
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    machine = Machine(off, folder=folder)
    stamps: list[tuple[float, Origin, float]] = []
    for what, amount in events:
        if what == "advance":
            machine.clock.advance(amount)
        elif what == "step":
            machine.clock.step(amount)
        elif what == "restart":
            machine.timeline = Timeline(machine.clock, folder)
        else:
            stamp = machine.timeline.stamp()
            assert stamp.quality in ("unsynced", "jumped")
            assert stamp.origin is not None
            stamps.append((stamp.ts, stamp.origin, machine.true))
    machine.sync()
    machine.clock.advance(2)  # the system is asked once a second
    for ts, origin, true in stamps:
        assert machine.timeline.corrected(ts, origin) == pytest.approx(true, abs=0.01)
