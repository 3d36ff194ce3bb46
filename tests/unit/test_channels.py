"""Checks of channels: each kind of fault, across batches, against a plain account of what each one means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.channels import Channels
from lisiere.errors import ConfigError
from lisiere.settings.channels import ChannelConfig, check_channels

NAN = math.nan


class Told(list[tuple[str, str, int]]):
    def __call__(self, name: str, sentence: str, times: int) -> None:
        self.append((name, sentence, times))


def checked(
    values: list[float], ts: list[float] | None = None, batch: int | None = None, **config: Any
) -> tuple[list[float], list[tuple[str, ...]], Told]:
    """What comes of one channel called `a`: its values, each reading's faults, and what was told."""
    told = Told()
    channels = Channels(["a"], {"a": ChannelConfig(**config)}, told)
    stamps = ts if ts is not None else [float(at) for at in range(len(values))]
    kept: list[float] = []
    faults: list[tuple[str, ...]] = []
    for at in range(0, len(values), batch or len(values)):
        part = slice(at, at + (batch or len(values)))
        got, found = channels.check(np.array(stamps[part]), np.array(values[part], np.float64)[:, None])
        kept += got[:, 0].tolist()
        faults += [found.get(row, ()) for row in range(len(got))]
    return kept, faults, told


def where(faults: list[tuple[str, ...]], name: str) -> list[int]:
    return [at for at, names in enumerate(faults) if name in names]


@pytest.mark.parametrize("batch", [1, 2, None])
class TestKinds:
    def test_out_of_range(self, batch: int | None) -> None:
        kept, faults, told = checked([0, 5, 10, 10.1, -0.1, NAN, math.inf], min=0, max=10, unit="mm/s", batch=batch)
        assert where(faults, "out_of_range:a") == [3, 4]
        assert kept[:5] == [0, 5, 10, 10.1, -0.1]
        assert sum(times for _, _, times in told) == 2
        assert told[-1][1] == "a is -0.1 mm/s, below 0 mm/s."

    def test_above_is_told_as_such(self, batch: int | None) -> None:
        assert checked([10.5], max=10, batch=batch)[2][0][1] == "a is 10.5, above 10."

    def test_rate(self, batch: int | None) -> None:
        _, faults, _ = checked([0, 1, 3, 3, 2, 0.9], ts=[0, 1, 2, 3, 3.5, 5], max_rate=1.0, batch=batch)
        assert where(faults, "rate:a") == [2, 4]

    def test_the_rate_is_that_since_the_last_value_there_was(self, batch: int | None) -> None:
        _, faults, _ = checked([0, NAN, NAN, 3, 999, 4], max=100, max_rate=1.0, batch=batch)
        assert faults == [(), (), (), (), ("out_of_range:a",), ()]

    def test_of_no_time_and_of_what_is_late_no_rate_is_told(self, batch: int | None) -> None:
        _, faults, _ = checked([0, 50, 100, 0], ts=[10, 10, 5, 5], max_rate=1.0, batch=batch)
        assert faults == [()] * 4

    def test_stuck(self, batch: int | None) -> None:
        _, faults, told = checked([1, 2, 2, 2, 2, NAN, 2, 3, 3], stuck_s=3.0, batch=batch)
        assert where(faults, "stuck:a") == [4, 6]
        assert told[-1][1] == "a has been 2 for 3 s and longer."

    def test_drifting_slowly_is_not_being_stuck(self, batch: int | None) -> None:
        drift = [at * 0.1 for at in range(30)]
        assert checked(drift, stuck_s=8.0, stuck_tolerance=0.5, batch=batch)[1] == [()] * 30
        noise = [0.4 * (-1) ** at for at in range(12)]
        assert where(checked(noise, stuck_s=8.0, stuck_tolerance=1.0, batch=batch)[1], "stuck:a") == [8, 9, 10, 11]

    @pytest.mark.parametrize("tolerance", [0.0, 0.1])
    def test_a_clock_set_back_begins_anew_and_a_late_reading_does_not(
        self, batch: int | None, tolerance: float
    ) -> None:
        ts = [100.0, 101, 102, 99.5, 103, 104, 0, 1, 2, 3, 4]
        _, faults, _ = checked([7.0] * len(ts), ts=ts, stuck_s=4.0, stuck_tolerance=tolerance, batch=batch)
        assert where(faults, "stuck:a") == [5, 10]

    def test_gap(self, batch: int | None) -> None:
        _, faults, told = checked([1, 2, NAN, NAN, NAN, 3, 4], gap_s=2.0, batch=batch)
        # The value at 1 is 2 s old at 3, 3 s at 4, and 4 s when the next one comes.
        assert where(faults, "gap:a") == [4, 5]
        assert told[0][:2] == ("gap:a", "a has had no value for more than 2 s.")

    def test_a_gap_between_two_readings(self, batch: int | None) -> None:
        assert where(checked([1, 2, 3], ts=[0, 1, 10], gap_s=2.0, batch=batch)[1], "gap:a") == [2]

    def test_a_channel_that_never_speaks_is_a_gap_from_then_on(self, batch: int | None) -> None:
        assert where(checked([NAN] * 6, gap_s=3.0, batch=batch)[1], "gap:a") == [4, 5]

    def test_a_clock_set_back_is_no_gap_and_the_next_one_is_told(self, batch: int | None) -> None:
        _, faults, _ = checked([1.0] * 4, ts=[1e9, 0, 1, 10], gap_s=5.0, batch=batch)
        assert where(faults, "gap:a") == [3]
        _, faults, _ = checked([1.0, NAN, NAN, NAN], ts=[1e9, 0, 1, 10], gap_s=5.0, batch=batch)
        assert where(faults, "gap:a") == [3]

    def test_withheld_values_are_missing(self, batch: int | None) -> None:
        values = [1.0, 2, 99, 2, 2, 2, 9]
        kept, faults, _ = checked(values, max=50, max_rate=2.0, stuck_s=4.0, policy="withhold", batch=batch)
        assert [at for at, value in enumerate(kept) if math.isnan(value)] == [2, 5, 6]
        assert faults[2:] == [("out_of_range:a",), (), (), ("stuck:a",), ("rate:a",)]


