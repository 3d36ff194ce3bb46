"""Pacing: items come when they are due, late ones are not hurried, and a stop ends the wait."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.sources.pace import Pacer, polled
from support.sources import Faults, Stop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_items_are_an_interval_apart(clock: ManualClock) -> None:
    stop = Stop(clock)
    pacer = Pacer(clock, stop)
    assert all(pacer.wait(0.25) for _ in range(8))
    assert stop.waits == [0.25] * 8
    assert clock.monotonic() == 2.0


def test_the_time_an_item_took_is_no_part_of_the_wait(clock: ManualClock) -> None:
    stop = Stop(clock)
    pacer = Pacer(clock, stop)
    for _ in range(4):
        clock.advance(0.1)
        pacer.wait(0.25)
    assert clock.monotonic() == pytest.approx(1.0)
    assert stop.waits == pytest.approx([0.15] * 4)


def test_intervals_may_differ(clock: ManualClock) -> None:
    stop = Stop(clock)
    pacer = Pacer(clock, stop)
    for interval in (1.0, 0.0, 2.5):
        pacer.wait(interval)
    assert stop.waits == [1.0, 0.0, 2.5]


def test_a_late_consumer_is_not_hurried_to_catch_up(clock: ManualClock) -> None:
    stop = Stop(clock)
    pacer = Pacer(clock, stop)
    clock.advance(100.0)
    for _ in range(4):
        pacer.wait(1.0)
    # One interval may be made up for, not a hundred.
    assert stop.waits == [0.0, 0.0, 1.0, 1.0]


def test_a_stop_ends_the_wait_and_is_told(clock: ManualClock) -> None:
    stop = threading.Event()
    pacer = Pacer(clock, stop)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(pacer.wait(3600)))
    thread.start()
    stop.set()
    thread.join(10)
    assert answers == [False]
    assert not pacer.wait(0)


@pytest.mark.parametrize("interval", [1e12, 1e300, float("inf")])
def test_an_interval_of_ages_can_be_waited_for(clock: ManualClock, interval: float) -> None:
    stop = threading.Event()
    stop.set()
    assert not Pacer(clock, stop).wait(interval)
    assert Pacer(clock, Stop(clock)).wait(interval)


def asked(took: list[float], interval: float) -> tuple[list[float], Faults]:
    """When a source is asked whose answers take so long, and what is told."""
    clock, faults = ManualClock(1000.0), Faults()
    stop = Stop(clock)
    left = iter(took)

    def ask() -> list[float]:
        clock.advance(next(left))
        return [1.0]

    items = polled(ask, interval, "sensor", clock, faults, stop)
    return [next(items).ts - 1000.0 for _ in took], faults


def test_what_is_polled_keeps_to_its_times_whatever_an_answer_takes() -> None:
    times, faults = asked([0.25, 1.0] * 500, 1.0)
    assert times == [float(at) for at in range(1000)]
    assert faults == []


def test_turns_that_have_passed_are_left_out_and_told_together() -> None:
    times, faults = asked([0.25, 3.5, 0.25, 0.25], 1.0)
    assert times == [0.0, 1.0, 5.0, 6.0]
    assert faults == [("poll_late", "Reading took longer than the 1 s between two; 3 were left out.")]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=50))
def test_every_turn_is_on_the_schedule_and_none_is_asked_twice(quarters: list[int]) -> None:
    times, faults = asked([quarter / 4 for quarter in quarters], 1.0)
    assert all(time == int(time) for time in times)
    assert times == sorted(set(times))
    left_out = sum(int(sentence.split("; ")[1].split()[0]) for _, sentence in faults)
    # The last answer's own delay is told when it is asked again, which it is not here.
    assert times[-1] == len(times) - 1 + left_out


def test_a_stop_ends_polling_at_once() -> None:
    clock = ManualClock()
    stop = Stop(clock)
    items = polled(lambda: [1.0], 10.0, "sensor", clock, Faults(), stop)
    next(items)
    stop.set()
    assert list(items) == []
