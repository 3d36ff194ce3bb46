"""Forecast residuals: each forecast is held against its own rows, once they have come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.tasks.residual import Residual
from lisiere.values import Window

LENGTH = 6


def window(first: int, rows: int = LENGTH) -> Window:
    """Two channels that count the rows: row k holds k and 10 k."""
    counted = np.arange(first, first + rows, dtype=np.float32)
    values = np.stack([counted, 10 * counted], axis=1)
    return Window(values, float(first), float(first + rows - 1), 1.0, 1.0, 0, "s")


def ahead(one: Window, rows: int, off: float = 0.0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The right forecast, `off` by so much in each number."""
    counted = np.arange(one.end + 1, one.end + 1 + rows)
    return np.stack([counted, 10 * counted], axis=1).reshape(-1) + off


@given(st.integers(1, LENGTH), st.integers(1, 9), st.integers(3, 12))
def test_a_right_forecast_has_no_error_and_a_wrong_one_its_own(rows: int, stride: int, windows: int) -> None:
    residual = Residual(2)
    for number in range(windows):
        one = window(number * stride)
        error = residual(one, ahead(one, rows, off=float(number)))
        # The newest forecast whose rows have come is the one made so many windows ago.
        made = number - -(-rows // stride)
        # Its last row has come, and lies in this window unless windows leave rows out between them.
        if made < 0 or number * stride > made * stride + LENGTH - 1 + rows:
            assert error is None
        else:
            assert error == pytest.approx(made**2, abs=1e-9)


def test_the_first_window_has_nothing_to_compare() -> None:
    assert Residual(2)(window(0), ahead(window(0), 2)) is None


def test_rows_that_are_in_no_window_any_more_are_left_out() -> None:
    residual = Residual(2)
    wrong = ahead(window(0), 5)
    wrong[:4] += 100  # the rows 6 and 7, which the window of the rows 8 to 13 does not hold
    residual(window(0), wrong)
    assert residual(window(8), ahead(window(8), 5)) == 0


def test_rows_that_fell_into_a_gap_are_not_compared() -> None:
    residual = Residual(2)
    residual(window(0), ahead(window(0), 2))
    assert residual(window(100), ahead(window(100), 2)) is None
    assert residual(window(102), ahead(window(102), 2)) == 0


def test_forecasts_that_wait_are_bounded() -> None:
    residual = Residual(2)
    for _ in range(100):  # a clock that stands still
        residual(window(0), ahead(window(0), 3))
    assert len(residual._waiting) <= 4
