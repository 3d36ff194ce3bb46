"""Windows: what a naive reference makes of the same stream, in bounded memory and bounded time."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.clock import rfc3339
from lisiere.models.manifest import WindowInput
from lisiere.values import Reading, Window
from lisiere.windows import WindowBuilder

T0 = 1_700_000_000.0
YEAR_S = 365.25 * 86_400
NAN = math.nan


def how(length: int = 4, stride: int = 1, max_gap: int = 0, step_s: float = 1.0, channels: int = 1) -> WindowInput:
    names = tuple(f"c{at}" for at in range(channels))
    return WindowInput(channels=names, length=length, step_s=step_s, stride=stride, max_gap=max_gap)


def reading(ts: float, *values: float) -> Reading:
    return Reading(T0 + ts, values, "sensor")


def feed(builder: WindowBuilder, *pairs: tuple[float, float]) -> list[Window]:
    return [window for ts, value in pairs for window in builder.add(reading(ts, value))]


def column(window: Window) -> list[float]:
    return [round(float(value), 4) for value in window.values[:, 0]]


@dataclass
class Reference:
    """The same by keeping every row for ever: a list of rows, and a list of those that are real."""

    how: WindowInput
    rows: list[list[float]] = field(default_factory=list)
    real: list[bool] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    origin: float = NAN
    due: int = 0
    behind: int = 0

    def add(self, one: Reading) -> list[tuple[int, list[list[float]], list[bool]]]:
        """Each window that the reading completes: index of its last row, rows, and which are real."""
        values = [value if math.isfinite(value) else NAN for value in one.values]
        if all(math.isnan(value) for value in values):
            self.faults["not_a_number"] += 1
            return []
        if not self.rows:
            self.origin, self.due = one.ts, self.how.length - 1
        index, last = round((one.ts - self.origin) / self.how.step_s), len(self.rows) - 1
        if self.rows and index <= last:
            self.behind += 1
            if self.behind < max(self.how.length, 32):
                self.faults["duplicate" if index == last else "out_of_order"] += 1
                return []
            self.faults["clock_restarted"] += 1
            self.rows, self.real, self.origin, self.due = [], [], one.ts, self.how.length - 1
            index, last = 0, -1
        self.behind = 0
        gap = index - last - 1
        made = []
        hole = [NAN] * len(values)
        for step in range(1, gap + 1):
            row = hole
            if gap <= self.how.max_gap:
                share = step / (gap + 1)
                row = [a * (1 - share) + b * share for a, b in zip(self.rows[last], values, strict=True)]
            self.rows.append(row)
            self.real.append(False)
            if gap < self.how.length + self.how.stride:
                made += self._window_if_due()
        if gap >= self.how.length + self.how.stride:
            self.due = index - 1
            made += self._window_if_due()
        self.rows.append(values)
        self.real.append(True)
        return made + self._window_if_due()

    def _window_if_due(self) -> list[tuple[int, list[list[float]], list[bool]]]:
        last, length = len(self.rows) - 1, self.how.length
        if last != self.due:
            return []
        self.due = last + self.how.stride
        return [(last, self.rows[-length:], self.real[-length:])]


STREAMS = st.lists(
    st.tuples(
        # Steps between readings: mostly one, sometimes a gap, none at all, or back.
        st.sampled_from([1, 1, 1, 1, 1, 2, 3, 4, 9, 25, 0, -1, -3]),
        st.floats(-0.4, 0.4),
        st.tuples(
            st.sampled_from([NAN, math.inf]) | st.floats(-100, 100), st.sampled_from([NAN]) | st.floats(-100, 100)
        ),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(
    stream=STREAMS,
    length=st.integers(2, 8),
    stride=st.integers(1, 10),
    max_gap=st.integers(0, 7),
    step_s=st.sampled_from([0.1, 1.0, 60.0]),
)
def test_windows_are_those_of_a_naive_reference(
    stream: list[tuple[int, float, tuple[float, float]]], length: int, stride: int, max_gap: int, step_s: float
) -> None:
    what = how(length, stride, min(max_gap, length - 1), step_s, channels=2)
    builder, reference = WindowBuilder(what, "sensor"), Reference(what)
    at = 0
    for number, (step, jitter, values) in enumerate(stream):
        at = max(at + step, 0)
        one = Reading(T0 + (at + (jitter if number else 0)) * step_s, values, "sensor")
        found, expected = builder.add(one), reference.add(one)
        assert len(found) == len(expected)
        for window, (last, rows, real) in zip(found, expected, strict=True):
            assert window.values.shape == (length, 2)
            assert window.values.dtype == np.float32
            np.testing.assert_allclose(window.values, np.asarray(rows, np.float32), rtol=1e-4, atol=1e-4)
            assert window.end == pytest.approx(reference.origin + last * step_s)
            assert window.start == pytest.approx(window.end - (length - 1) * step_s)
            assert window.coverage == pytest.approx(sum(real) / length)
            numbers = [all(math.isfinite(value) for value in row) for row in rows]
            assert window.imputed == sum(n and not r for n, r in zip(numbers, real, strict=True))
            assert window.complete == all(numbers)
            assert (window.step_s, window.source) == (step_s, "sensor")
    assert builder.faults == reference.faults


def test_a_window_comes_with_the_reading_that_completes_it() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    assert feed(builder, (0, 10), (1, 11)) == []
    (first,) = feed(builder, (2, 12))
    (second,) = feed(builder, (3, 13))
    assert column(first) == [10, 11, 12]
    assert column(second) == [11, 12, 13]
    assert (first.start, first.end) == (T0, T0 + 2)
    assert (first.coverage, first.imputed, first.complete) == (1.0, 0, True)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 11])
def test_a_window_is_made_every_stride_rows(stride: int) -> None:
    builder = WindowBuilder(how(length=3, stride=stride), "sensor")
    windows = feed(builder, *((at, at) for at in range(40)))
    assert [window.values[-1, 0] for window in windows] == list(range(2, 40, stride))


def test_a_short_gap_is_interpolated_and_counted() -> None:
    builder = WindowBuilder(how(length=5, max_gap=2), "sensor")
    (window,) = feed(builder, (0, 0), (1, 1), (4, 4))
    assert column(window) == [0, 1, 2, 3, 4]
    assert window.imputed == 2
    assert window.coverage == pytest.approx(3 / 5)


def test_a_gap_longer_than_max_gap_stays_a_hole() -> None:
    builder = WindowBuilder(how(length=5, max_gap=1), "sensor")
    (window,) = feed(builder, (0, 0), (1, 1), (4, 4))
    assert np.isnan(window.values[2:4, 0]).all()
    assert (window.imputed, window.complete) == (0, False)
    assert window.coverage == pytest.approx(3 / 5)


def test_jitter_of_less_than_half_a_step_moves_nothing() -> None:
    builder = WindowBuilder(how(length=4, step_s=10.0), "sensor")
    (window,) = feed(builder, (0, 0), (14.9, 1), (15.1, 2), (30, 3))
    assert column(window) == [0, 1, 2, 3]
    assert (window.start, window.end) == (T0, T0 + 30)


def test_duplicates_and_late_readings_are_left_out_by_name() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    (window,) = feed(builder, (0, 0), (1, 1), (1, 9), (0, 9), (1.2, 9), (-5, 9), (2, 2))
    assert column(window) == [0, 1, 2]
    assert builder.faults == {"duplicate": 2, "out_of_order": 2}


@pytest.mark.parametrize(
    "one",
    [
        reading(0, NAN),
        reading(0, math.inf),
        reading(0, -math.inf),
        reading(0, 1e300),  # infinite as float32
        reading(0),
        reading(0, 1.0, 2.0),
        Reading(NAN, (1.0,), "sensor"),
        Reading(math.inf, (1.0,), "sensor"),
        Reading(-math.inf, (1.0,), "sensor"),
        Reading(1e300, (1.0,), "sensor"),
        Reading(-1.7e308, (1.0,), "sensor"),
        Reading(1e13, (1.0,), "sensor"),
    ],
)
def test_what_is_not_a_number_is_left_out(one: Reading) -> None:
    builder = WindowBuilder(how(length=2), "sensor")
    assert builder.add(one) == []
    assert feed(builder, (0, 1)) == []
    assert builder.add(one) == []
    (window,) = feed(builder, (1, 2))
    assert column(window) == [1, 2]
    assert builder.faults == {"not_a_number": 2}


def test_a_channel_that_is_missing_makes_a_hole_in_that_channel_alone() -> None:
    builder = WindowBuilder(how(length=2, channels=2), "sensor")
    builder.add(reading(0, 1.0, NAN))
    (window,) = builder.add(reading(1, 2.0, 1e39))
    assert window.values[:, 0].tolist() == [1, 2]
    assert np.isnan(window.values[:, 1]).all()
    assert not window.complete


def test_interpolation_between_the_largest_numbers_does_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    builder = WindowBuilder(how(length=3, max_gap=1), "sensor")
    (window,) = feed(builder, (0, -largest), (2, largest))
    assert window.complete
    assert window.values[1, 0] == pytest.approx(0, abs=1e32)


def test_a_long_gap_gives_one_empty_window_and_a_fresh_start() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    feed(builder, (0, 0), (1, 1), (2, 2))
    empty, last = feed(builder, (1_000_000, 5))
    assert np.isnan(empty.values).all()
    assert (empty.coverage, empty.imputed, empty.complete) == (0.0, 0, False)
    assert empty.end == T0 + 999_999
    assert last.values[-1, 0] == 5
    windows = feed(builder, (1_000_001, 6), (1_000_002, 7))
    assert [window.complete for window in windows] == [False, True]
    assert column(windows[-1]) == [5, 6, 7]


@pytest.mark.parametrize("step_s", [0.001, 1.0, 3600.0])
@pytest.mark.parametrize("years", [0.001, 1, 50, 7000])
def test_a_jump_ahead_by_years_costs_no_more_than_the_window(years: float, step_s: float) -> None:
    builder = WindowBuilder(how(length=64, step_s=step_s), "sensor")
    for at in range(64):
        builder.add(Reading(T0 + at * step_s, (1.0,), "sensor"))
    started = time.process_time()
    windows = builder.add(Reading(T0 + years * YEAR_S, (1.0,), "sensor"))
    assert time.process_time() - started < 0.5
    assert len(windows) <= 2 + 64
    for window in windows:
        rfc3339(window.start)
        rfc3339(window.end)


def test_a_million_rows_of_gap_cost_no_more_than_the_window() -> None:
    builder = WindowBuilder(how(length=1000), "sensor")
    started = time.process_time()
    for jump in range(200):
        builder.add(reading(jump * 1_000_000.0, 1.0))
    assert time.process_time() - started < 2


def test_one_stamp_far_ahead_does_not_silence_a_sensor_for_good() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    feed(builder, (0, 0), (1, 1), (2, 2), (3e8, 9))
    windows = feed(builder, *((float(at), float(at)) for at in range(3, 40)))
    assert builder.faults == {"out_of_order": 31, "clock_restarted": 1}
    assert [column(window) for window in windows] == [[at, at + 1, at + 2] for at in range(34, 38)]
    assert windows[0].end == T0 + 36


def test_memory_is_bounded_by_twice_the_length() -> None:
    builder = WindowBuilder(how(length=16, stride=7, max_gap=3, channels=2), "sensor")
    rows, real = builder._rows, builder._real
    for at in range(5000):
        builder.add(reading(at + (at // 100) * 40, float(at), 1.0))
    assert builder._rows is rows
    assert builder._real is real
    assert rows.shape == (32, 2)
    assert set(vars(builder)) == {
        "faults",
        "_how",
        "_source",
        "_rows",
        "_real",
        "_filled",
        "_origin",
        "_last",
        "_due",
        "_behind",
    }


def test_windows_handed_on_are_not_written_to_again() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    windows = feed(builder, *((at, at) for at in range(50)))
    assert [column(window) for window in windows] == [[at, at + 1, at + 2] for at in range(48)]


def test_the_grid_does_not_drift_over_a_million_rows() -> None:
    builder = WindowBuilder(how(length=2, step_s=0.1), "sensor")
    builder.add(Reading(T0, (0.0,), "sensor"))
    (_, window) = builder.add(Reading(T0 + 100_000.0, (1.0,), "sensor"))
    assert window.end == pytest.approx(T0 + 100_000.0, abs=1e-6)


@given(st.floats(), st.lists(st.floats(), min_size=1, max_size=3))
def test_any_reading_at_all_is_taken_or_counted(ts: float, values: list[float]) -> None:
    builder = WindowBuilder(how(length=3, max_gap=2), "sensor")
    builder.add(reading(0, 1.0))
    builder.add(reading(1, 1.0))
    before = builder._last
    for window in builder.add(Reading(ts, tuple(values), "sensor")):
        rfc3339(window.start)
        assert not np.isinf(window.values).any()
    assert builder._last > before or sum(builder.faults.values()) == 1


def test_a_window_says_which_of_its_values_are_real() -> None:
    builder = WindowBuilder(how(length=4, max_gap=1, channels=2), "sensor")
    windows = [
        window for ts, *values in ((0, 1, NAN), (1, 2, 5), (3, 4, 7)) for window in builder.add(reading(ts, *values))
    ]
    (window,) = windows
    assert window.real is not None
    assert window.real.tolist() == [[True, False], [True, True], [False, False], [True, True]]
