"""Intervals hold their coverage where the model's own do not, and never turn into nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.tasks.intervals import AdaptiveFactors, half_widths, lead_groups

Array = NDArray[np.float64]


@given(st.integers(1, 800))
def test_groups_hold_every_lead_in_order_and_are_few(horizon: int) -> None:
    groups = lead_groups(horizon)
    assert len(groups) == horizon
    assert groups[0] == 0
    assert set(np.diff(groups)) <= {0, 1}
    assert groups[-1] < 20
    sizes = np.bincount(groups)
    assert (np.diff(sizes[:-1]) >= 0).all()


def covered(sizes: Array, coverage: float = 0.9, horizon: int = 1) -> Array:
    """Forecast at each row, `sizes` [rows] in half-widths at every lead; whether each interval [rows] held."""
    factors = AdaptiveFactors(coverage, lead_groups(horizon), 1)
    groups = lead_groups(horizon)
    given_: list[Array] = []
    held = np.zeros((len(sizes), horizon))
    for row, size in enumerate(sizes):
        leads = np.arange(1, min(row, horizon) + 1)
        told = np.array([[given_[row - lead][groups[lead - 1], 0]] for lead in leads]).reshape(-1, 1)
        missed = size > told
        held[row, leads - 1] = ~missed[:, 0]
        if len(leads):
            factors.learn(leads, np.full((len(leads), 1), size), missed, np.ones((len(leads), 1), np.bool_))
        given_.append(factors.factors())
    return held[horizon:]


@pytest.mark.parametrize("horizon", [1, 12])
def test_coverage_is_held_when_the_noise_grows_and_shrinks(horizon: int) -> None:
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(0, 1 / 1.645, 3000))  # a half-width of 1 covers 90 %
    noise[1000:2000] *= 3
    noise[2000:] *= 0.5
    fixed = float((noise <= 1).mean())
    held = covered(noise, horizon=horizon)
    assert fixed < 0.85
    assert 0.88 <= held.mean() <= 0.92
    for third in np.array_split(held, 3):
        assert 0.86 <= third.mean() <= 0.94


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.95])
def test_the_coverage_that_was_asked_for_is_held(coverage: float) -> None:
    sizes = np.abs(np.random.default_rng(1).standard_t(3, 4000))
    assert covered(sizes, coverage).mean() == pytest.approx(coverage, abs=0.04)


@given(st.lists(st.sampled_from([0.0, 1.0, 1e300, 1e-300]), max_size=300), st.booleans())
def test_factors_stay_numbers_within_bounds(sizes: list[float], missed: bool) -> None:
    factors = AdaptiveFactors(0.9, lead_groups(3), 2)
    for size in sizes:
        leads = np.array([1, 3])
        factors.learn(leads, np.full((2, 2), size), np.full((2, 2), missed), np.ones((2, 2), np.bool_))
    found = factors.factors()
    assert np.isfinite(found).all()
    assert (found > 0.001).all()
    assert (found < 1000).all()


def test_what_is_not_known_moves_nothing() -> None:
    factors = AdaptiveFactors(0.9, lead_groups(4), 2)
    before = factors.factors()
    known = np.array([[True, False]])
    factors.learn(np.array([2]), np.array([[9.0, np.nan]]), np.array([[True, True]]), known)
    moved = factors.factors() != before
    assert moved[lead_groups(4)[1]].tolist() == [True, False]
    assert moved.sum() == 1


def test_half_widths_are_stretched_as_a_normal_distribution_is() -> None:
    quantiles = np.array([[-1.2816, 0.0, 2 * 1.2816]])
    below, above = half_widths(quantiles, (0.1, 0.5, 0.9), quantiles[:, 1], 0.9)
    assert below == pytest.approx([1.6449], abs=1e-3)
    assert above == pytest.approx([2 * 1.6449], abs=1e-3)
