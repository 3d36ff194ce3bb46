"""Windows: what a naive reference makes of the same stream, in bounded memory and bounded time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.clock import TS_MAX, TS_MIN, rfc3339
from lisiere.models.manifest import WindowInput
from lisiere.settings.window import WindowConfig
from lisiere.values import Reading, Readings, Window
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


def feed_pairs(builder: WindowBuilder, *rows: tuple[float, float, float]) -> list[Window]:
    return [window for ts, *values in rows for window in builder.add(reading(ts, *values))]


def column(window: Window) -> list[float]:
    return [round(float(value), 4) for value in window.values[:, 0]]


@dataclass
class Grid:
    """What readings of one grid amount to, kept for ever: (row, channel) -> (stamp, value) in the order of arrival."""

    origin: float
    cells: dict[tuple[int, int], list[tuple[float, float]]] = field(default_factory=dict)
    newest: int = -1
    newest_ts: float = -math.inf
    closed: int = -1
    behind: int = 0


class Reference:
    """The same as the builder by the plainest means: every reading is kept, and windows are made in the end."""

    def __init__(self, what: WindowInput, config: WindowConfig) -> None:
        self.how, self.config = what, config
        self.grids: list[Grid] = []
        self.faults: Counter[str] = Counter()
        self.several = False

    def add(self, one: Reading) -> None:
        values = [value if math.isfinite(value) else NAN for value in one.values]
        if all(math.isnan(value) for value in values):
            self.faults["not_a_number"] += 1
            return
        if not self.grids:
            self.grids.append(Grid(one.ts))
        grid = self.grids[-1]
        row = round((one.ts - grid.origin) / self.how.step_s)
        if row <= grid.closed:
            if row == grid.newest:
                self.faults["duplicate"] += 1
                self.several |= one.ts > grid.newest_ts and not self.config.lateness_s
                return
            grid.behind += 1
            if grid.behind < max(self.how.length, 32):
                self.faults["out_of_order"] += 1
                return
            self.faults["clock_restarted"] += 1
            grid, row = Grid(one.ts), 0
            self.grids.append(grid)
        if row > grid.newest:
            grid.behind = 0
        twice = False
        for channel, value in enumerate(values):
            held = grid.cells.setdefault((row, channel), [])
            if math.isnan(value):
                continue
            if held and max(held)[0] == one.ts:
                twice = True
                continue
            self.several |= bool(held) and not self.config.lateness_s
            held.append((one.ts, value))
        self.faults["duplicate"] += twice
        grid.newest, grid.newest_ts = max(grid.newest, row), max(grid.newest_ts, one.ts)
        watermark = round((grid.newest_ts - self.config.lateness_s - grid.origin) / self.how.step_s)
        grid.closed = max(grid.closed, watermark - 1)
        whole = all(grid.cells.get((grid.newest, channel)) for channel in range(len(values)))
        if not self.config.lateness_s and not self.several and grid.newest >= self.how.length - 1 and whole:
            grid.closed = grid.newest

    def windows(self) -> list[tuple[float, list[list[float]], list[list[bool]]]]:
        """The end, the rows and what of them is real, of every window."""
        return [window for grid in self.grids for window in self._windows(grid)]

    def _windows(self, grid: Grid) -> list[tuple[float, list[list[float]], list[list[bool]]]]:
        how, channels = self.how, range(len(self.how.channels))
        rows = [[self._value(grid.cells.get((row, channel), [])) for channel in channels]
                for row in range(grid.newest + 1)]  # fmt: skip
        real = [[not math.isnan(value) for value in row] for row in rows]
        for channel in channels:
            known = [row for row in range(len(rows)) if real[row][channel]]
            for low, high in itertools.pairwise(known):
                if high - low - 1 <= min(how.max_gap, how.length + how.stride - 1):
                    for row in range(low + 1, high):
                        share = (row - low) / (high - low)
                        rows[row][channel] = rows[low][channel] * (1 - share) + rows[high][channel] * share
        made, empty = [], False
        for end in range(how.length - 1, grid.newest + 1, how.stride):
            part = slice(end - how.length + 1, end + 1)
            was_empty, empty = empty, not any(any(row) for row in real[part])
            if not (empty and was_empty):
                made.append((grid.origin + end * how.step_s, rows[part], real[part]))
        return made

    def _value(self, held: list[tuple[float, float]]) -> float:
        numbers = [value for _, value in held]
        if not numbers:
            return NAN
        if self.config.aggregate == "mean":
            return sum(numbers) / len(numbers)
        return {"min": min(numbers), "max": max(numbers), "last": max(held)[1]}[self.config.aggregate]


STREAMS = st.lists(
    st.tuples(
        # Steps between readings: mostly one, sometimes less, a gap, none at all, or back.
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 3, 4, 9, 25, 0.25, 0.3, 0, 0, -1, -3]),
        st.sampled_from([0.0, 0.0, 0.0, 0.375, -0.375]) | st.floats(-0.4, 0.4),
        st.tuples(
            st.sampled_from([NAN, math.inf]) | st.floats(-100, 100), st.sampled_from([NAN]) | st.floats(-100, 100)
        ),
    ),
    max_size=100,
)
CONFIGS = st.builds(
    WindowConfig,
    aggregate=st.sampled_from(["mean", "last", "min", "max"]),
    lateness_s=st.sampled_from([0.0, 0.0, 0.5, 2.0, 7.3]),
)


def readings_of(stream: list[tuple[float, float, tuple[float, float]]], step_s: float) -> list[Reading]:
    found, at = [], 0.0
    for number, (step, jitter, values) in enumerate(stream):
        at = max(at + step, 0)
        found.append(Reading(T0 + (at + (jitter if number else 0)) * step_s, values, "sensor"))
    return found


def in_blocks(stream: list[Reading], sizes: Iterator[int]) -> Iterator[Readings]:
    rest = stream
    while rest:
        size = next(sizes)
        part, rest = rest[:size], rest[size:]
        values = np.array([one.values for one in part], np.float64)
        faults = {at: one.faults for at, one in enumerate(part) if one.faults}
        yield Readings(np.array([one.ts for one in part]), values, "sensor", faults)


def told(windows: list[Window]) -> list[object]:
    """All that a window says, to compare."""
    return [
        (one.values.tobytes(), one.start, one.end, one.step_s, one.coverage, one.imputed, one.source, one.faults)
        + (() if one.real is None else (one.real.tobytes(),))
        for one in windows
    ]


@settings(max_examples=150, deadline=None)
@given(
    stream=STREAMS,
    length=st.integers(1, 8),
    stride=st.integers(1, 10),
    max_gap=st.integers(0, 7),
    step_s=st.sampled_from([0.1, 1.0, 60.0]),
    config=CONFIGS,
)
def test_windows_are_those_of_a_naive_reference(
    stream: list[tuple[float, float, tuple[float, float]]],
    length: int,
    stride: int,
    max_gap: int,
    step_s: float,
    config: WindowConfig,
) -> None:
    what = how(length, stride, max_gap, step_s, channels=2)
    builder, reference = WindowBuilder(what, "sensor", config), Reference(what, config)
    found = []
    for one in readings_of(stream, step_s):
        found += builder.add(one)
        reference.add(one)
    found += builder.finish()
    expected = reference.windows()
    assert [window.end for window in found] == pytest.approx([end for end, _, _ in expected])
    for window, (_, rows, real) in zip(found, expected, strict=True):
        assert window.values.shape == (length, 2)
        assert window.values.dtype == np.float32
        np.testing.assert_allclose(window.values, np.asarray(rows, np.float32), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(window.real, np.asarray(real))
        assert window.start == pytest.approx(window.end - (length - 1) * step_s)
        assert window.coverage == pytest.approx(np.mean(real))
        filled = np.isfinite(window.values) & ~np.asarray(real)
        assert window.imputed == int(filled.any(axis=1).sum())
        assert window.complete == bool(np.isfinite(rows).all())
        assert (window.step_s, window.source) == (step_s, "sensor")
        assert bool(window.faults) == (not window.complete)
    del builder.faults["unfinished"]
    assert builder.faults == +reference.faults


@settings(max_examples=150, deadline=None)
@given(
    stream=STREAMS,
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 30), min_size=1),
    length=st.integers(1, 8),
    stride=st.integers(1, 10),
    max_gap=st.integers(0, 7),
    config=CONFIGS,
)
def test_blocks_of_any_size_give_the_windows_of_single_readings(
    stream: list[tuple[float, float, tuple[float, float]]],
    seed: int,
    sizes: list[int],
    length: int,
    stride: int,
    max_gap: int,
    config: WindowConfig,
) -> None:
    what = how(length, stride, max_gap, channels=2)
    drawn = random.Random(seed)
    names: list[tuple[str, ...]] = [(), (), (), ("stuck:c0",), ("rate:c1",)]
    readings = [dataclasses.replace(one, faults=drawn.choice(names)) for one in readings_of(stream, 1.0)]
    one_by_one, by_blocks = WindowBuilder(what, "sensor", config), WindowBuilder(what, "sensor", config)
    singles = [window for one in readings for window in one_by_one.add(one)] + one_by_one.finish()
    blocks = [window for block in in_blocks(readings, itertools.cycle(sizes)) for window in by_blocks.add_block(block)]
    assert told(blocks + by_blocks.finish()) == told(singles)
    assert by_blocks.faults == one_by_one.faults


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
    (window,) = feed(builder, (0, 0), (1, 1), (1, 9), (0, 9), (-5, 9), (2, 2))
    assert column(window) == [0, 1, 2]
    assert builder.faults == {"duplicate": 1, "out_of_order": 2}


def test_a_window_may_be_a_single_row() -> None:
    builder = WindowBuilder(how(length=1), "sensor")
    windows = feed(builder, (0, 0), (1, 1), (4, 4), (5, 5))
    assert [column(window) for window in windows if window.complete] == [[0], [1], [4], [5]]
    assert [window.end - T0 for window in windows if not window.complete] == [2]


@pytest.mark.parametrize(("aggregate", "value"), [("mean", 3.0), ("last", 5.0), ("min", 0.0), ("max", 5.0)])
def test_several_readings_in_a_step_amount_to_one(aggregate: Any, value: float) -> None:
    builder = WindowBuilder(how(length=3), "sensor", WindowConfig(aggregate=aggregate))
    windows = feed(builder, (0, 1), (0.6, 0), (1, 4), (1.4, 5), (1.6, 7), (2, 7), (2.4, 7), (2.5, 7), (2.6, 8))
    assert [column(window) for window in windows] == [[1, value, 7]]
    assert not builder.faults


def test_a_sensor_that_sends_several_a_step_is_not_cut_short() -> None:
    """Its windows come with the first reading of the next row; those of another come at once."""
    slow, fast = WindowBuilder(how(length=2), "sensor"), WindowBuilder(how(length=2), "sensor")
    assert [len(feed(slow, (float(at), at))) for at in range(5)] == [0, 1, 1, 1, 1]
    assert [len(feed(fast, (at // 2 + 0.4 * (at % 2), at))) for at in range(8)] == [0, 0, 0, 0, 1, 0, 1, 0]
    assert not fast.faults


def test_within_the_lateness_readings_may_come_in_any_order() -> None:
    builder = WindowBuilder(how(length=4), "sensor", WindowConfig(lateness_s=2.0))
    assert feed(builder, (0, 0), (2, 2), (1, 1), (3, 3), (5, 5)) == []
    first, second = feed(builder, (4, 4), (7, 7))
    assert (column(first), column(second)) == ([0, 1, 2, 3], [1, 2, 3, 4])
    assert feed(builder, (3, 99)) == []
    assert builder.faults == {"out_of_order": 1}
    assert [column(window)[:2] for window in builder.finish()] == [[2, 3], [3, 4], [4, 5]]


def test_channels_that_come_by_themselves_are_joined_by_step() -> None:
    builder = WindowBuilder(how(length=2, channels=2), "sensor")
    assert feed_pairs(builder, (0, 1, NAN), (0.1, NAN, 10), (1, 2, NAN)) == []
    (window,) = feed_pairs(builder, (1.1, NAN, 20))
    assert window.values.tolist() == [[1, 10], [2, 20]]
    assert window.coverage == 1.0


def test_a_slow_channel_is_interpolated_between_its_readings() -> None:
    builder = WindowBuilder(how(length=4, max_gap=2, channels=2), "sensor")
    assert feed_pairs(builder, (0, 0, 0), (1, 1, NAN), (2, 2, NAN)) == []
    (window,) = feed_pairs(builder, (3, 3, 30))
    assert window.values.tolist() == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert (window.imputed, window.coverage, window.faults) == (2, 6 / 8, ())
    assert window.real is not None
    assert window.real.tolist() == [[True, True], [True, False], [True, False], [True, True]]


def test_a_channel_that_vanishes_is_named() -> None:
    builder = WindowBuilder(how(length=3, max_gap=1, channels=2), "sensor")
    windows = feed_pairs(builder, (0, 0, 0), *((at, at, NAN) for at in range(1, 6)))
    assert [window.faults for window in windows] == [("gap:c1",)] * 3
    assert np.isfinite(windows[-1].values[:, 0]).all()


def test_what_was_wrong_with_readings_is_told_by_the_windows_that_hold_them() -> None:
    builder = WindowBuilder(how(length=2, max_gap=1), "sensor")
    rows = [((), 0.0), (("stuck:c0",), 1.0), ((), 2.0), (("range:c0",), NAN), ((), 4.0), ((), 5.0), ((), 6.0)]
    windows = [one for at, (names, value) in enumerate(rows)
               for one in builder.add(dataclasses.replace(reading(at, value), faults=names))]  # fmt: skip
    assert [(window.end - T0, window.faults) for window in windows] == [
        (1, ("stuck:c0",)),
        (2, ("stuck:c0",)),
        (3, ("range:c0",)),
        (4, ("range:c0",)),
        (5, ()),
        (6, ()),
    ]
    assert builder.faults == {"not_a_number": 1}


def test_the_end_of_a_stream_loses_nothing_silently() -> None:
    builder = WindowBuilder(how(length=4, stride=4), "sensor", WindowConfig(lateness_s=10))
    assert feed(builder, *((at, at) for at in range(10))) == []
    assert [column(window) for window in builder.finish()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert builder.faults == {"unfinished": 2}
    assert builder.finish() == []


def test_a_silent_sensor_is_told_by_the_clock_until_a_window_holds_nothing() -> None:
    builder = WindowBuilder(how(length=3, max_gap=1), "sensor")
    feed(builder, (0, 0), (1, 1), (2, 2))
    assert builder.silent(0.4) == []
    (first,) = builder.silent(2)
    assert first.coverage == pytest.approx(2 / 3)
    assert (first.end, first.faults) == (T0 + 3, ("gap",))
    assert builder.silent(2) == []
    assert [window.end - T0 for window in builder.silent(1e9)] == [4, 5]
    assert builder.silent(2e9) == []


def test_a_silence_that_ends_is_not_told_twice_and_late_readings_still_count() -> None:
    def run(silent: bool, *after: tuple[float, float]) -> list[Window]:
        builder = WindowBuilder(how(length=3), "sensor")
        found = feed(builder, (0, 0), (1, 1), (2, 2))
        found += builder.silent(60) if silent else []
        return found + feed(builder, *after)

    # Nothing was sent in the silence: what the clock has told is what the readings would have.
    quiet = [(100.0, 3.0), (101.0, 3.0), (102.0, 3.0)]
    assert told(run(True, *quiet)) == told(run(False, *quiet))
    # It had been sent late: the windows come once more, with what is in them.
    late = [(3.0, 3.0), (4.0, 4.0), (5.0, 5.0)]
    assert told(run(True, *late))[4:] == told(run(False, *late))[1:]
    assert [window.end - T0 for window in run(True, *late)] == [2, 3, 4, 5, 3, 4, 5]


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from([1, 1, 1, 2, 3, 7, 30, 5000]), st.integers(0, 3)), max_size=60),
    length=st.integers(1, 6),
    stride=st.integers(1, 8),
)
def test_silence_that_is_true_tells_no_other_windows_than_readings_do(
    steps: list[tuple[int, int]], length: int, stride: int
) -> None:
    """The clock is asked some times between two readings, and each time says no more than how far apart they are."""
    with_clock, without = (WindowBuilder(how(length, stride), "sensor") for _ in range(2))
    found, expected, at = [], [], 0
    for step, asked in steps:
        for part in range(asked):
            found += with_clock.silent(step * (part + 1) / (asked + 1))
        at += step
        found += with_clock.add(reading(at, 1.0))
        expected += without.add(reading(at, 1.0))
    assert told(found + with_clock.finish()) == told(expected + without.finish())
    assert with_clock.faults == without.faults


def test_silence_before_the_first_reading_says_nothing() -> None:
    assert WindowBuilder(how(), "sensor").silent(1e6) == []


@pytest.mark.parametrize("stamp", [TS_MIN, 0.0, T0, TS_MAX])
def test_any_moment_and_any_silence_give_stamps_that_can_be_written(stamp: float) -> None:
    builder = WindowBuilder(how(length=2, step_s=1e-9), "sensor")
    for one in (T0, stamp, T0, stamp):
        for window in [*builder.add(Reading(one, (1.0,), "sensor")), *builder.silent(1e12)]:
            rfc3339(window.start)
            rfc3339(window.end)


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
    (window,) = feed_pairs(builder, (0, 1.0, NAN), (1, 2.0, 1e39), (2, 3.0, 4.0))[:1]
    assert window.values[:, 0].tolist() == [1, 2]
    assert np.isnan(window.values[:, 1]).all()
    assert not window.complete


def test_interpolation_between_the_largest_numbers_does_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    builder = WindowBuilder(how(length=3, max_gap=1), "sensor")
    (window,) = feed(builder, (0, -largest), (2, largest))
    assert window.complete
    assert window.values[1, 0] == pytest.approx(0, abs=1e32)


def test_a_long_gap_is_told_until_a_window_holds_nothing_and_then_when_readings_come() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    feed(builder, (0, 0), (1, 1), (2, 2))
    *partly, empty, last = feed(builder, (1_000_000, 5))
    assert [window.coverage for window in partly] == pytest.approx([2 / 3, 1 / 3])
    assert np.isnan(empty.values).all()
    assert (empty.coverage, empty.imputed, empty.complete, empty.faults) == (0.0, 0, False, ("gap",))
    assert empty.end == T0 + 5
    assert last.values[-1, 0] == 5
    assert last.end == T0 + 1_000_000
    windows = feed(builder, (1_000_001, 6), (1_000_002, 7))
    assert [window.complete for window in windows] == [False, True]
    assert column(windows[-1]) == [5, 6, 7]


@pytest.mark.parametrize("step_s", [0.001, 1.0, 3600.0])
@pytest.mark.parametrize("years", [0.001, 1, 50, 7000])
def test_a_jump_ahead_by_years_makes_no_more_than_a_window_of_windows(years: float, step_s: float) -> None:
    builder = WindowBuilder(how(length=64, step_s=step_s), "sensor")
    for at in range(64):
        builder.add(Reading(T0 + at * step_s, (1.0,), "sensor"))
    windows = builder.add(Reading(T0 + years * YEAR_S, (1.0,), "sensor"))
    assert len(windows) <= 2 + 64
    for window in windows:
        rfc3339(window.start)
        rfc3339(window.end)


def test_stride_keeps_its_place_over_a_long_gap() -> None:
    builder = WindowBuilder(how(length=3, stride=5), "sensor")
    windows = feed(builder, (0, 0), (1, 1), (2, 2), (10_001, 1), *((at, 0) for at in range(10_002, 10_010)))
    assert [window.end - T0 for window in windows] == [2, 7, 10_002, 10_007]


def test_one_stamp_far_ahead_does_not_silence_a_sensor_for_good() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    feed(builder, (0, 0), (1, 1), (2, 2), (3e8, 9))
    windows = feed(builder, *((float(at), float(at)) for at in range(3, 40)))
    assert builder.faults == {"out_of_order": 31, "clock_restarted": 1}
    assert [column(window) for window in windows] == [[at, at + 1, at + 2] for at in range(34, 38)]
    assert windows[0].end == T0 + 36


@pytest.mark.parametrize("lateness_s", [0.0, 1000.0])
def test_memory_is_bounded_whatever_the_stamps_say(lateness_s: float) -> None:
    """Bursts of many rows: in order, all in one step, back and forth, and from both ends of time."""
    builder = WindowBuilder(how(length=16, stride=7, max_gap=3), "sensor", WindowConfig(lateness_s=lateness_s))
    drawn = np.random.default_rng(1)
    tracemalloc.start()
    try:
        for stamps in (
            np.arange(50_000.0),
            np.full(100_000, 50_000.0) + drawn.random(100_000) / 4,
            drawn.choice([0.0, 1e5, 9e8, -1.7e9, TS_MAX - T0, TS_MIN - T0], 1000),
            np.arange(200.0) * 1e5,
        ):
            for start in range(0, len(stamps), 10_000):
                part = T0 + stamps[start : start + 10_000]
                builder.add_block(Readings(part, np.ones((len(part), 1)), "sensor"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2_000_000
    assert builder.faults["out_of_order"] > 0


def test_windows_handed_on_are_not_written_to_again() -> None:
    builder = WindowBuilder(how(length=3), "sensor")
    windows = feed(builder, *((at, at) for at in range(50)))
    assert [column(window) for window in windows] == [[at, at + 1, at + 2] for at in range(48)]


def test_the_grid_does_not_drift_over_a_million_rows() -> None:
    builder = WindowBuilder(how(length=2, step_s=0.1), "sensor")
    builder.add(Reading(T0, (0.0,), "sensor"))
    *_, window = builder.add(Reading(T0 + 100_000.0, (1.0,), "sensor"))
    assert window.end == pytest.approx(T0 + 100_000.0, abs=1e-6)


@given(st.floats(), st.lists(st.floats(), min_size=1, max_size=3))
def test_any_reading_at_all_is_taken_or_counted(ts: float, values: list[float]) -> None:
    builder = WindowBuilder(how(length=3, max_gap=2), "sensor")
    builder.add(reading(0, 1.0))
    builder.add(reading(1, 1.0))
    builder.add(reading(2, 1.0))
    before = sum(builder.faults.values())
    windows = builder.add(Reading(ts, tuple(values), "sensor"))
    for window in windows:
        rfc3339(window.start)
        assert not np.isinf(window.values).any()
    assert windows or sum(builder.faults.values()) == before + 1


def test_a_window_says_which_of_its_values_are_real() -> None:
    builder = WindowBuilder(how(length=4, max_gap=1, channels=2), "sensor")
    windows = [
        window for ts, *values in ((0, 1, NAN), (1, 2, 5), (3, 4, 7)) for window in builder.add(reading(ts, *values))
    ]
    (window,) = windows
    assert window.real is not None
    assert window.real.tolist() == [[True, False], [True, True], [False, False], [True, True]]
