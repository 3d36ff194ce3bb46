"""Gap records: bounded, exact in their counts, and worth reading."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.spool.gaps import RECORD_MAX_BYTES, Figures, GapBody, Gone, Summary, gap_bodies, merged

NOW = 1_700_000_000.0


def gap(body: bytes) -> GapBody:
    return msgspec.json.decode(body, type=GapBody)


def gone(seq: int, task: str = "", result: object = None, pipeline: str = "dock") -> Gone:
    return Gone(seq, pipeline, NOW + seq, msgspec.json.encode({"task": task, "result": result}))


def test_labels_are_counted_and_scores_are_summed_up() -> None:
    rows = [
        gone(1, "classification", {"label": "7", "score": 0.9, "top": []}),
        gone(2, "classification", {"label": "7", "score": 0.8, "top": []}),
        gone(3, "classification", {"label": "3", "score": 0.8, "top": []}),
        gone(4, "anomaly", {"state": "anomalous", "score": 3.0, "threshold": 2.0}, "pump"),
        gone(5, "anomaly", {"state": "normal", "score": 1.0, "threshold": 2.0}, "pump"),
        gone(6, "anomaly", {"state": "no_data", "score": None, "threshold": 2.0}, "pump"),
        gone(7, "forecasting", {"horizon": [], "quantiles": {"0.1": [1], "0.5": [20, 99], "0.9": [3]}}, "co2"),
        gone(8, "forecasting", {"horizon": [], "quantiles": {"0.5": [10.0]}}, "co2"),
    ]
    (body,) = gap_bodies("spool_full", NOW, rows)
    told = gap(body)
    assert told.ranges == [(1, 8)]
    assert told.exact
    assert told.counts == {"dock": 3, "pump": 3, "co2": 2}
    assert told.summary == {
        "dock": Summary(labels={"7": 2, "3": 1}, other_labels=0, value=None),
        "pump": Summary(
            labels={"anomalous": 1, "no_data": 1, "normal": 1},
            other_labels=0,
            value=Figures(count=2, mean=2.0, min=1.0, max=3.0),
        ),
        "co2": Summary(labels={}, other_labels=0, value=Figures(count=2, mean=15.0, min=10.0, max=20.0)),
    }
    assert (told.first_ts, told.last_ts) == ("2023-11-14T22:13:21.000Z", "2023-11-14T22:13:28.000Z")


def test_a_frame_counts_once_for_each_label_that_it_shows() -> None:
    cat, dog = {"label": "cat", "score": 0.9, "box": [0, 0, 1, 1]}, {"label": "dog", "score": 0.8, "box": [0, 0, 1, 1]}
    rows = [
        gone(1, "detection", {"objects": [dog, cat, dog], "width": 9, "height": 9}),
        gone(2, "detection", {"objects": [cat], "width": 9, "height": 9}),
        gone(3, "detection", {"objects": [], "width": 9, "height": 9}),
    ]
    (body,) = gap_bodies("spool_full", NOW, rows)
    assert gap(body).counts == {"dock": 3}
    assert gap(body).summary == {"dock": Summary(labels={"cat": 2, "dog": 1}, other_labels=0, value=None)}


def test_what_cannot_be_read_is_counted_all_the_same() -> None:
    bodies = [b"", b"{", b"{}", b'{"task":5}', b'{"task":"anomaly","result":{"score":"x"}}', b"[" * 5000, b"\xff"]
    (body,) = gap_bodies("spool_full", NOW, [Gone(seq, "dock", NOW, body) for seq, body in enumerate(bodies, 1)])
    assert gap(body).counts == {"dock": 7}
    assert gap(body).summary == {}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 200)), min_size=1, max_size=400))
def test_a_record_is_bounded_and_its_counts_are_exact(rows: list[tuple[int, int]]) -> None:
    name = "p" * 100
    result = [
        gone(2 * at, "classification", {"label": f"{label}" + "é" * 40}, f"{name}{pipeline}")
        for at, (pipeline, label) in enumerate(rows, 1)
    ]
    bodies = list(gap_bodies("expired", NOW, result))
    assert max(map(len, bodies)) <= RECORD_MAX_BYTES
    told = [gap(body) for body in bodies]
    assert sum(sum(each.counts.values()) for each in told) == len(rows)
    named = sum(
        sum(summary.labels.values()) + summary.other_labels for each in told for summary in each.summary.values()
    )
    assert named == len(rows)
    assert [low for each in told for low, _ in each.ranges] == [2 * at for at in range(1, len(rows) + 1)]


def test_merging_keeps_counts_and_summaries_and_names_what_it_replaces() -> None:
    records = []
    for at in range(5):
        label = {"label": str(at % 2)}
        (body,) = gap_bodies("spool_full", NOW, [gone(10 * at + 1, "classification", label)])
        records.append((1000 + at, body))
    (aside,) = gap_bodies("too_large", NOW, [gone(500)])
    done = merged([*records, (2000, aside)], NOW, 2)
    assert done is not None
    went, bodies = done
    assert went == [1000, 1001, 1002, 1003, 1004]
    (told,) = map(gap, bodies)
    assert told.ranges == [(1, 1), (11, 11), (21, 21), (31, 31), (41, 41), (1000, 1004)]
    assert (told.reason, told.exact, told.counts) == ("spool_full", True, {"dock": 5})
    assert told.summary["dock"].labels == {"0": 3, "1": 2}


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, 5000), min_size=400, max_size=1500), st.integers(1, 3))
def test_too_many_ranges_are_told_more_coarsely_and_say_so(seqs: set[int], most: int) -> None:
    records = [
        (10_000 + at, body)
        for at, body in enumerate(gap_bodies("spool_full", NOW, [gone(seq) for seq in sorted(seqs)]))
    ]
    done = merged(records, NOW, most)
    told = [gap(body) for body in done[1]] if done else [gap(body) for _, body in records]
    assert len(told) <= max(most, 1)
    assert all(len(each.ranges) <= 100 for each in told)
    covered = {seq for each in told for low, high in each.ranges for seq in range(low, high + 1)}
    assert seqs <= covered
    assert sum(sum(each.counts.values()) for each in told) == len(seqs)
    if all(each.exact for each in told):
        assert covered <= seqs | {seq for seq, _ in records}


def test_records_of_another_epoch_or_a_damaged_file_stay_as_they_are() -> None:
    (body,) = gap_bodies("spool_full", NOW, [gone(1)])
    formerly = body[:-1] + b',"formerly":"ab:1"}'
    assert merged([(seq, formerly) for seq in range(10)], NOW, 2) is None
