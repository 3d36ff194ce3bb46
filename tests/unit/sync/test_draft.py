"""Drafts: batches hold whole envelopes of one pipeline in order, within their size, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.schema import json_schema
from lisiere.settings.links import LinkConfig
from lisiere.spool import Row
from lisiere.sync.draft import ZSTD, Drafter
from lisiere.sync.topics import Topics
from lisiere.timeline import Timeline

BASE = "lisiere/v1/pi"
MODEL = dict.fromkeys(("name", "version", "digest", "backend", "backend_why", "target"), "x")
BODY = {
    "ts": "2026-01-31T07:36:16.123Z",
    "ts_quality": "synced",
    "pipeline": "dock",
    "source": "camera0",
    "task": "classification",
    "model": MODEL,
    "latency_ms": {"preprocess": 0.1, "infer": 0.1, "postprocess": 0.1},
    "result": {"label": "7", "score": 0.9, "top": []},
}


def drafter(**settings: Any) -> Drafter:
    clock = ManualClock()
    aws = {"old": "ml/dlr/x"}
    return Drafter("pi", Topics("lisiere", "pi"), "e1", clock, LinkConfig(**settings), aws, Timeline(clock))


def row(seq: int, pipeline: str = "dock", padding: int = 0) -> Row:
    return Row(
        seq, "result" if pipeline else "gap", pipeline, 0.0, json.dumps({**BODY, "source": "x" * padding}).encode()
    )


@given(
    st.lists(st.tuples(st.sampled_from(["dock", "yard", "old", ""]), st.integers(0, 4000)), min_size=1, max_size=60),
    st.sampled_from([0.0, 2.0, 10.0, 128.0]),
    st.integers(2000, 131_072),
    st.sets(st.integers(1, 60), max_size=5),
)
def test_every_row_leaves_once_in_the_order_of_its_topic_and_within_the_size(
    rows: list[tuple[str, int]], batch_kb: float, max_bytes: int, single: set[int]
) -> None:
    make = drafter(backlog_batch_kb=batch_kb)
    waiting = deque(row(seq, *one) for seq, one in enumerate(rows, 1))
    sent: dict[str, list[int]] = {}
    while waiting:
        draft = make.backlog(waiting, max_bytes, single.__contains__)
        if len(draft.rows) > 1:
            assert len(draft.payload) <= min(batch_kb * 1000, max_bytes)
            assert single.isdisjoint(draft.seqs)
            told = [one["seq"] for one in json.loads(draft.payload)["results"]]
            assert told == draft.seqs
            assert {one.pipeline for one in draft.rows} == {draft.topic.removeprefix(f"{BASE}/backlog/")}
        sent.setdefault(draft.topic, []).extend(draft.seqs)
    assert sorted(seq for seqs in sent.values() for seq in seqs) == list(range(1, len(rows) + 1))
    for seqs in sent.values():
        assert seqs == sorted(seqs)


def test_a_batch_is_what_the_contract_says() -> None:
    draft = drafter(backlog_batch_kb=20).backlog(deque(row(seq) for seq in range(1, 9)), 131_072, lambda _seq: False)
    message = json.loads(draft.payload)
    jsonschema.validate(message, json_schema("batch"))
    assert (draft.topic, message["schema"]) == (f"{BASE}/backlog/dock", "lisiere.batch/1")
    assert [one["id"] for one in message["results"]] == [f"pi:e1:{seq}" for seq in range(1, 9)]
    assert all(one["replay"] for one in message["results"])


def test_many_are_put_together_once_there_are_many() -> None:
    waiting = deque(row(seq) for seq in range(1, 65))
    draft = drafter(backlog_batch_kb=128).backlog(waiting, 131_072, lambda _seq: False)
    assert (len(draft.rows), len(waiting)) == (64, 0)


def test_a_compressed_batch_has_a_topic_of_its_own_and_says_how_large_it_was() -> None:
    import zstandard

    make = drafter(backlog_batch_kb=60, backlog_zstd=True)
    draft = make.backlog(deque(row(seq) for seq in range(1, 50)), 131_072, lambda _seq: False)
    assert (draft.topic, draft.content) == (f"{BASE}/backlog/dock/zstd", ZSTD)
    plain = zstandard.ZstdDecompressor().decompress(draft.payload)
    assert zstandard.frame_content_size(draft.payload) == len(plain)
    assert [one["seq"] for one in json.loads(plain)["results"]] == draft.seqs
    assert len(draft.payload) * 4 < len(plain)
    alone = make.backlog(deque([row(1)]), 131_072, lambda _seq: False)
    assert alone.topic == f"{BASE}/backlog/dock"


def test_what_names_no_seq_cannot_be_acknowledged_by_a_consumer() -> None:
    make = drafter()
    assert [make.names_seq(row(1, pipeline)) for pipeline in ("dock", "", "old")] == [True, True, False]


@pytest.mark.parametrize("kind", ["event", "score"])
def test_events_and_scores_have_topics_of_their_own_and_leave_one_by_one(kind: str) -> None:
    make = drafter(backlog_batch_kb=100)
    other = dataclasses.replace(row(2), kind=kind)
    live = make.one(other, late=False)
    assert live.topic == f"{BASE}/{kind}/dock"
    assert json.loads(live.payload)["schema"] == f"lisiere.{kind}/1"
    late = deque([row(1), other, row(3), row(4)])
    sent = []
    while late:
        sent.append(make.backlog(late, 131_072, lambda _seq: False))
    assert [draft.seqs for draft in sent] == [[1], [2], [3, 4]]
    assert {draft.topic for draft in sent} == {f"{BASE}/backlog/dock"}
    # What a pipeline for AWS's component sends beside its results is in our own form.
    assert make.one(dataclasses.replace(row(1, "old"), kind=kind), late=False).topic == f"{BASE}/{kind}/old"
