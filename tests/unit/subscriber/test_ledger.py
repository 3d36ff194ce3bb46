"""The ledger: each seq once, and each hole told once, after it has settled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.subscriber import ledger as module
from lisiere.subscriber.ledger import Ledger

SETTLE_S = 60.0


def test_a_hole_is_told_once_when_nothing_has_filled_it() -> None:
    ledger = Ledger(0.0)
    assert [ledger.arrive(seq, 1.0) for seq in (5, 6, 9)] == [True, True, True]
    assert ledger.settles_at(SETTLE_S) == 61.0
    assert ledger.take_settled(60.9, SETTLE_S) == []
    assert ledger.take_settled(61.0, SETTLE_S) == [("unexplained", [(7, 8)])]
    assert ledger.take_settled(99.0, SETTLE_S) == []
    assert ledger.settles_at(SETTLE_S) is None
    assert ledger.arrive(7, 100.0)  # late, but it came


def test_what_lies_before_the_first_is_not_missed() -> None:
    ledger = Ledger(0.0)
    ledger.arrive(1000, 0.0)
    assert ledger.settles_at(SETTLE_S) is None
    ledger.arrive(998, 5.0)  # unless there turns out to be more of it
    assert ledger.take_settled(65.0, SETTLE_S) == [("unexplained", [(999, 999)])]


def test_one_that_was_there_from_the_beginning_expects_all() -> None:
    ledger = Ledger(0.0)
    ledger.expect_all()
    ledger.arrive(4, 0.0)
    assert ledger.take_settled(60.0, SETTLE_S) == [("unexplained", [(1, 3)])]


def test_a_backlog_that_moves_keeps_a_hole_open() -> None:
    ledger = Ledger(0.0)
    for seq in (1, 100):
        ledger.arrive(seq, 50.0)
    for seq in range(2, 99):
        assert ledger.take_settled(seq * 50.0 - 41, SETTLE_S) == []
        ledger.arrive(seq, seq * 50.0)
    assert ledger.take_settled(98 * 50.0 + SETTLE_S, SETTLE_S) == [("unexplained", [(99, 99)])]


def test_a_gap_record_names_what_neither_came_nor_was_named_before() -> None:
    ledger = Ledger(0.0)
    for seq in (1, 3, 9):
        ledger.arrive(seq, 0.0)
    assert ledger.explain([(2, 4), (6, 6)], 1.0) == [(2, 2), (4, 4), (6, 6)]
    assert ledger.explain([(2, 5)], 2.0) == [(5, 5)]
    assert ledger.holes(1, 9) == [(7, 8)]
    assert ledger.arrive(6, 3.0)  # its PUBACK was lost, and it was evicted afterwards


def test_a_gap_record_after_the_hole_was_told_still_explains_it() -> None:
    ledger = Ledger(0.0)
    ledger.arrive(1, 0.0)
    ledger.arrive(4, 0.0)
    ledger.take_settled(60.0, SETTLE_S)
    assert ledger.explain([(2, 3)], 61.0) == [(2, 3)]


def test_what_comes_to_be_missing_with_the_connection_is_told_apart() -> None:
    ledger = Ledger(0.0)
    ledger.arrive(1, 0.0)
    ledger.arrive(3, 0.0)
    ledger.away()
    ledger.arrive(9, 1.0)
    ledger.arrive(11, 1.0)
    assert ledger.take_settled(61.0, SETTLE_S) == [
        ("unexplained", [(2, 2), (10, 10)]),
        ("subscriber_away", [(4, 8)]),
    ]


def test_what_was_remembered_goes_on() -> None:
    ledger = Ledger(0.0, [(1, 5)], [(1, 8)])
    assert not ledger.arrive(4, 0.0)
    ledger.arrive(12, 0.0)
    assert ledger.take_settled(60.0, SETTLE_S) == [("subscriber_away", [(9, 11)])]


def test_health_shows_a_hole_at_the_end() -> None:
    ledger = Ledger(0.0)
    ledger.extend(7, 0.0)
    assert ledger.settles_at(SETTLE_S) is None  # nothing came yet, so nothing is expected
    ledger.arrive(5, 0.0)
    ledger.extend(7, 1.0)
    ledger.extend(6, 2.0)
    assert ledger.take_settled(61.0, SETTLE_S) == [("unexplained", [(6, 7)])]


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECES_MAX", 10)
    ledger = Ledger(0.0)
    told = []
    for seq in range(1, 1001, 2):
        ledger.arrive(seq, 0.0)
        told += ledger.take_settled(0.0, SETTLE_S)
        ledger.explain([(seq + 5000, seq + 5000)], 0.0)
    assert max(ledger.arrived.pieces, ledger.named.pieces) <= 11
    assert ledger.known.pieces <= 11
    assert told[0] == ("unexplained", [(2, 2)])  # given up before its time


@given(
    st.permutations(range(1, 30)), st.sets(st.integers(1, 29)), st.lists(st.integers(0, 3), min_size=29, max_size=29)
)
def test_every_number_comes_is_explained_or_is_told_once(order: list[int], lost: set[int], pauses: list[int]) -> None:
    ledger, now, told = Ledger(0.0), 0.0, []
    ledger.expect_all()
    for seq, pause in zip(order, pauses, strict=True):
        now += pause
        if seq not in lost:
            assert ledger.arrive(seq, now)
            assert not ledger.arrive(seq, now)
    ledger.extend(29, now)
    for reason, ranges in ledger.take_settled(now + SETTLE_S, SETTLE_S):
        assert reason == "unexplained"
        told += [seq for first, last in ranges for seq in range(first, last + 1)]
    assert told == sorted(lost)
