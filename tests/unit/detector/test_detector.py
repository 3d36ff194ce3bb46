"""The built-in detector: what it finds, what it leaves alone, and what cannot upset it."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.detector import DEFAULT_RATE, StreamDetector, threshold
from lisiere.detector.channel import ChannelDetector
from lisiere.detector.joint import JointDetector
from lisiere.detector.tail import SCORE_MAX, Tail

START, STEP = 1_767_225_600.0, 300.0
ALARM = threshold(DEFAULT_RATE)
DAY = 288


def scores(values: NDArray[np.float64], step: float = STEP) -> NDArray[np.float64]:
    detector = StreamDetector(1)
    found = [detector(START + at * step, (value,)) for at, value in enumerate(values.tolist())]
    return np.array([np.nan if score is None else score for score in found])


def daily(days: int, noise: float = 1.0) -> NDArray[np.float64]:
    rng = np.random.default_rng(1)
    rows = days * DAY
    values: NDArray[np.float64] = 50 + 20 * np.sin(2 * np.pi * np.arange(rows) / DAY) + rng.normal(0, noise, rows)
    return values


def test_a_tail_says_how_rare_a_value_is() -> None:
    """Exponential values: a score of s should be reached once in 10^s values, within a factor of two."""
    rng = np.random.default_rng(0)
    tail = Tail()
    found = np.array([tail(value) for value in np.expm1(rng.exponential(1.0, 60_000)).tolist()])[1000:]
    for score in (2.0, 2.5, 3.0):
        assert 0.5 < (found >= score).mean() / 10**-score < 2


def test_a_tail_knows_the_level_of_a_rate() -> None:
    rng = np.random.default_rng(0)
    tail = Tail()
    assert tail.level(0.001) is None
    for value in np.expm1(rng.exponential(1.0, 60_000)).tolist():
        tail(value)
    level = tail.level(0.001)
    assert level is not None
    assert math.log1p(level) == pytest.approx(-math.log(0.001), rel=0.15)
    assert tail(level) == pytest.approx(3.0)


def test_the_first_values_score_nothing() -> None:
    assert (scores(daily(1)[:150]) == 0).all()


@pytest.mark.parametrize("fault", ["spike", "shift", "dip", "slow"])
def test_what_differs_is_found_when_it_begins(fault: str) -> None:
    values = daily(10)
    at = 8 * DAY
    match fault:
        case "spike":
            values[at] += 60
        case "shift":
            values[at:] += 15
        case "dip":
            values[at + 60 : at + 120] = 50
        case "slow":
            values[at : at + 200] += np.linspace(0, 20, 200)
    found = scores(values)
    assert (found[at : at + 150] > ALARM).any()
    assert (found[at - 2 * DAY : at] > ALARM).sum() <= 3


def test_a_day_that_is_left_out_is_found_by_the_time_of_day() -> None:
    """Each value is usual; only its hour is not."""
    values = daily(12)
    at = 9 * DAY
    values[at : at + DAY] = values[at + DAY // 2 : at + DAY // 2 + DAY]
    assert (scores(values)[at : at + DAY // 2] > ALARM).any()


@pytest.mark.parametrize("value", [45.0, 0.1, 0.0, -1e9])
def test_what_stays_the_same_is_nothing(value: float) -> None:
    assert (scores(np.full(3000, value)) == 0).all()


def test_units_do_not_matter() -> None:
    """A current in amperes is watched like one in nanoamperes."""
    values = daily(4)
    assert scores(values * 1e-9) == pytest.approx(scores(values), rel=1e-3, abs=1e-3)


def test_false_alarms_of_noise_come_at_the_rate() -> None:
    """White noise, within a factor of four; alarms within 100 rows of another are one."""
    rng = np.random.default_rng(3)
    for rate in (DEFAULT_RATE, 0.0004):
        found = scores(rng.normal(0, 1, 30_000))[1000:]
        rows = np.flatnonzero(found > threshold(rate))
        alarms = 1 + (np.diff(rows) > 100).sum()
        assert rate / 4 < alarms / len(found) < 4 * rate


def test_a_gap_is_no_jump() -> None:
    """A sensor that comes back at another hour's level, or another level, begins its short means anew."""
    values = daily(8, noise=0.2)
    detector = StreamDetector(1)
    for at, value in enumerate(values.tolist()):
        detector(START + at * STEP, (value,))
    jumped, resumed = (float(values[-1]) + 20,), StreamDetector(1)
    for at, value in enumerate(values.tolist()):
        resumed(START + at * STEP, (value,))
    resumed.resume()
    later = START + len(values) * STEP
    without, with_gap = detector(later, jumped), resumed(later, jumped)
    assert without is not None
    assert with_gap is not None
    assert with_gap < without


