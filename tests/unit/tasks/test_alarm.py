"""Alarms: one event from its beginning to its end, whatever the scores do between."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.settings.anomaly import AlarmConfig
from lisiere.tasks.alarm import Alarm, Threshold
from lisiere.values import EventBody

HOW = AlarmConfig(hysteresis=0.5, clear_after=2)


def told(scores: list[float | None], how: AlarmConfig = HOW, cool_down_s: float = 0.0) -> tuple[str, list[EventBody]]:
    """States by their first letter (`_`: no data), and the events, for a score a second against a threshold of 10."""
    alarm = Alarm(how, cool_down_s)
    states = ""
    events: list[EventBody] = []
    for at, score in enumerate(scores):
        state, new = alarm(float(at), score, 10.0)
        states += "_" if state == "no_data" else state[0]
        events += new
    return states, [*events, *alarm.end()]


def test_an_alarm_begins_above_the_threshold_and_ends_after_calm() -> None:
    states, events = told([10, 11, 4, 4, 4])
    assert states == "naann"
    assert [(event.phase, event.count, event.since[-5:-1]) for event in events] == [
        ("new", 1, ".000"),
        ("end", 1, ".000"),
    ]
    assert events[0].event == events[1].event == "anomalous-1970-01-01T00:00:01.000Z"
    assert events[1].until == "1970-01-01T00:00:01.000Z"


def test_hysteresis_keeps_it_on() -> None:
    states, events = told([11, 6, 4, 6, 4, 4])
    assert states == "aaaaan"
    assert events[-1].count == 3
    assert events[-1].until.endswith("03.000Z")


def test_only_what_is_higher_by_a_fifth_is_an_update() -> None:
    _, events = told([11, 12, 14, 15, 16, 17])
    assert [(event.phase, event.score) for event in events] == [
        ("new", 11),
        ("update", 14),
        ("update", 17),
        ("end", 17),
    ]


def test_within_the_cool_down_only_a_higher_score_is_another_alarm() -> None:
    how = AlarmConfig(hysteresis=1.0, clear_after=1)
    states, events = told([11, 1, 12, 1, 14, 1, 1, 1, 1, 1, 11], how, cool_down_s=5.0)
    assert states == "annnannnnna"
    assert [event.phase for event in events] == ["new", "end", "new", "end", "new", "end"]


def test_a_hole_is_no_data_and_long_ones_end_the_alarm() -> None:
    states, events = told([None, 11, None, 11, None, None, None])
    assert states == "_a_a___"
    assert [event.phase for event in events] == ["new", "end"]


def test_an_alarm_that_is_on_at_the_end_is_ended() -> None:
    assert [event.phase for event in told([11])[1]] == ["new", "end"]
    assert told([1])[1] == []


@given(st.lists(st.one_of(st.none(), st.floats(0, 30)), max_size=60), st.floats(0, 20))
def test_events_are_whole_and_follow_each_other(scores: list[float | None], cool_down_s: float) -> None:
    states, events = told(scores, cool_down_s=cool_down_s)
    groups = [list(group) for _, group in itertools.groupby(events, key=lambda event: event.event)]
    for group in groups:
        assert [event.phase for event in group] == ["new", *["update"] * (len(group) - 2), "end"]
        assert all(one.count <= other.count for one, other in itertools.pairwise(group))
    assert len({event.event for event in events}) == len(groups)
    assert states.count("_") == scores.count(None)


def test_a_threshold_follows_from_a_rate() -> None:
    rng = np.random.default_rng(0)
    threshold = Threshold(0.001, 99.0)
    for value in rng.exponential(1.0, 149):
        threshold.learn(float(value))
    assert threshold.value == 99.0
    for value in rng.exponential(1.0, 50_000):
        threshold.learn(float(value))
    assert threshold.value == pytest.approx(-np.log(0.001), rel=0.2)
