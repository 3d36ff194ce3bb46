"""Which rows a result calls interpolated."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lisiere.values import Window
from lisiere.windows import imputed_rows


def window(flags: list[bool]) -> Window:
    """A window of two channels, of which the second is interpolated where flags are set."""
    real = np.array([[True, not flag] for flag in flags])
    imputed = sum(flags)
    return Window(np.zeros((len(flags), 2), np.float32), 0.0, 1.0, 1.0, 1.0, imputed, "sensor", real)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 5))
def test_every_interpolated_row_is_named_and_the_list_is_short(flags: list[bool], most: int) -> None:
    found = imputed_rows(window(flags), most)
    named = {row for first, count in found for row in range(first, first + count)}
    wanted = {row for row, flag in enumerate(flags) if flag}
    assert len(found) <= most
    assert wanted <= named
    edges = {row for first, count in found for row in (first, first + count - 1)}
    assert edges <= wanted
    if sum(now and not before for before, now in zip([False, *flags], flags, strict=False)) <= most:
        assert named == wanted


def test_of_many_stretches_the_nearest_are_joined() -> None:
    flags = [at in (0, 10, 12, 20, 21, 30) for at in range(32)]
    assert imputed_rows(window(flags)) == [(0, 1), (10, 1), (12, 1), (20, 2), (30, 1)]
    assert imputed_rows(window(flags), 3) == [(0, 1), (10, 12), (30, 1)]
    assert imputed_rows(window(flags), 1) == [(0, 31)]


def test_a_hole_is_not_interpolated() -> None:
    one = window([True, False, True])
    one.values[0, 1] = np.nan
    assert imputed_rows(one) == [(2, 1)]
    assert imputed_rows(window([False, False])) == []