def test_joint_faults_are_seen_for_as_long_as_they_last() -> None:
    """Half a deviation to two in many channels at once, which none of them would tell by itself."""
    rng = np.random.default_rng(4)
    rows = rng.normal(0, 1, (1200, 8)) * 5 + 100
    rows[700:1000] += 5
    detector = StreamDetector(8)
    found = np.array([detector(float(at), row) for at, row in enumerate(rows.tolist())], np.float64)
    alarm = found > ALARM
    assert alarm[720:1000].mean() > 0.9
    assert alarm[:690].mean() < 0.02
    assert alarm[1050:].mean() < 0.02


def test_what_stays_for_long_is_the_new_normal() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(0, 1, (4000, 4))
    rows[800:] += 3
    joint = JointDetector(4)
    found = np.array([joint(row) for row in rows])
    assert (found[850:2700] > ALARM).mean() > 0.9
    assert (found[3300:] > ALARM).mean() < 0.05


def test_a_channel_that_vanishes_leaves_the_others_watched() -> None:
    rng = np.random.default_rng(6)
    rows = rng.normal(0, 1, (1500, 4))
    rows[600:, 2] = np.nan
    rows[1200:1300] += 4
    detector = StreamDetector(4)
    found = np.array([detector(float(at), row) for at, row in enumerate(rows.tolist())], np.float64)
    assert (found[600:1190] > ALARM).mean() < 0.05
    assert (found[1220:1300] > ALARM).mean() > 0.9


def test_rows_without_any_number_score_none_and_teach_nothing() -> None:
    values = daily(4)
    holes = StreamDetector(1)
    whole = StreamDetector(1)
    for at, value in enumerate(values.tolist()):
        stamp = START + at * STEP
        if at % 7 == 0:
            assert holes(stamp, (math.nan,)) is None
            assert holes(stamp, (math.inf,)) is None
        assert holes(stamp, (value,)) == whole(stamp, (value,))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
    st.integers(1, 3),
    st.floats(1e-3, 1e6),
)
def test_whatever_comes_scores_are_numbers_within_bounds(values: list[float], channels: int, step: float) -> None:
    detector = StreamDetector(channels)
    rng = np.random.default_rng(0)
    usual = rng.normal(0, 1, (400, channels)).tolist()
    for at, row in enumerate([*usual, *([value] * channels for value in values), *usual[:50]]):
        score = detector(at * step, row)
        known = any(abs(value) < 1e150 for value in row)
        assert (score is not None) == known
        assert score is None or 0 <= score <= 1.8 * SCORE_MAX


def test_memory_is_bounded() -> None:
    """Weeks at a second's step: what is kept does not grow once the slots of a week are filled."""
    detector = ChannelDetector()
    sizes = []
    for at in range(6000):
        detector(START + at * 1800.0, float(at % 17))
        sizes.append(sys.getsizeof(detector._day) + sys.getsizeof(detector._week))
    assert sizes[-1] == sizes[1000]
    assert len(detector._week) == 168
    joint = JointDetector(2)
    for _ in range(3000):
        joint(np.random.default_rng(0).normal(0, 1, 2))
    assert len(joint._normal) + len(joint._pending) <= 501
    assert joint._first == []
