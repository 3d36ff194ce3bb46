"""The pace: never above either limit in any one-second window, and not needlessly below."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock, SystemClock
from lisiere.sync.pace import Pace


def leave(pace: Pace, clock: ManualClock, size: int) -> tuple[float, int]:
    """Let one message leave as soon as it may; return when, and its size."""
    while wait := pace.take(size):
        assert wait > 0
        clock.advance(wait + 1e-9)
    return clock.monotonic(), size


def worst(sent: list[tuple[float, int]]) -> tuple[int, int]:
    """The most messages and bytes in any window [t, t + 1)."""
    windows = [[size for at, size in sent if begin <= at < begin + 1] for begin, _ in sent]
    return max(len(window) for window in windows), max(sum(window) for window in windows)


@given(
    per_s=st.integers(1, 40),
    kib_per_s=st.integers(4, 40),
    steps=st.lists(st.tuples(st.integers(1, 4096), st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.4, 3.0])), max_size=120),
)
def test_neither_limit_is_exceeded_in_any_one_second(
    per_s: int, kib_per_s: int, steps: list[tuple[int, float]]
) -> None:
    clock = ManualClock()
    pace = Pace(per_s, kib_per_s * 1024, clock)
    sent = []
    for size, idle in steps:
        clock.advance(idle)
        sent.append(leave(pace, clock, size))
    if sent:
        messages, size = worst(sent)
        assert messages <= per_s
        assert size <= kib_per_s * 1024


@pytest.mark.parametrize(("size", "per_s"), [(1000, 80.0), (16_384, 25.0)])
def test_what_waits_leaves_at_the_full_rate(size: int, per_s: float) -> None:
    clock = ManualClock()
    pace = Pace(80, 400 * 1024, clock)
    for _ in range(10 * int(per_s)):
        leave(pace, clock, size)
    assert clock.monotonic() == pytest.approx(10, rel=0.05)


def test_what_leaves_is_spread_so_that_the_next_one_waits_for_a_moment_only() -> None:
    clock = ManualClock()
    pace = Pace(80, 0, clock)
    at = [leave(pace, clock, 100)[0] for _ in range(400)]
    assert at[4] == 0  # a few go at once
    assert max(later - sooner for sooner, later in itertools.pairwise(at)) < 0.07


def test_nought_switches_both_off() -> None:
    pace = Pace(0, 0, ManualClock())
    assert {pace.take(1 << 20) for _ in range(10_000)} == {0.0}


def test_a_message_larger_than_the_limit_goes_by_itself() -> None:
    clock = ManualClock()
    pace = Pace(80, 1000, clock)
    at = [leave(pace, clock, 5000)[0] for _ in range(3)]
    assert at == pytest.approx([0, 5, 10], abs=0.2)


def test_threads_do_not_spend_the_same_allowance() -> None:
    pace = Pace(50, 0, SystemClock())
    taken: list[float] = []

    def work() -> None:
        taken.extend(pace.take(1) for _ in range(2000))

    threads = [threading.Thread(target=work) for _ in range(4)]
    clock = SystemClock()
    begun = clock.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 8,000 were asked for at once; what was granted is what the time that it took allows.
    assert sum(wait == 0 for wait in taken) <= 50 * (clock.monotonic() - begun) + 4
