from __future__ import annotations

import gc
import math
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere_compile.bench.rounds import Plan, geometric_mean, measure, order, ratio_by_round, spread

NAMES = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=1, max_size=6, unique=True)
FIGURES = st.lists(st.floats(0.01, 100), min_size=1, max_size=40)


@given(NAMES, st.integers(0, 200))
def test_every_round_has_everyone_once(names: list[str], number: int) -> None:
    assert sorted(order(names, number)) == sorted(names)


@given(NAMES)
def test_everyone_stands_at_every_place_equally_often(names: list[str]) -> None:
    places = Counter(
        (name, place) for number in range(2 * len(names)) for place, name in enumerate(order(names, number))
    )
    assert places == {(name, place): 2 for name in names for place in range(len(names))}


@given(st.lists(st.text("abcdef", min_size=1), min_size=3, max_size=6, unique=True))
def test_nobody_always_follows_the_same_other(names: list[str]) -> None:
    turns = [order(names, number) for number in range(2 * len(names))]
    for name in names:
        before = {turn[turn.index(name) - 1] for turn in turns if turn.index(name) > 0}
        assert len(before) > 1


@given(FIGURES)
def test_the_quartiles_are_in_order_and_count_everything(figures: list[float]) -> None:
    found = spread(figures)
    assert found.least <= found.q1 <= found.median <= found.q3 <= max(figures)
    assert (found.n, found.least) == (len(figures), min(figures))
    below, above = sum(one < found.median for one in figures), sum(one > found.median for one in figures)
    assert max(below, above) <= len(figures) / 2


def test_the_median_and_the_quartiles_of_known_figures() -> None:
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.q1, found.median, found.q3) == (2.0, 3.0, 4.0)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=10), st.floats(0.1, 10))
def test_the_geometric_mean_scales_and_lies_within(ratios: list[float], factor: float) -> None:
    mean = geometric_mean(ratios)
    assert mean is not None
    assert min(ratios) * (1 - 1e-9) <= mean <= max(ratios) * (1 + 1e-9)
    scaled = geometric_mean([ratio * factor for ratio in ratios])
    assert scaled is not None
    assert math.isclose(scaled, mean * factor, rel_tol=1e-9)


def test_the_geometric_mean_of_twice_and_half_is_one_and_of_nothing_is_none() -> None:
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1.0)
    assert geometric_mean([]) is None


@given(FIGURES, st.floats(0.1, 10))
def test_what_slows_a_whole_round_leaves_the_ratio_as_it_is(figures: list[float], factor: float) -> None:
    assert ratio_by_round([one * factor for one in figures], figures).median == pytest.approx(factor)


class Work:
    """Something to call, and a clock that only it moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls, self.collecting = 0.0, [""], set[bool]()
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def costing(self, name: str, seconds: float) -> object:
        self.calls.append(name)
        self.now += seconds
        self.collecting.add(gc.isenabled())
        return None


def test_measuring_gives_everyone_as_many_rounds_and_finds_what_a_call_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    costs = {"slow": 0.25, "fast": 0.001}
    calls = {name: lambda name=name: work.costing(name, costs[name]) for name in costs}
    times = measure(calls, Plan(rounds=6, seconds=0, batch_ms=8))
    assert {name: len(found) for name, found in times.items()} == {"slow": 6, "fast": 6}
    for name, found in times.items():
        assert found == pytest.approx([costs[name] * 1e3] * 6)
    # A batch of the fast one takes about as long as was asked for, and the slow one is called once a batch.
    assert work.calls.count("fast") > 6 * 8
    assert work.calls.count("slow") == 6 * 2 + 4


def test_what_disturbs_less_than_half_of_a_batch_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)

    def now_and_then() -> object:
        return work.costing("one", 0.5 if len(work.calls) % 3 == 0 else 0.001)

    times = measure({"one": now_and_then}, Plan(rounds=5, seconds=0, batch_ms=9))
    assert times["one"] == pytest.approx([1.0] * 5)


def test_measuring_goes_on_for_the_seconds_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    times = measure({"one": lambda: work.costing("one", 0.1)}, Plan(rounds=2, seconds=3, batch_ms=1))
    assert len(times["one"]) == 15  # each round calls it twice


def test_no_collection_of_garbage_falls_into_a_round_and_it_goes_on_after(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)

    def broken() -> object:
        work.costing("one", 0.1)
        if len(work.calls) > 5:
            raise RuntimeError
        return None

    with pytest.raises(RuntimeError):
        measure({"one": broken}, Plan(rounds=9, seconds=0))
    assert False in work.collecting
    assert gc.isenabled()


def test_a_batch_is_followed_by_a_wait_until_the_process_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(monkeypatch)
    used, slept = iter([0.0, 0.002, 0.002, 0.003, 0.003, 0.003]), list[float]()
    monkeypatch.setattr(time, "process_time", lambda: next(used, 0.003))
    monkeypatch.setattr(time, "sleep", slept.append)
    measure({"one": lambda: work.costing("one", 0.1)}, Plan(rounds=1, seconds=0, settle=True))
    assert len(slept) == 3


def test_nobody_to_measure_is_no_error() -> None:
    assert measure({}, Plan()) == {}