def test_nothing_is_written_into_what_was_given() -> None:
    values = np.array([[5.0], [50.0]])
    values.flags.writeable = False
    got, _ = Channels(["a"], {"a": ChannelConfig(max=10, policy="withhold")}, Told()).check(np.arange(2.0), values)
    assert math.isnan(got[1, 0])
    same, _ = Channels(["a"], {"a": ChannelConfig(max=10)}, Told()).check(np.arange(2.0), values)
    assert same is values


def test_channels_are_told_apart_and_those_that_are_not_configured_left_alone() -> None:
    told = Told()
    configs = {"c": ChannelConfig(max=1), "b": ChannelConfig(min=0, stuck_s=1, policy="withhold")}
    channels = Channels(["a", "b", "c"], configs, told)
    values, faults = channels.check(np.arange(3.0), np.array([[9.0, -1, 9], [9, 2, 0], [9, 2, 0]]))
    assert faults == {0: ("out_of_range:b", "out_of_range:c"), 2: ("stuck:b",)}
    assert np.isnan(values).tolist() == [[False, True, False], [False, False, False], [False, True, False]]
    assert [(name, times) for name, _, times in told] == [
        ("out_of_range:b", 1),
        ("out_of_range:c", 1),
        ("stuck:b", 1),
    ]


def test_silence_is_told_once_until_readings_come_again() -> None:
    told = Told()
    channels = Channels(["a", "b"], {"a": ChannelConfig(gap_s=5), "b": ChannelConfig(gap_s=9)}, told)
    for seconds in (1.0, 5.0, 6.0, 7.0, 10.0):
        channels.silent(seconds)
    assert [name for name, _, _ in told] == ["gap:a", "gap:b"]
    channels.check(np.array([0.0]), np.array([[1.0, 1.0]]))
    channels.silent(6.0)
    assert told[-1] == ("gap:a", "a has had no value for more than 5 s.", 1)
    assert len(told) == 3


def plainly(ts: list[float], values: list[float], config: ChannelConfig) -> list[tuple[str, ...]]:
    """What the checks mean, a reading at a time."""
    seen = last = last_ts = same = since = NAN
    told = []
    for t, v in zip(ts, values, strict=True):
        names = []
        seen = t if math.isnan(seen) else min(seen, t)
        if t - seen > (config.gap_s or math.inf):
            names.append("gap:a")
        if math.isfinite(v):
            seen = t
            if (config.min is not None and v < config.min) or (config.max is not None and v > config.max):
                names.append("out_of_range:a")
            else:
                if t > last_ts and abs(v - last) > (config.max_rate or math.inf) * (t - last_ts):
                    names.append("rate:a")
                span = config.stuck_s or math.inf
                if not abs(v - same) <= config.stuck_tolerance or t - last_ts < -span:
                    same, since = v, t
                if t - since >= span:
                    names.append("stuck:a")
                last, last_ts = v, t
        told.append(tuple(names))
    return told


STEPS = st.integers(0, 4) | st.sampled_from([-1, -2, -50])
VALUES = st.sampled_from([0.0, 1, 2, 3, 50, NAN])


@given(
    st.lists(
        st.tuples(st.integers(0, 4) | st.sampled_from([-1, -2, -50]), st.sampled_from([0.0, 1, 2, 3, 50, NAN])),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 60),
    st.builds(
        ChannelConfig,
        max=st.none() | st.just(10.0),
        max_rate=st.none() | st.just(1.0),
        stuck_s=st.just(3.0),
        stuck_tolerance=st.sampled_from([0.0, 1.0]),
        gap_s=st.none() | st.just(4.0),
    ),
)
def test_batches_make_no_difference_and_it_is_what_it_means(
    rows: list[tuple[int, float]], batch: int, config: ChannelConfig
) -> None:
    ts = np.cumsum([float(step) for step, _ in rows]).tolist()
    values = [value for _, value in rows]
    told = Told()
    channels = Channels(["a"], {"a": config}, told)
    found: list[tuple[str, ...]] = []
    for at in range(0, len(rows), batch):
        part = np.array(values[at : at + batch])[:, None]
        _, faults = channels.check(np.array(ts[at : at + batch]), part)
        found += [faults.get(row, ()) for row in range(len(part))]
    assert found == plainly(ts, values, config)
    assert sum(times for _, _, times in told) == sum(map(len, found))


@pytest.mark.parametrize(
    ("config", "at"),
    [
        ({"min": 2, "max": 1}, "$.x.a"),
        ({"min": NAN}, "$.x.a"),
        ({"stuck_tolerance": 1}, "$.x.a.stuck_tolerance"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(config: dict[str, Any], at: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_channels({"a": ChannelConfig(**config)}, "$.x")
    assert error.value.path == at
