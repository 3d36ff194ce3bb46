"""Order: by seq where what is older comes in time, and never held for longer than was said."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lisiere.subscriber.intervals import Intervals, Range
from lisiere.subscriber.sorter import Key, Sorter
from lisiere.sync.envelope import ResultEnvelope
from support.wire import Envelopes

WAIT_S = 30.0


class Bench:
    """A sorter with the ledger that it asks."""

    def __init__(self, most: int = 100) -> None:
        self.known = Intervals()
        self.sorter = Sorter(WAIT_S, most, self.holes)

    def holes(self, _key: Key, first: int, last: int) -> list[Range]:
        return self.known.missing(first, last)

    def put(self, *seqs: int, now: float = 0.0, device: str = "sim") -> None:
        for seq in seqs:
            self.known.add(seq)
            self.sorter.put(msgspec.json.decode(Envelopes(device=device).result(seq), type=ResultEnvelope), now)

    def take(self, now: float = 0.0) -> list[int]:
        return [result.seq for result in self.sorter.take(now)]


def test_what_came_live_waits_for_the_backlog() -> None:
    bench = Bench()
    bench.put(1, 2, 6, 7)
    assert bench.take() == [1, 2]
    bench.put(4, 3)
    assert bench.take() == [3, 4]
    bench.put(5)
    assert bench.take() == [5, 6, 7]
    assert bench.sorter.due_at() is None


def test_what_is_explained_is_not_waited_for() -> None:
    bench = Bench()
    bench.put(1, 5)
    assert bench.take() == [1]
    bench.known.add(2, 4)
    assert bench.take() == [5]


def test_a_wait_has_an_end() -> None:
    bench = Bench()
    bench.put(1)
    assert bench.take() == [1]
    bench.put(4, now=1.0)
    bench.put(3, now=5.0)
    bench.put(9, now=10.0)
    assert bench.sorter.due_at() == 31.0
    assert bench.take(30.9) == []
    assert bench.take(31.0) == [3, 4]
    bench.put(2, now=32.0)  # too late for its place, but not lost
    assert bench.take(32.0) == [2]
    assert bench.take(40.0) == [9]


def test_the_first_waits_for_a_moment_only() -> None:
    bench = Bench()
    bench.put(10)
    assert bench.take(0.5) == []
    bench.put(9, now=0.6)
    assert bench.take(1.0) == [9, 10]


def test_so_many_are_held_and_no_more() -> None:
    bench = Bench(most=3)
    bench.put(1)
    assert bench.take() == [1]
    bench.put(3, 5, 7)
    assert bench.take() == []
    bench.put(9)
    assert bench.take() == [3]


def test_devices_do_not_wait_for_each_other() -> None:
    bench = Bench()
    bench.put(1)
    bench.put(3, device="other")
    assert bench.take() == [1]
    assert [result.seq for result in bench.sorter.held()] == [3]
    assert [result.seq for result in bench.sorter.flush("sim")] == []
    assert [result.seq for result in bench.sorter.flush()] == [3]
    assert bench.sorter.due_at() is None


@given(st.permutations(range(1, 25)))
def test_whatever_comes_in_time_is_in_order(order: list[int]) -> None:
    bench, taken = Bench(), []
    for seq in order:
        bench.put(seq)
        taken += bench.take()
    assert taken == list(range(1, 25))
