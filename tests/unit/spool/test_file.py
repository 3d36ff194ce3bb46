"""The spool's file: brought up to date, checked, and replaced when it is damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lisiere.clock import ManualClock
from lisiere.config import SpoolConfig
from lisiere.errors import Permanent, Retryable
from lisiere.spool import Counts, GapBody, Row, Spool, SpoolReader, database_file
from lisiere.spool.file import Damaged, connect, read_mark
from lisiere.spool.reader import SCHEMA_VERSION
from lisiere.spool.salvage import replacement_file
from lisiere.spool.verify import verify

FIXTURES = Path(__file__).parent / "fixtures"
BODY = b'{"pipeline":"dock","x":"%s"}' % (b"y" * 900)


def opened(folder: Path) -> Spool:
    return Spool(SpoolConfig(path=str(folder), linger_ms=0), ManualClock())


def filled(folder: Path, count: int = 200, delivered: int = 40) -> str:
    """Make a spool of `count` results of which the first were delivered; return its epoch."""
    spool = opened(folder)
    for _ in range(count):
        spool.append("dock", BODY)
    assert spool.flush(10)
    spool.acknowledge(range(1, delivered + 1), {"dock": delivered})
    assert spool.close()
    return spool.epoch


def rows_of(folder: Path) -> tuple[list[Row], list[GapBody], Counts]:
    reader = SpoolReader(folder)
    rows = reader.after(0, 10_000)
    counts = reader.counts().get("dock", Counts())
    reader.close()
    gaps = [msgspec.json.decode(row.body, type=GapBody) for row in rows if row.kind == "gap"]
    return [row for row in rows if row.kind == "result"], gaps, counts


def overwrite(file: Path, at: int, data: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        handle.write(data)


def page_of(file: Path, text: bytes) -> int:
    """Return where the page begins that holds the middle one of the places where `text` stands."""
    content = file.read_bytes()
    places = []
    at = content.find(text)
    while at >= 0:
        places.append(at)
        at = content.find(text, at + 1)
    return places[len(places) // 2] // 4096 * 4096


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "spool_v1.db", database_file(tmp_path))
    with pytest.raises(Permanent, match="schema version 1"):
        SpoolReader(tmp_path)
    spool = opened(tmp_path)
    assert (spool.epoch, spool.committed, spool.waiting, spool.damage) == ("a31fbd61be67ae6e", 9, 7, None)
    spool.append("dock", BODY)
    assert spool.close()
    rows, gaps, counts = rows_of(tmp_path)
    assert [row.seq for row in rows] == [3, 4, 5, 6, 7, 8, 10]
    assert [(gap.reason, gap.ranges, gap.exact, gap.summary) for gap in gaps] == [("too_large", [(2, 2)], True, {})]
    assert counts == Counts(7, 1, 1)
    assert all(check.holds for check in verify(tmp_path))


def test_a_new_database_has_the_newest_version(tmp_path: Path) -> None:
    opened(tmp_path).close()
    db = sqlite3.connect(database_file(tmp_path))
    assert db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    assert db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0] == str(SCHEMA_VERSION)
    db.close()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(Permanent, match="in use"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_large_file_is_checked_for_a_bounded_time(tmp_path: Path) -> None:
    filled(tmp_path)

    class Racing(ManualClock):
        def monotonic(self) -> float:
            self.advance(1.5)
            return super().monotonic()

    file = database_file(tmp_path)
    overwrite(file, page_of(file, BODY), os.urandom(100))
    with pytest.raises(Damaged):
        connect(file, ManualClock(), None).close()
    db = sqlite3.connect(file)
    db.execute("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 1) SELECT x FROM n")
    db.close()
    spool = Spool(SpoolConfig(path=str(tmp_path / "whole")), Racing())
    assert spool.damage is None
    spool.close()


def test_what_is_no_database_is_set_aside_and_told(tmp_path: Path) -> None:
    database_file(tmp_path).write_bytes(os.urandom(4096))
    spool = opened(tmp_path)
    assert spool.damage is not None
    assert "damaged-2023" in spool.damage
    spool.close()
    rows, (gap,), _ = rows_of(tmp_path)
    assert rows == []
    assert gap.reason == "spool_damaged"
    assert isinstance(gap.damage, msgspec.Struct)
    assert (gap.damage.epoch, gap.damage.salvaged, gap.damage.lost) == (None, 0, None)


def test_a_destroyed_header_loses_what_was_known_of_by_the_mark(tmp_path: Path) -> None:
    epoch = filled(tmp_path)
    overwrite(database_file(tmp_path), 0, bytes(4096))
    spool = opened(tmp_path)
    assert spool.epoch != epoch
    spool.close()
    _, (gap,), _ = rows_of(tmp_path)
    assert isinstance(gap.damage, msgspec.Struct)
    assert (gap.damage.epoch, gap.damage.ranges) == (epoch, [(1, 200)])


def test_a_destroyed_page_loses_its_rows_alone_and_they_are_counted(tmp_path: Path) -> None:
    epoch = filled(tmp_path)
    file = database_file(tmp_path)
    overwrite(file, page_of(file, BODY), bytes(4096))
    spool = opened(tmp_path)
    assert spool.damage is not None
    assert spool.epoch != epoch
    spool.append("dock", BODY)
    assert spool.close()
    rows, (gap,), counts = rows_of(tmp_path)
    assert isinstance(gap.damage, msgspec.Struct)
    lost = gap.damage.lost
    assert lost is not None
    assert 0 < lost <= 5
    assert gap.damage.epoch == epoch
    assert gap.damage.salvaged == 160 - lost
    assert gap.counts == {"dock": lost}
    assert counts == Counts(201, 40, damaged=lost, sent=40)
    assert len(rows) == counts.accepted - counts.gone
    # Numbers go on above all that were given, the record first; every row says what it was called, in the old order.
    assert [row.seq for row in rows] == list(range(202, 202 + len(rows)))
    formerly = [msgspec.json.decode(row.body).get("formerly") for row in rows[:-1]]
    old = [int(name.removeprefix(f"{epoch}:")) for name in formerly]
    named = {seq for low, high in gap.damage.ranges for seq in range(low, high + 1)}
    assert len(named) == lost
    assert sorted([*old, *named]) == list(range(41, 201))
    assert old == sorted(old)
    assert all(check.holds for check in verify(tmp_path))


def test_a_flipped_bit_in_a_body_is_not_delivered(tmp_path: Path) -> None:
    filled(tmp_path, 20, 0)
    file = database_file(tmp_path)
    content = file.read_bytes()
    at = content.find(b"yyyy")
    overwrite(file, at, b"Y")
    (check,) = [check for check in verify(tmp_path) if not check.holds]
    assert check.name == "rows"
    spool = opened(tmp_path)  # SQLite sees nothing wrong with it
    reader = SpoolReader(tmp_path, lambda seqs: spool.set_aside(seqs, "spool_damaged"))
    assert len(reader.after(0, 100)) == 19
    assert len(reader.after(0, 5)) == 5
    assert spool.flush(10)
    rows = reader.after(0, 100)
    gap = msgspec.json.decode(rows[-1].body, type=GapBody)
    assert (gap.reason, gap.counts) == ("spool_damaged", {"dock": 1})
    assert reader.counts()["dock"] == Counts(20, damaged=1)
    reader.close()
    spool.close()


def test_a_log_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    spool = opened(tmp_path / "live")
    for _ in range(50):
        spool.append("dock", BODY)
        assert spool.flush(10)
    shutil.copytree(tmp_path / "live", tmp_path / "cut")
    spool.close()
    log = tmp_path / "cut" / "spool.db-wal"
    with log.open("r+b") as handle:
        handle.truncate(log.stat().st_size * 2 // 3)
    again = opened(tmp_path / "cut")
    assert again.damage is not None
    assert again.epoch != spool.epoch
    assert again.committed > 50, "a number that had been given would be given again"
    again.close()
    rows, (gap,), _ = rows_of(tmp_path / "cut")
    assert isinstance(gap.damage, msgspec.Struct)
    ((low, high),) = gap.damage.ranges
    assert (high, gap.damage.lost, gap.damage.salvaged) == (50, 51 - low, low - 1)
    assert len(rows) == low - 1
    assert 0 < low - 1 < 50


def test_an_old_copy_that_is_put_back_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path, 10, 0)
    shutil.copy(database_file(tmp_path), tmp_path / "backup")
    spool = opened(tmp_path)
    spool.append("dock", BODY)
    spool.close()
    shutil.copy(tmp_path / "backup", database_file(tmp_path))
    again = opened(tmp_path)
    assert again.damage is not None
    assert again.epoch != spool.epoch
    again.close()


def test_damage_that_shows_while_running_is_mended_at_once(tmp_path: Path) -> None:
    filled(tmp_path)
    spool = opened(tmp_path)
    reader = SpoolReader(tmp_path)
    epoch = spool.epoch
    # The free pages of the file, which nothing looks at before it needs one; the cache must not know them.
    spool._db.execute("PRAGMA cache_size = 0")
    file = database_file(tmp_path)
    for at in range(4096, file.stat().st_size, 4096):
        overwrite(file, at, bytes(4096))
    spool.append("dock", BODY)
    assert spool.flush(10)
    assert spool.epoch != epoch
    assert spool.damage is not None
    assert spool.failure is None
    with pytest.raises(Retryable, match="replaced"):
        reader.after(0, 10)
    reader.close()
    assert spool.close()
    rows, gaps, counts = rows_of(tmp_path)
    assert rows[-1].body == BODY
    assert [gap.reason for gap in gaps] == ["spool_damaged"]
    assert len(rows) == counts.accepted - counts.gone


def test_few_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        database_file(tmp_path).write_bytes(os.urandom(4096))
        (tmp_path / "spool.db-wal").write_bytes(os.urandom(100))
        opened(tmp_path).close()
    kept = sorted(file.name for file in tmp_path.glob("*damaged*"))
    assert len([name for name in kept if not name.endswith("-wal")]) == 2
    assert len(kept) <= 4
    assert not (tmp_path / "spool.db-wal").exists()


def before_the_move(folder: Path) -> None:
    replacement_file(folder).write_bytes(b"in part")


def between_the_moves(folder: Path) -> None:
    shutil.copy(database_file(folder), replacement_file(folder))
    database_file(folder).rename(folder / "spool.db.damaged-1")
    (folder / "spool.db-wal").write_bytes(b"of the damaged one")


@pytest.mark.parametrize("interrupt", [before_the_move, between_the_moves])
def test_a_replacement_that_was_interrupted_is_finished(interrupt: Callable[[Path], None], tmp_path: Path) -> None:
    epoch = filled(tmp_path, 10, 0)
    interrupt(tmp_path)
    spool = opened(tmp_path)
    assert (spool.epoch, spool.waiting, spool.damage) == (epoch, 10, None)
    spool.close()
    assert not replacement_file(tmp_path).exists()
    mark = read_mark(tmp_path)
    assert mark == (epoch, 10)


@pytest.mark.parametrize("text", [b"", b"\xff\xff 1", b"ab", b"ab x", b"zz 5", b"ab 99999999999999999999"])
def test_a_mark_that_says_nothing_is_no_mark(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "spool.mark").write_bytes(text)
    assert read_mark(tmp_path) is None
    opened(tmp_path).close()
