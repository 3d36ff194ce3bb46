"""The temperature: the least log loss, and scores that are as sure as they are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.calibration.temperature import (
    HIGHEST,
    LOWEST,
    Floats,
    Labels,
    calibration_error,
    fit_temperature,
    log_loss,
    tempered,
)
from lisiere.errors import Rejected


def sample(seed: int, count: int, temperature: float, classes: int = 4) -> tuple[Floats, Labels]:
    """Logits of a model that is `temperature` times too sure, and labels drawn from what it should say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (count, classes))
    shares = tempered(logits, 1.0)
    labels = (shares.cumsum(1) < rng.random((count, 1))).sum(1)
    return logits * temperature, labels.clip(0, classes - 1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 8.0])
def test_it_is_found_again_and_calibrates_what_it_was_not_fitted_to(temperature: float) -> None:
    logits, labels = sample(1, 20_000, temperature)
    found = fit_temperature(logits[:10_000], labels[:10_000])
    assert found == pytest.approx(temperature, rel=0.06)
    shares = tempered(logits[10_000:], found)
    assert calibration_error(shares.max(1), shares.argmax(1) == labels[10_000:]) < 0.02
    assert log_loss(shares, labels[10_000:]) <= log_loss(tempered(logits[10_000:], 1.0), labels[10_000:]) + 2e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.2, 5))
def test_no_other_temperature_has_a_lower_loss(seed: int, temperature: float) -> None:
    logits, labels = sample(seed, 200, temperature)
    found = fit_temperature(logits, labels)
    least = log_loss(tempered(logits, found), labels)
    for other in np.geomspace(LOWEST, HIGHEST, 40):
        assert least <= log_loss(tempered(logits, float(other)), labels) + 1e-9


def test_images_that_are_all_right_fit_no_temperature() -> None:
    with pytest.raises(Rejected, match="gets 0 wrong"):
        fit_temperature(np.eye(4) * 3, np.arange(4))


def test_scores_that_say_nothing_fit_no_temperature() -> None:
    with pytest.raises(Rejected, match="No temperature between"):
        fit_temperature(-np.eye(4) * 3, np.arange(4))


def test_the_loss_of_a_share_of_zero_is_bounded() -> None:
    assert log_loss(np.asarray([[1.0, 0.0]]), np.asarray([1])) == pytest.approx(-math.log(1e-12))


def test_the_calibration_error_by_hand() -> None:
    # Two in the bin of 0.9, of which one is right; two in that of 0.6, both right.
    sure, right = np.asarray([0.9, 0.9, 0.6, 0.6]), np.asarray([True, False, True, True])
    assert calibration_error(sure, right) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    assert calibration_error(np.asarray([1.0]), np.asarray([True])) == 0


def test_large_logits_do_not_overflow() -> None:
    assert tempered(np.asarray([[1e300, -1e300, 0.0]]), 0.05) == pytest.approx(np.asarray([[1.0, 0.0, 0.0]]))
