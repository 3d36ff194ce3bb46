"""Envelopes: what a subscriber gets is what the contract says."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock, rfc3339
from lisiere.spool import Row
from lisiere.sync.envelope import ResultBody, restamp, seal
from lisiere.sync.topics import Topics
from lisiere.timeline import Timeline

body = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8), min_size=1, max_size=5)


@given(body, st.integers(1, 2**53), st.booleans(), st.sampled_from(["result", "gap"]))
def test_the_identity_goes_around_the_stored_bytes(
    document: dict[str, object], seq: int, replay: bool, kind: str
) -> None:
    document = {f"x{key}": value for key, value in document.items()}
    row = Row(seq, kind, "dock", 0.0, msgspec.json.encode(document))
    sealed = json.loads(seal(row, "pi-1", "e0", 1_700_000_000.5, replay))
    assert sealed == {
        "schema": f"lisiere.{kind}/1",
        "id": f"pi-1:e0:{seq}",
        "device": "pi-1",
        "epoch": "e0",
        "seq": seq,
        **document,
        "published_ts": "2023-11-14T22:13:20.500Z",
        "replay": replay,
    }


def test_topics() -> None:
    topics = Topics("lisiere", "pi-1")
    assert topics.status == "lisiere/v1/pi-1/status"
    assert topics.live("dock") == "lisiere/v1/pi-1/result/dock"
    assert topics.backlog("dock") == "lisiere/v1/pi-1/backlog/dock"
    assert topics.gap == "lisiere/v1/pi-1/gap"
    assert topics.health == "lisiere/v1/pi-1/health"
    assert topics.metrics == "lisiere/v1/pi-1/metrics"


def stamped(timeline: Timeline, clock: ManualClock) -> Row:
    stamp = timeline.stamp()
    head = {"ts": rfc3339(stamp.ts), "ts_quality": stamp.quality}
    if stamp.origin is not None:
        head["clock"] = msgspec.to_builtins(stamp.origin)
    return Row(
        1, "result", "dock", clock.now(), json.dumps({**head, "pipeline": "dock"}, separators=(",", ":")).encode()
    )


def test_a_time_that_has_become_known_is_put_into_what_leaves() -> None:
    clock = ManualClock(10.0, "unsynced")
    timeline = Timeline(clock)
    clock.advance(5)
    row = stamped(timeline, clock)
    assert json.loads(row.body)["clock"] == {"boot": "boot-1", "mono_s": 5.0}
    assert restamp(row, timeline) is row
    clock.advance(5)
    clock.step(1_700_000_000 - 20, "synced")
    assert json.loads(restamp(row, timeline).body) == {
        "ts": "2023-11-14T22:13:15.000Z",
        "ts_quality": "corrected",
        "pipeline": "dock",
    }
    assert b"unsynced" in row.body  # what is on disk stays


def test_what_was_right_at_once_is_left_alone() -> None:
    clock = ManualClock(quality="synced")
    timeline = Timeline(clock)
    row = stamped(timeline, clock)
    clock.step(500.0)
    timeline.quality()
    assert restamp(row, timeline) is row


def test_a_result_begins_as_the_restamping_expects() -> None:
    """The order of ResultBody's fields is what `restamp` looks for."""
    names = [field.name for field in msgspec.structs.fields(ResultBody)]
    assert names[:3] == ["ts", "ts_quality", "clock"]
