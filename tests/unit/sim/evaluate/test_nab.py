"""The NAB score, against cases computed by hand from the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.evaluate.nab import PROFILES, Profile, Series, probation, scaled_sigmoid, score, spans, worth

STANDARD = PROFILES["standard"]
ROWS, FIRST, LAST = 1000, 400, 499


def series(*alarms: int, rows: int = ROWS, windows: tuple[tuple[int, int], ...] = ((FIRST, LAST),)) -> Series:
    scores = np.zeros(rows)
    scores[list(alarms)] = 1.0
    return Series(np.arange(rows, dtype=np.float64), scores, windows)


def raw(*alarms: int, profile: Profile = STANDARD) -> float:
    return score([series(*alarms)], profile, 1.0).raw


def test_the_sigmoid_is_that_of_the_paper() -> None:
    # The values that the paper and the published scorer name.
    assert scaled_sigmoid(-1.0) == pytest.approx(0.98661, abs=1e-5)
    assert scaled_sigmoid(-0.5) == pytest.approx(0.84828, abs=1e-5)
    assert scaled_sigmoid(0.0) == 0.0
    assert scaled_sigmoid(1.0) == pytest.approx(-0.98661, abs=1e-5)
    assert scaled_sigmoid(3.0) == -1.0


@pytest.mark.parametrize(("rows", "expected"), [(1000, 150), (1001, 150), (5000, 750), (22_695, 750), (6, 0)])
def test_probation_is_a_share_of_the_first_5000_rows(rows: int, expected: int) -> None:
    assert probation(rows) == expected


def test_an_alarm_counts_by_how_early_in_the_window_it_comes() -> None:
    assert raw() == -1.0
    assert raw(400) == pytest.approx(1.0)  # the left edge: 0.98661 / 0.98661
    assert raw(450) == pytest.approx(0.84828 / 0.98661, abs=1e-5)  # position -(499 - 450 + 1) / 100 = -0.5
    assert raw(499) == pytest.approx((2 / (1 + math.exp(-0.05)) - 1) / 0.98661, abs=1e-5)  # position -0.01


def test_the_best_alarm_of_a_window_counts_once() -> None:
    assert raw(450, 400, 499) == pytest.approx(1.0)


def test_false_alarms_cost_by_how_far_behind_a_window_they_come() -> None:
    assert raw(300, 400) == pytest.approx(1.0 - 0.11)  # before any window
    near = (2 / (1 + math.exp(5 * 21 / 99)) - 1) * 0.11  # 21 rows behind a window of 100
    assert raw(520, 400) == pytest.approx(1.0 + near)
    assert raw(900, 400) == pytest.approx(1.0 - 0.11)  # more than three widths behind


def test_alarms_in_the_probation_count_for_nothing() -> None:
    assert raw(0, 149, 400) == pytest.approx(1.0)
    assert raw(150, 400) == pytest.approx(1.0 - 0.11)


def test_profiles_weigh_differently() -> None:
    assert raw(300, profile=PROFILES["reward_low_FP_rate"]) == pytest.approx(-1.0 - 0.22)
    assert raw(300, profile=PROFILES["reward_low_FN_rate"]) == pytest.approx(-2.0 - 0.11)


def test_the_score_is_normalised_between_no_alarm_and_perfect() -> None:
    assert score([series()], STANDARD, 1.0).normalised == 0.0
    assert score([series(400)], STANDARD, 1.0).normalised == pytest.approx(100.0)
    found = score([series(450, 300)], STANDARD, 1.0)
    assert found.normalised == pytest.approx(100 * (0.84828 / 0.98661 - 0.11 + 1) / 2, abs=1e-3)
    assert (found.detected, found.windows, found.false_alarms) == (1, 1, 1)


def test_one_threshold_is_chosen_for_the_whole_corpus() -> None:
    """Each series by itself would choose another: what counts is the sum."""
    first, second = series(), series()
    first.scores[400] = 0.9
    second.scores[[400, 200, 201, 202]] = (0.5, 0.8, 0.8, 0.8)
    found = score([first, second], STANDARD)
    # At 0.9: 1 - 1 = 0. At 0.8: 1 - 1 - 0.33. At 0.5: 1 + 1 - 0.33.
    assert found.threshold == 0.5
    assert found.raw == pytest.approx(2 - 0.33)
    assert (found.detected, found.windows, found.false_alarms) == (2, 2, 3)


def test_no_alarm_at_all_may_be_the_best_threshold() -> None:
    found = score([Series(np.arange(1000.0), np.full(1000, 0.5), ())], STANDARD)
    assert found.threshold == math.inf
    assert found.raw == 0
    assert math.isnan(found.normalised)


def test_rows_of_one_score_join_together() -> None:
    """A threshold cannot divide equals: 850 rows of 0.5 are alarms or are not."""
    whole = Series(np.arange(1000.0), np.full(1000, 0.5), ((400.0, 499.0),))
    assert score([whole], STANDARD).threshold == math.inf
    assert score([whole], STANDARD, 0.5).false_alarms == 750
    assert score([whole], STANDARD, 0.51).false_alarms == 0


def test_a_window_within_the_probation_cannot_be_detected_and_is_not_missed() -> None:
    found = score([series(400, windows=((10, 60), (FIRST, LAST)))], STANDARD, 1.0)
    assert (found.windows, found.detected) == (1, 1)
    assert found.normalised == pytest.approx(100.0)


def test_windows_are_found_by_time() -> None:
    times = np.array([0.0, 10.0, 20.0, 30.0])
    assert spans(times, [(5, 20), (25, 28)]) == [(1, 2)]
    value, inside = worth(4, [(1, 2)], STANDARD)
    assert inside.tolist() == [-1, 0, 0, -1]
    assert value[0] == -0.11
    assert value[3] == pytest.approx(scaled_sigmoid(1.0) * 0.11)


@settings(max_examples=40, deadline=None)
@given(
    alarms=st.lists(st.integers(0, 299), max_size=20),
    starts=st.lists(st.integers(50, 270), min_size=1, max_size=4, unique=True),
    levels=st.integers(1, 4),
)
def test_the_sweep_finds_what_each_threshold_by_itself_gives(alarms: list[int], starts: list[int], levels: int) -> None:
    windows, last = [], -1
    for start in sorted(starts):
        if start > last + 1:
            last = start + 12
            windows.append((float(start), float(last)))
    scores = np.zeros(300)
    for number, row in enumerate(alarms):
        scores[row] = (number % levels + 1) / levels
    one = Series(np.arange(300.0), scores, windows)
    best = score([one], STANDARD)
    each = [score([one], STANDARD, threshold) for threshold in [*np.unique(scores), 2.0]]
    assert best.raw == pytest.approx(max(found.raw for found in each))
