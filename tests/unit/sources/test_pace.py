"""Pacing: items come when they are due, late ones are not hurried, and a stop ends the wait."""

from __future__ import annotations

import threading

import pytest

from lisiere.clock import ManualClock
from lisiere.sources.pace import Pacer
from support.sources import Stop


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
