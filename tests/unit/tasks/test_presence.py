"""Presence: what begins ends, one at a time where that is asked for, and flicker between the thresholds is nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.settings.decision import EventsConfig
from lisiere.tasks.presence import MAX_FRAMES, Change, Events, Presence
from lisiere.values import EventBody

SHARES = st.lists(st.floats(0, 1), min_size=3, max_size=3)
STEPS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 30.0, -5.0])
FRAMES = st.lists(st.tuples(STEPS, SHARES), max_size=40)
SETTINGS = st.builds(
    lambda smoothing, span_s, pair, min_s, update_s: EventsConfig(
        smoothing=smoothing, span_s=span_s, enter=max(pair), leave=min(pair), min_s=min_s, update_s=update_s
    ),
    st.sampled_from(["ewma", "majority"]),
    st.sampled_from([0.01, 0.5, 2.0]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.3, 5.0]),
)


def feed(presence: Presence, frames: Iterable[tuple[float, Any]], majority: bool = False) -> list[Change]:
    ts, changes = 100.0, []
    for step, shares in frames:
        ts += step
        scores = np.asarray(shares, np.float64)
        changes += presence.add(ts, np.rint(scores) if majority else scores)
    return changes


def at_once(**what: Any) -> EventsConfig:
    """Settings under which what a frame shows counts nearly at once."""
    return EventsConfig(**{"span_s": 0.001, "enter": 0.7, "leave": 0.4, "min_s": 0.0, **what})


@settings(deadline=None)
@given(SETTINGS, FRAMES, st.booleans())
def test_every_end_has_its_new_and_none_is_open_twice(how: EventsConfig, frames: Any, exclusive: bool) -> None:
    presence = Presence(how, 3, None, exclusive)
    changes = feed(presence, frames, how.smoothing == "majority")
    present = presence.present
    changes += presence.finish()
    opened: dict[int, Change] = {}
    numbers = []
    for change in changes:
        stay = change.stay
        if change.phase == "new":
            assert stay.label not in opened
            assert stay.peak >= how.enter
            opened[stay.label] = change
            numbers.append(stay.number)
            assert not exclusive or len(opened) == 1
        else:
            new = (opened.pop(stay.label) if change.phase == "end" else opened[stay.label]).stay
            assert (new.number, new.since) == (stay.number, stay.since)
            assert new.since <= new.until <= stay.until
            assert stay.peak >= new.peak
            assert stay.frames >= new.frames >= 1
        assert 0 <= stay.peak <= 1 + 1e-9
    assert opened == {}
    assert numbers == sorted(set(numbers))
    assert {change.stay.label for change in changes[len(changes) - len(present) :]} == set(present)
    assert presence.present == []
    assert presence.finish() == []


@settings(deadline=None)
@given(st.lists(st.floats(0.41, 0.69), min_size=1, max_size=60), st.sampled_from(["ewma", "plain"]))
def test_flicker_between_the_thresholds_begins_and_ends_nothing(values: list[float], form: str) -> None:
    how = at_once() if form == "plain" else at_once(span_s=1.0)
    presence = Presence(how, 1, None, True)
    band = [(0.1, [value]) for value in values]
    assert feed(presence, band) == []
    presence = Presence(how, 1, None, True)
    begun = presence.add(99.0, np.asarray([0.9]))
    assert [change.phase for change in begun] == ["new"]
    assert feed(presence, band) == []


@settings(deadline=None)
@given(SETTINGS, FRAMES)
def test_a_replay_tells_the_same(how: EventsConfig, frames: Any) -> None:
    assert feed(Presence(how, 3, None, True), frames) == feed(Presence(how, 3, None, True), frames)


def test_a_label_must_stay_high_for_the_least_duration() -> None:
    how = at_once(min_s=1.0)
    flicker = [(0.5, [0.9]), (0.4, [0.9]), (0.1, [0.6]), (0.4, [0.9]), (0.9, [0.9])]
    presence = Presence(how, 1, None, True)
    assert feed(presence, flicker) == []
    (new,) = presence.add(102.4, np.asarray([0.9]))
    assert (new.phase, new.stay.until, new.stay.frames) == ("new", 102.4, 3)
    assert new.stay.since == pytest.approx(101.4)


def test_smoothing_takes_its_time_by_the_clock_of_the_frames() -> None:
    for step, frames in ((0.1, 12), (0.05, 24)):  # ln(1 / 0.3) = 1.2 time constants to get from 0 to 0.7
        presence = Presence(EventsConfig(span_s=1.0, min_s=0.0), 1, None, True)
        feed(presence, [(0.0, [0.0])])
        told = [presence.add(100 + step * at, np.asarray([1.0])) for at in range(1, frames + 3)]
        assert [bool(changes) for changes in told].index(True) in (frames, frames + 1)


def test_the_majority_is_of_the_frames_of_the_span() -> None:
    presence = Presence(EventsConfig(smoothing="majority", span_s=1.0, enter=0.6, leave=0.4, min_s=0.0), 2, None, True)
    votes = [[1, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]
    changes = feed(presence, [(0.25, vote) for vote in votes])
    assert [(change.phase, change.stay.label, change.stay.peak, change.stay.until) for change in changes] == [
        ("new", 0, 1.0, 100.25),
        ("end", 0, 1.0, 101.5),
        ("new", 1, 0.75, 101.75),
    ]


def test_a_window_is_bounded() -> None:
    presence = Presence(EventsConfig(smoothing="majority", span_s=3600.0), 1, None, True)
    feed(presence, [(0.0, [1.0])] * (MAX_FRAMES + 10))
    assert len(presence._window) == MAX_FRAMES


def test_another_label_takes_the_place_of_the_first() -> None:
    changes = feed(Presence(at_once(enter=0.4, leave=0.1), 2, None, True), [(1, [0.6, 0.4]), (1, [0.3, 0.7])])
    assert [(change.phase, change.stay.label) for change in changes] == [("new", 0), ("end", 0), ("new", 1)]


def test_several_are_present_where_that_is_asked_for() -> None:
    presence = Presence(at_once(), 3, None, False)
    changes = feed(presence, [(1, [0.9, 0.0, 0.9]), (1, [0.9, 0.9, 0.0])])
    assert [(change.phase, change.stay.label) for change in changes] == [("new", 0), ("new", 2), ("end", 2), ("new", 1)]
    assert presence.present == [0, 1]


def test_only_watched_labels_begin() -> None:
    changes = feed(Presence(at_once(), 2, frozenset({1}), True), [(1, [0.9, 0.1]), (1, [0.1, 0.9])])
    assert [(change.phase, change.stay.label) for change in changes] == [("new", 1)]


@pytest.mark.parametrize("step", [10.5, -1.0])
def test_a_gap_or_time_going_back_ends_what_is_present_with_the_last_frame(step: float) -> None:
    presence = Presence(at_once(), 1, None, True)
    changes = feed(presence, [(1, [0.9]), (2, [0.8]), (step, [0.9])])
    assert [(change.phase, change.stay.until) for change in changes] == [
        ("new", 101),
        ("end", 103),
        ("new", 103 + step),
    ]


def test_nothing_is_carried_over_a_gap() -> None:
    assert feed(Presence(at_once(min_s=1.0), 1, None, True), [(1, [0.9]), (20, [0.9]), (0.5, [0.9])]) == []
    slow = Presence(at_once(smoothing="majority", span_s=100.0, gap_s=20.0), 1, None, True)
    changes = feed(slow, [(1, [1.0]), (1, [1.0]), (30, [0.0])])
    assert [change.phase for change in changes] == ["new", "end"]


def test_what_no_frame_shows_never_begins() -> None:
    changes = feed(Presence(at_once(enter=0.0, leave=0.0), 2, None, False), [(1, [0.1, 0.0])] * 3)
    assert [(change.phase, change.stay.label) for change in changes] == [("new", 0)]


def test_what_lasts_is_told_again() -> None:
    changes = feed(Presence(at_once(update_s=3.0), 1, None, True), [(1, [0.9])] * 8)
    assert [(change.phase, change.stay.until) for change in changes] == [("new", 101), ("update", 104), ("update", 107)]
    assert [change.stay.frames for change in changes] == [1, 4, 7]
    assert {change.stay.since for change in changes} == {101}


def test_events_are_named_by_when_they_began() -> None:
    events = Events(at_once(labels=("owl",)), ("cat", "owl"), exclusive=True)
    (new,) = events.add(1.5, np.asarray([0.0, 0.9]))
    assert new == EventBody(
        event="1970-01-01T00:00:01.500Z/1",
        phase="new",
        label="owl",
        score=0.9,
        since="1970-01-01T00:00:01.500Z",
        until="1970-01-01T00:00:01.500Z",
        count=1,
    )
    assert events.present == ["owl"]
    assert events.add(2.5, np.asarray([0.9, 0.95])) == ()
    (end,) = events.end()
    assert (end.event, end.phase, end.score, end.until, end.count) == (
        new.event, "end", 0.95, "1970-01-01T00:00:02.500Z", 2,
    )  # fmt: skip
    (again,) = events.add(1.5, np.asarray([0.0, 0.9]))
    assert again.event == "1970-01-01T00:00:01.500Z/2"
