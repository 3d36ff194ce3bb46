"""The supervisor: Retryable is tried again with growing waits; all else ends the unit, and is said."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.errors import ConfigError, LisiereError, Permanent, Rejected, Retryable
from lisiere.health import State
from lisiere.supervisor import StopOrHurry, Unit, backoff


class Stop(threading.Event):
    """A stop whose waits cost no time and are written down; it is set after `patience` of them."""

    def __init__(self, patience: int = 1_000) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._patience = patience

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if len(self.waits) >= self._patience:
            self.set()
        return self.is_set()


def run(
    body: Callable[[], None], stop: threading.Event, clock: ManualClock | None = None, longest: float = 30.0
) -> tuple[Unit, list[tuple[State, str]]]:
    reports: list[tuple[State, str]] = []
    unit = Unit("unit", body, stop, clock or ManualClock(), lambda state, why: reports.append((state, why)), longest)
    unit.start()
    assert unit.join(10)
    return unit, reports


def no_jitter() -> float:
    return 0.0


@given(st.integers(0, 10_000), st.floats(1, 3600), st.floats(0, 1))
def test_waits_are_within_one_second_and_the_bound(attempt: int, longest: float, spread: float) -> None:
    assert 1 <= backoff(attempt, longest, spread) <= longest


def test_waits_double_up_to_the_bound() -> None:
    assert [backoff(attempt, 30, 0) for attempt in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_jitter_takes_up_to_half_away() -> None:
    assert [backoff(3, 30, spread) for spread in (0, 0.5, 1)] == [8, 6, 4]
    assert backoff(0, 30, 1) == 1


def test_work_that_ends_is_run_once_and_reported() -> None:
    calls: list[int] = []
    unit, reports = run(lambda: calls.append(1), Stop())
    assert calls == [1]
    assert reports == [("ended", "")]
    assert not unit.failed


def test_retryable_is_tried_again_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", no_jitter)
    stop, calls = Stop(), 0

    def body() -> None:
        nonlocal calls
        calls += 1
        if calls < 5:
            raise Retryable("There is no camera.")

    unit, reports = run(body, stop, longest=5.0)
    assert calls == 5
    assert stop.waits == [1, 2, 4, 5]
    assert [state for state, _ in reports] == ["waiting"] * 4 + ["ended"]
    assert reports[1] == ("waiting", "There is no camera. Next try in 2.0 s.")
    assert not unit.failed


def test_a_long_healthy_run_starts_the_waits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", no_jitter)
    clock, stop = ManualClock(), Stop(patience=5)
    runs = iter([1.0, 1.0, 29.9, 30.0, 1.0])

    def body() -> None:
        clock.advance(next(runs))
        raise Retryable("Away.")

    run(body, stop, clock)
    assert stop.waits == [1, 2, 4, 1, 2]


@pytest.mark.parametrize("error", [Permanent("No."), Rejected("No."), ConfigError("No.", "$.device")])
def test_other_errors_end_the_unit_with_their_sentence(error: LisiereError) -> None:
    calls = 0

    def body() -> None:
        nonlocal calls
        calls += 1
        raise error

    unit, reports = run(body, Stop())
    assert calls == 1
    assert reports == [("failed", str(error))]
    assert unit.failed


def test_a_defect_ends_the_unit_and_is_logged_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    def body() -> None:
        raise ZeroDivisionError("division by zero")

    with caplog.at_level(logging.ERROR):
        unit, reports = run(body, Stop())
    assert reports == [("failed", "A defect: ZeroDivisionError: division by zero")]
    assert unit.failed
    assert caplog.records[0].exc_info is not None
    assert "ZeroDivisionError" in caplog.text


def test_one_failing_unit_leaves_the_others_alone() -> None:
    go, done = threading.Event(), threading.Event()

    def good() -> None:
        assert go.wait(10)
        done.set()

    def bad() -> None:
        raise RuntimeError

    other = Unit("good", good, threading.Event(), ManualClock(), lambda *_: None)
    other.start()
    unit, _ = run(bad, Stop())
    assert unit.failed
    go.set()
    assert other.join(10)
    assert done.is_set()
    assert not other.failed


def test_a_stop_during_a_wait_ends_the_unit_without_another_try() -> None:
    stop, calls = Stop(patience=2), 0

    def body() -> None:
        nonlocal calls
        calls += 1
        raise Retryable("Away.")

    unit, reports = run(body, stop)
    assert calls == 2
    assert reports[-1] == ("ended", "")
    assert not unit.failed


def test_a_real_wait_is_cut_short_by_stop() -> None:
    stop, waiting = threading.Event(), threading.Event()

    def body() -> None:
        raise Retryable("Away.")

    unit = Unit("unit", body, stop, ManualClock(), lambda *_: waiting.set(), 3600)
    unit.start()
    assert waiting.wait(10)
    stop.set()
    assert unit.join(10)


def test_a_unit_that_is_stopped_before_it_starts_does_nothing() -> None:
    stop = Stop()
    stop.set()
    _, reports = run(lambda: pytest.fail("it ran"), stop)
    assert reports == [("ended", "")]


def test_join_says_whether_the_end_came() -> None:
    go = threading.Event()

    def body() -> None:
        assert go.wait(10)

    unit = Unit("unit", body, threading.Event(), ManualClock(), lambda *_: None)
    unit.start()
    assert not unit.join(0)
    go.set()
    assert unit.join(10)


def test_a_wait_can_be_hurried_without_stopping() -> None:
    stop, waiting, tries = StopOrHurry(), threading.Semaphore(0), threading.Semaphore(0)

    def body() -> None:
        tries.release()
        raise Retryable("It is away.")

    unit = Unit("unit", body, stop, ManualClock(), lambda *_: waiting.release(), 3600)
    unit.start()
    for _ in range(5):  # real waits would add up to half a minute
        assert tries.acquire(timeout=10)
        assert waiting.acquire(timeout=10)
        stop.hurry()
    assert tries.acquire(timeout=10)
    stop.set()
    assert unit.join(10)
    assert not unit.failed
