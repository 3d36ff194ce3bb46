"""Envelopes: what a subscriber gets is what the contract says."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lisiere.spool import Row
from lisiere.sync.envelope import seal
from lisiere.sync.topics import Topics

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
    assert topics.result("dock") == "lisiere/v1/pi-1/result/dock"
    assert topics.backlog("dock") == "lisiere/v1/pi-1/backlog/dock"
    assert topics.gap == "lisiere/v1/pi-1/gap"
    assert topics.health == "lisiere/v1/pi-1/health"
    assert topics.metrics == "lisiere/v1/pi-1/metrics"
