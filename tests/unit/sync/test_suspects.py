"""Suspects: a poison message is convicted, and a bad network convicts nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lisiere.sync.suspects import ALONE_AFTER, SKIPPED_AFTER, Suspects


def test_the_one_that_is_always_there_is_found_and_convicted_when_another_passes() -> None:
    suspects = Suspects()
    suspects.lost({1, 2, 3})
    assert not suspects.alone([2])
    suspects.lost({2, 3, 4})
    assert suspects.alone([2])
    assert suspects.alone([3])
    assert not suspects.alone([4])
    suspects.passed([2])  # it was innocent
    for _ in range(SKIPPED_AFTER - ALONE_AFTER):
        assert suspects.skipped is None
        suspects.lost({3})
    assert suspects.skipped == 3
    assert suspects.passed([4]) == 3
    assert suspects.passed([5]) is None
    assert suspects.losses == 0


def test_where_nothing_passes_nobody_is_convicted() -> None:
    suspects = Suspects()
    for _ in range(SKIPPED_AFTER):
        suspects.lost({7})
    assert suspects.skipped == 7
    suspects.lost({8})  # without it, too
    assert suspects.skipped is None
    assert suspects.passed([8]) is None


def test_a_loss_with_nothing_under_way_accuses_nobody() -> None:
    suspects = Suspects()
    for _ in range(10):
        suspects.lost(())
    assert (suspects.losses, suspects.skipped) == (0, None)


@given(st.lists(st.one_of(st.just("passed"), st.sets(st.integers(0, 5), max_size=4)), max_size=60))
def test_only_what_was_under_way_at_every_one_of_the_last_losses_is_skipped(steps: list[str | set[int]]) -> None:
    suspects = Suspects()
    losses: list[set[int]] = []
    for step in steps:
        if isinstance(step, str):
            if suspects.skipped is None:
                suspects.passed(range(6))
                losses.clear()
        else:
            skipped = suspects.skipped
            suspects.lost(step)
            if skipped is not None:
                losses.clear()
            losses.extend([step] if step else [])
        if suspects.skipped is not None:
            assert all(suspects.skipped in under_way for under_way in losses[-SKIPPED_AFTER:])
