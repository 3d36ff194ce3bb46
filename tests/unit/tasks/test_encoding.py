"""What a model sees: normalised rows, and a calendar that is Python's own."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.models.encoding import CALENDAR_SIZES, Calendar, Covariates, Normalise
from lisiere.tasks.encoding import calendar, levels

ROWS = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 30.0]])


def told(part: str, encoding: str, moment: float, offset: float = 0.0) -> list[float]:
    how = Covariates(calendar=(Calendar(part=part, encoding=encoding),), utc_offset_s=offset)  # type: ignore[arg-type]
    found = calendar(np.array([moment]), how)
    assert found.dtype == np.float32
    assert found.shape == (1, how.columns)
    return [float(value) for value in found[0]]


@given(st.integers(-2_000_000_000, 4_000_000_000), st.sampled_from([0.0, 19_800.0, -39_600.0]))
def test_the_calendar_is_pythons(moment: int, offset: float) -> None:
    local = datetime.fromtimestamp(0, timezone.utc) + timedelta(seconds=moment + offset)
    expected = {
        "minute_of_hour": local.minute,
        "hour_of_day": local.hour,
        "day_of_week": local.weekday(),
        "day_of_month": local.day - 1,
        "day_of_year": local.timetuple().tm_yday - 1,
        "month_of_year": local.month - 1,
    }
    for part, value in expected.items():
        size = CALENDAR_SIZES[part]
        assert size is not None
        assert told(part, "one_hot", float(moment), offset) == [float(at == value) for at in range(size)]
        assert told(part, "linear", float(moment), offset) == pytest.approx([value / (size - 1) - 0.5], abs=1e-6)
        turn = 2 * np.pi * value / size
        assert told(part, "cyclic", float(moment), offset) == pytest.approx([np.sin(turn), np.cos(turn)], abs=1e-6)
    share = (local.hour * 3600 + local.minute * 60 + local.second) / 86_400
    assert told("time_of_day", "linear", float(moment), offset) == pytest.approx([share - 0.5], abs=1e-6)


def test_a_stamp_just_before_midnight_by_rounding_alone_is_the_new_day() -> None:
    assert told("day_of_week", "linear", 4 * 86_400 - 1e-5) == [-0.5]  # 1970-01-05 was a Monday


def test_columns_stand_in_the_order_that_is_declared() -> None:
    parts = (Calendar(part="hour_of_day", encoding="linear"), Calendar(part="day_of_week", encoding="one_hot"))
    found = calendar(np.array([0.0, 82_800.0]), Covariates(calendar=parts))
    assert found[:, 0].tolist() == [-0.5, 0.5]
    assert found[:, 1:].argmax(1).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("how", "level", "scale"),
    [
        (None, [0, 0], [1, 1]),
        (Normalise(level=(1.0, 2.0), scale=(4.0,)), [1, 2], [4, 4]),
        (Normalise(level="last", scale=(2.0, 3.0)), [6, 30], [2, 3]),
        (Normalise(level="mean", scale="std"), [3, 20], ROWS.std(0)),
    ],
)
def test_levels_are_those_that_are_declared(how: Normalise | None, level: object, scale: object) -> None:
    found = levels(ROWS, how)
    assert found[0].shape == found[1].shape == (1, 2)
    np.testing.assert_allclose(found[0][0], np.asarray(level, float))
    np.testing.assert_allclose(found[1][0], np.asarray(scale, float), rtol=1e-5)


def test_many_windows_are_normalised_each_by_itself() -> None:
    windows = np.stack([ROWS, ROWS * 10])
    level, scale = levels(windows, Normalise(level="last", scale="std"))
    assert level.shape == scale.shape == (2, 1, 2)
    assert level[1].tolist() == [[60.0, 300.0]]


def test_a_window_that_does_not_move_has_a_scale() -> None:
    _, scale = levels(np.ones((5, 1)), Normalise(level="mean", scale="std"))
    assert scale[0, 0] == pytest.approx(1e-5**0.5)
