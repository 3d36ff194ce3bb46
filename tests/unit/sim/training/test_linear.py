"""The closed form: it is least squares, it finds what made the data, and it reads nothing that lies ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.training.linear import Linear, examples, fit, moments


def everything(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape, np.bool_)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    length=st.integers(1, 6),
    horizon=st.integers(1, 6),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    holes=st.sets(st.integers(0, 39), max_size=4),
    unreal=st.sets(st.integers(0, 39), max_size=4),
)
def test_examples_are_all_windows_whose_targets_lie_in_the_part(
    rows: int, length: int, horizon: int, cut: tuple[int, int], holes: set[int], unreal: set[int]
) -> None:
    values = np.arange(rows, dtype=np.float64)[:, np.newaxis]
    values[[hole for hole in holes if hole < rows]] = np.nan
    real = everything(values)
    real[[one for one in unreal if one < rows]] = False
    first, stop = min(cut[0], rows), min(max(cut), rows)
    expected = [
        end
        for end in range(length - 1, rows)
        if first <= end + 1
        and end + horizon < stop
        and real[end, 0]
        and np.isfinite(values[end - length + 1 : end + horizon + 1]).all()
    ]
    found = [
        int(window[-1])
        for _, windows, after in examples(values, real, length, horizon, first, stop)
        for window, ahead in zip(windows, after, strict=True)
        if (ahead == window[-1] + np.arange(1, horizon + 1)).all() and len(window) == length
    ]
    assert found == expected


def test_moments_give_the_error_that_predicting_gives() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (200, 2)).cumsum(axis=0)
    part = moments(values, everything(values), 8, 3, 50, 200)
    model = Linear(rng.normal(0, 0.3, (8, 3)), rng.normal(0, 0.1, 3), 0.0)
    errors = [
        after - model.predict(windows) for _, windows, after in examples(values, everything(values), 8, 3, 50, 200)
    ]
    assert part.error(model.weights, model.bias) == pytest.approx(float(np.square(errors).mean()))
    assert part.count == sum(len(error) for error in errors)


@pytest.mark.parametrize("trend", [0.0, 0.05])
def test_what_made_the_data_is_found(trend: float) -> None:
    """A recurrence of two steps, with a trend that takes a bias."""
    rng = np.random.default_rng(1)
    values = np.zeros((4000, 1))
    for at in range(2, 4000):
        values[at] = values[at - 1] + 0.7 * (values[at - 1] - values[at - 2]) + trend + rng.normal(0, 0.1)
    real = everything(values)
    model = fit(moments(values, real, 6, 2, 6, 3000), moments(values, real, 6, 2, 3000, 3500))
    held = moments(values, real, 6, 2, 3500, 4000)
    # One step ahead nothing but the noise is left, two ahead that and 1.7 times the first.
    assert held.error(model.weights, model.bias) == pytest.approx(0.01 * (1 + 1 + 1.7**2) / 2, rel=0.2)
    assert bool(model.bias.any()) == (trend > 0)


def test_a_forecast_moves_with_the_level() -> None:
    rng = np.random.default_rng(2)
    model = Linear(rng.normal(0, 1, (5, 3)), rng.normal(0, 1, 3), 0.0)
    windows = rng.normal(0, 1, (4, 5))
    np.testing.assert_allclose(model.predict(windows + 100), model.predict(windows) + 100)


def test_a_part_without_a_window_is_an_error() -> None:
    values = np.zeros((10, 1))
    with pytest.raises(ValueError, match="no window without a hole"):
        moments(values, everything(values), 8, 4, 0, 10)
