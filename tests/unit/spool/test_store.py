"""The spool: accepted means on disk, and every result is accounted for."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.config import SpoolConfig
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.spool import Counts, Spool, SpoolReader, database_file
from lisiere.spool.store import BODY_MAX_BYTES


@pytest.fixture
def config(tmp_path: Path) -> SpoolConfig:
    return SpoolConfig(path=str(tmp_path / "spool"), linger_ms=0)


@pytest.fixture
def spool(config: SpoolConfig) -> Iterator[Spool]:
    spool = Spool(config, ManualClock())
    yield spool
    spool.close()


@pytest.fixture
def reader(spool: Spool, config: SpoolConfig) -> Iterator[SpoolReader]:
    reader = SpoolReader(Path(config.path))
    yield reader
    reader.close()


def fill(spool: Spool, count: int, pipeline: str = "dock", size: int = 10) -> None:
    for at in range(count):
        spool.append(pipeline, b'{"n":%0*d}' % (size, at))
    assert spool.flush(10)


def test_what_is_appended_can_be_read_in_order_once_flushed(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 3)
    assert [(row.seq, row.kind, row.pipeline) for row in reader.after(0, 10)] == [
        (1, "result", "dock"),
        (2, "result", "dock"),
        (3, "result", "dock"),
    ]
    assert [row.seq for row in reader.after(1, 1)] == [2]
    assert [row.seq for row in reader.after(0, 10, up_to=2)] == [1, 2]
    assert spool.committed == reader.highest == 3


def test_commits_are_synchronous_in_full(spool: Spool, config: SpoolConfig) -> None:
    # The writer's own connection, since the pragma belongs to a connection.
    assert spool._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    assert spool._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_acknowledged_rows_go_and_are_counted(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 5)
    fill(spool, 2, "co2")
    spool.acknowledge([1, 3, 6])
    assert spool.flush(10)
    assert [row.seq for row in reader.after(0, 10)] == [2, 4, 5, 7]
    assert reader.counts() == {"dock": Counts(5, 2, 0), "co2": Counts(2, 1, 0)}
    assert reader.waiting() == {"dock": 3, "co2": 1}
    assert spool.waiting == 4


def test_acknowledging_twice_counts_once(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 1)
    spool.acknowledge([1])
    spool.acknowledge([1, 99])
    assert spool.flush(10)
    assert reader.counts() == {"dock": Counts(1, 1, 0)}
    assert spool.waiting == 0


def test_seq_goes_on_after_a_drained_spool_is_opened_again(config: SpoolConfig) -> None:
    first = Spool(config, ManualClock())
    fill(first, 3)
    first.acknowledge([1, 2, 3])
    assert first.close()
    second = Spool(config, ManualClock())
    fill(second, 1)
    assert second.committed == 4
    assert second.epoch == first.epoch
    second.close()


def test_close_commits_what_was_handed_over(config: SpoolConfig) -> None:
    spool = Spool(msgspec.structs.replace(config, linger_ms=1000), ManualClock())
    for _ in range(7):
        spool.append("dock", b"{}")
    assert spool.close()
    again = Spool(config, ManualClock())
    assert again.waiting == 7
    again.close()


def test_a_closed_spool_takes_nothing(config: SpoolConfig) -> None:
    spool = Spool(config, ManualClock())
    spool.close()
    with pytest.raises(Retryable, match="closed"):
        spool.append("dock", b"{}", timeout=0)


def test_commits_are_told_with_the_highest_seq(config: SpoolConfig) -> None:
    told: list[int] = []
    spool = Spool(config, ManualClock(), told.append)
    fill(spool, 10)
    spool.close()
    assert told == sorted(told)
    assert told[-1] == 10


def test_a_body_too_large_for_a_message_is_rejected(spool: Spool) -> None:
    with pytest.raises(Rejected, match="cannot be sent"):
        spool.append("dock", b"x" * (BODY_MAX_BYTES + 1))
    spool.append("dock", b"x" * BODY_MAX_BYTES)
    assert spool.flush(10)


def test_many_threads_get_seqs_without_holes(spool: Spool, reader: SpoolReader) -> None:
    threads = [threading.Thread(target=fill, args=(spool, 200, f"p{at}")) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.seq for row in reader.after(0, 1000)] == list(range(1, 801))
    assert {name: counts.accepted for name, counts in reader.counts().items()} == dict.fromkeys(
        ("p0", "p1", "p2", "p3"), 200
    )


@settings(max_examples=25, deadline=None)
@given(lots=st.lists(st.integers(1, 700), min_size=1, max_size=4), rows=st.sampled_from([100, 300, 1000]))
def test_every_accepted_result_is_waiting_or_in_a_gap_record(
    lots: list[int], rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(SpoolConfig(path=str(folder), max_rows=rows, linger_ms=0), ManualClock())
    for lot in lots:
        fill(spool, lot)
    reader = SpoolReader(folder)
    waiting = reader.after(0, 10_000)
    gaps = [msgspec.json.decode(row.body) for row in waiting if row.kind == "gap"]
    explained = {seq for gap in gaps for low, high in gap["ranges"] for seq in range(low, high + 1)}
    held = {row.seq for row in waiting}
    assert explained | held == set(range(1, reader.highest + 1))
    assert not explained & held
    counts = reader.counts()["dock"]
    assert counts == Counts(sum(lots), 0, sum(gap["counts"]["dock"] for gap in gaps))
    assert reader.waiting().get("dock", 0) == counts.accepted - counts.evicted
    assert spool.waiting == len(waiting) <= rows
    reader.close()
    spool.close()


def test_bytes_are_bounded_too(tmp_path: Path) -> None:
    spool = Spool(SpoolConfig(path=str(tmp_path), max_mb=1, linger_ms=0), ManualClock())
    fill(spool, 1500, size=1000)
    assert spool.bytes_waiting <= 1_000_000
    reader = SpoolReader(tmp_path)
    assert sum(len(row.body) for row in reader.after(0, 1000)) == spool.bytes_waiting
    assert reader.counts()["dock"].evicted > 0
    reader.close()
    spool.close()


def test_a_disk_that_refuses_holds_results_back_and_says_so(config: SpoolConfig) -> None:
    spool = Spool(config, ManualClock())
    fill(spool, 1)
    # Another connection that holds the write lock stands for a disk that refuses: the commit fails.
    spool._db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(database_file(Path(config.path)), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    spool.append("dock", b"{}")
    assert not spool.flush(0.3)
    assert spool.failure is not None
    assert "refuses" in spool.failure
    other.execute("COMMIT")
    other.close()
    assert spool.flush(10)
    assert spool.failure is None
    assert spool.committed == 2
    assert spool.close()


def test_a_full_queue_of_pending_results_refuses_after_the_timeout_and_then_at_once(
    config: SpoolConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(config, ManualClock())
    spool._db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(database_file(Path(config.path)), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def append_many() -> None:
        for _ in range(10_000):
            spool.append("dock", b"{}", timeout=0.01)

    with pytest.raises(Retryable, match="takes nothing"):
        append_many()
    monkeypatch.setattr(spool._changed, "wait_for", lambda *_: pytest.fail("It is held up as the first one was."))
    for _ in range(100):
        with pytest.raises(Retryable, match="takes nothing"):
            spool.append("dock", b"{}", timeout=5.0)
    monkeypatch.undo()
    other.execute("ROLLBACK")
    other.close()
    assert spool.flush(10)
    assert spool.waiting == spool.committed > 0
    spool.append("dock", b"{}", timeout=0.01)
    assert spool.close()


def test_a_spool_of_a_newer_version_is_left_alone(config: SpoolConfig) -> None:
    Spool(config, ManualClock()).close()
    file = database_file(Path(config.path))
    db = sqlite3.connect(file)
    db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.commit()
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Permanent, match="version 99"):
        Spool(config, ManualClock())
    with pytest.raises(Permanent, match="version 99"):
        SpoolReader(Path(config.path))


def test_reading_where_there_is_no_spool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Permanent, match="no readable spool"):
        SpoolReader(tmp_path)


def gaps(reader: SpoolReader) -> list[dict[str, Any]]:
    return [msgspec.json.decode(row.body) for row in reader.after(0, 1000) if row.kind == "gap"]


def test_what_is_set_aside_goes_with_a_gap_record_for_each_reason(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 6)
    fill(spool, 2, "yard")
    spool.set_aside([2, 3, 7], "too_large")
    spool.set_aside([5], "refused")
    spool.set_aside([99], "refused")
    assert spool.flush(10)
    large, refused = gaps(reader)
    assert (large["reason"], large["ranges"]) == ("too_large", [[2, 3], [7, 7]])
    assert large["counts"] == {"dock": 2, "yard": 1}
    assert (refused["reason"], refused["ranges"]) == ("refused", [[5, 5]])
    assert [row.seq for row in reader.after(0, 100)] == [1, 4, 6, 8, 9, 10]
    assert spool.waiting == 6
    assert spool.bytes_waiting == sum(len(row.body) for row in reader.after(0, 100))
    assert reader.counts() == {"dock": Counts(6, set_aside=3), "yard": Counts(2, set_aside=1)}


def test_a_gap_record_that_is_set_aside_makes_no_other(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 1)
    spool.set_aside([1], "too_large")
    assert spool.flush(10)
    spool.set_aside([2], "too_large")
    assert spool.flush(10)
    assert (spool.waiting, spool.bytes_waiting, reader.highest) == (0, 0, 2)


def test_a_gap_with_many_holes_is_told_in_records_of_a_bounded_size(spool: Spool, reader: SpoolReader) -> None:
    fill(spool, 500)
    spool.set_aside(range(1, 500, 2), "refused")
    assert spool.flush(10)
    told = gaps(reader)
    assert [len(one["ranges"]) for one in told] == [100, 100, 50]
    assert [one["counts"] for one in told] == [{"dock": 100}, {"dock": 100}, {"dock": 50}]
    assert [pair[0] for one in told for pair in one["ranges"]] == list(range(1, 500, 2))


def test_what_is_set_aside_while_the_disk_refuses_is_set_aside_later(config: SpoolConfig) -> None:
    spool = Spool(config, ManualClock())
    fill(spool, 2)
    other = sqlite3.connect(database_file(Path(config.path)), isolation_level=None)
    other.execute("PRAGMA busy_timeout = 0")
    spool._db.execute("PRAGMA busy_timeout = 0")
    other.execute("BEGIN IMMEDIATE")
    spool.set_aside([1], "refused")
    assert not spool.flush(0.2)
    other.execute("ROLLBACK")
    other.close()
    assert spool.flush(10)
    reader = SpoolReader(Path(config.path))
    assert [(row.seq, row.kind) for row in reader.after(0, 10)] == [(2, "result"), (3, "gap")]
    reader.close()
    spool.close()


def test_what_is_let_go_of_is_named_until_it_is_off_the_disk(config: SpoolConfig) -> None:
    spool = Spool(config, ManualClock())
    fill(spool, 3)
    other = sqlite3.connect(database_file(Path(config.path)), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    spool.acknowledge([1])
    spool.set_aside([2], "refused")
    assert not spool.flush(0.05)
    assert spool.released == {1, 2}
    other.execute("ROLLBACK")
    other.close()
    assert spool.flush(10)
    assert spool.released == frozenset()
    spool.close()
