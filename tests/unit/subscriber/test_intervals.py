"""Ranges of whole numbers: the same as a set, in less room."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lisiere.subscriber.intervals import Intervals

NUMBERS = st.integers(1, 60)
RANGES = st.lists(st.tuples(NUMBERS, st.integers(-1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=25)


def spread(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in ranges for number in range(first, last + 1)}


@given(RANGES, RANGES)
def test_it_is_a_set(given_at_first: list[tuple[int, int]], added: list[tuple[int, int]]) -> None:
    kept, model = Intervals(given_at_first), spread(given_at_first)
    for first, last in added:
        new = spread([(first, last)]) - model
        assert kept.add(first, last) is bool(new)
        model |= new
    assert spread(kept.ranges()) == model
    assert len(kept) == len(model)
    assert [number for number in range(70) if number in kept] == sorted(model)


@given(RANGES)
def test_ranges_are_in_order_and_never_touch(ranges: list[tuple[int, int]]) -> None:
    kept = Intervals(ranges).ranges()
    assert all(first <= last for first, last in kept)
    assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(kept))


@given(RANGES, NUMBERS, NUMBERS)
def test_what_is_missing_is_the_rest(ranges: list[tuple[int, int]], first: int, last: int) -> None:
    kept = Intervals(ranges)
    missing = kept.missing(first, last)
    assert spread(missing) == spread([(first, last)]) - spread(ranges)
    assert kept.covers(first, last) is (not missing)


@given(RANGES, st.lists(NUMBERS, max_size=10))
def test_numbers_can_be_taken_out(ranges: list[tuple[int, int]], numbers: list[int]) -> None:
    kept = Intervals(ranges)
    assert spread(kept.ranges_without(numbers)) == spread(ranges) - set(numbers)
    assert spread(kept.ranges()) == spread(ranges)


def test_a_long_run_is_one_range() -> None:
    kept = Intervals()
    for number in range(1, 10_001):
        kept.add(number)
    assert kept.ranges() == [(1, 10_000)]


def test_the_lowest_hole_can_be_given_up() -> None:
    kept = Intervals([(1, 3), (7, 8), (10, 10)])
    assert kept.close_lowest() == (4, 6)
    assert kept.ranges() == [(1, 8), (10, 10)]
    assert Intervals([(1, 1)]).close_lowest() is None
