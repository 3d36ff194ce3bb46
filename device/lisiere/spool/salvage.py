"""Salvage: what reads of a damaged database goes on in a new one, and what does not is counted.

The new file has an epoch of its own. Its numbers go on above all that were given, so that an acknowledgement that comes
late for an old number cannot let go of a new row; and each row says what it was called before.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lisiere.clock import TS_MAX, TS_MIN, Clock
from lisiere.spool.file import Damaged, epoch_of, finish_replacing, migrate, put_in_place, quarantine
from lisiere.spool.gaps import Damage, Range, damage_body
from lisiere.spool.ledger import GAP_RANK, RANKS
from lisiere.spool.reader import Row, checksum, connect_to_read, database_file, is_whole

_STEP_AFTER = 10_000  # rows that fail one after the other, before the search goes on in longer and longer steps
COUNT_COLUMNS = ("accepted", "acknowledged", "evicted", "expired", "set_aside", "damaged", "sent")
_GONE = slice(1, 6)  # of these
_COUNTS = ", ".join(COUNT_COLUMNS)
_COUNT = f"INSERT INTO counts (pipeline, {_COUNTS}, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_FORMERLY = re.compile(rb'"formerly":"[^"]*"}$')
_FORMERLY_BYTES = 100
_OLD_COLUMNS = "seq, kind, pipeline, accepted_ts, body"
_COLUMNS = f"{_OLD_COLUMNS}, class, expires_ts, crc"


@dataclass(frozen=True, slots=True)
class Found:
    """A row that was read of a database, with its class and when it expires."""

    row: Row
    rank: int
    expires_ts: float | None


class Wreck:
    """A database that may be damaged, for reading what can be read of it.

    Args:
        file: the database; its log is read as well, and neither is changed.
        mark: the epoch and highest seq that stand beside it.
    """

    def __init__(self, file: Path, mark: tuple[str, int] | None) -> None:
        self._db = connect_to_read(file)
        marked_epoch, marked = mark or (None, 0)
        self.epoch: str | None = marked_epoch
        with contextlib.suppress(sqlite3.Error, Damaged):
            self.epoch = epoch_of(self._db)
        known = [self._number("SELECT seq FROM sqlite_sequence WHERE name = 'queue'")]
        known.append(self._number("SELECT MAX(seq) FROM queue"))
        if self.epoch != marked_epoch:
            marked = 0
        self.highest = max(*known, marked)
        # Numbers that had been given and of which there is no trace; where nothing is known, rows are looked for.
        self.cut = self.highest - max(known) if max(known) else 0
        self.unread: list[Range] = []
        self.counts: dict[str, tuple[int, ...]] | None = self._read_counts()

    def rows(self) -> Iterator[Found]:
        """Yield every row that reads and is what was written, in order; `unread` then says which do not."""
        columns = _COLUMNS
        try:
            self._db.execute(f"SELECT {_COLUMNS} FROM queue LIMIT 0")  # noqa: S608
        except sqlite3.Error:
            columns = _OLD_COLUMNS
        scan = f"SELECT {columns} FROM queue WHERE seq >= ? AND seq <= ? ORDER BY seq"  # noqa: S608
        at, failed, end = 0, 0, self.highest - self.cut
        while at < end:
            try:
                for found in self._db.execute(scan, (at + 1, end)):
                    if found[0] <= at:
                        raise sqlite3.DatabaseError("Pages point at each other.")
                    at, failed = found[0], 0
                    yield from self._whole(found)
                break
            except sqlite3.Error:
                # The row after `at` on its own: the module reads one ahead, and may have lost a good one with a bad.
                step = 1
                try:
                    for found in self._db.execute(scan, (at + 1, at + 1)).fetchall():
                        yield from self._whole(found)
                except sqlite3.Error:
                    failed += 1
                    step = 1 if failed <= _STEP_AFTER else 1 << min(40, failed - _STEP_AFTER)
                    self._skip(at + 1, min(at + step, end))
                at += step
        if self.cut:
            self._skip(end + 1, self.highest)

    def _whole(self, columns: tuple[Any, ...]) -> Iterator[Found]:
        found = _found(columns)
        if found is not None:
            yield found
        else:
            self._skip(columns[0], columns[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _number(self, query: str) -> int:
        """Return a seq, or 0 where it cannot be read or a flipped bit has made it absurd (JSON has 53 bits)."""
        try:
            found = self._db.execute(query).fetchone()
        except sqlite3.Error:
            return 0
        return found[0] if found and isinstance(found[0], int) and 0 < found[0] < 1 << 52 else 0

    def _skip(self, low: int, high: int) -> None:
        if self.unread and self.unread[-1][1] == low - 1:
            self.unread[-1] = (self.unread[-1][0], high)
        else:
            self.unread.append((low, high))

    def _read_counts(self) -> dict[str, tuple[int, ...]] | None:
        """Return the counts by pipeline, or None where they cannot be believed."""
        try:
            rows = self._db.execute(f"SELECT pipeline, {_COUNTS} FROM counts").fetchall()  # noqa: S608
        except sqlite3.Error:
            return None
        for pipeline, *numbers in rows:
            good = isinstance(pipeline, str) and all(isinstance(number, int) and number >= 0 for number in numbers)
            if not good or numbers[0] < sum(numbers[_GONE]):
                return None
        return {pipeline: tuple(numbers) for pipeline, *numbers in rows}


def salvage(folder: Path, mark: tuple[str, int] | None, why: str, clock: Clock) -> str:
    """Replace the damaged database of a folder by a new one with what reads of it; return a sentence that says so.

    Args:
        folder: the spool's folder.
        mark: the epoch and highest seq that stand beside the database.
        why: what is wrong with it.
        clock: for the stamps.

    Raises:
        sqlite3.Error, OSError: the new file cannot be written. The old one is still in place.
    """
    replacement = replacement_file(folder)
    finish_replacing(folder, replacement)
    new = sqlite3.connect(replacement, isolation_level=None)
    try:
        new.execute("PRAGMA synchronous = FULL")
        migrate(new, replacement)
        new.execute("BEGIN")
        damage = _fill(new, database_file(folder), mark, clock.now())
        new.execute("COMMIT")
    finally:
        new.close()
    aside = quarantine(folder, clock)
    put_in_place(folder, replacement)
    lost = "an unknown number" if damage.lost is None else str(damage.lost)
    return (
        f"The spool was damaged ({why}). {damage.salvaged} rows of it were saved and go on in a new file; {lost} were "
        f"lost. The damaged file is kept as {aside}: check the disk."
    )


def replacement_file(folder: Path) -> Path:
    """Return where a new database is made before it takes the place of a damaged one."""
    return folder / "spool.new"


def renamed(body: bytes, epoch: str, seq: int) -> bytes:
    """Return a body that says what its row was called before it came into another spool, if it does not yet."""
    if _FORMERLY.search(body[-_FORMERLY_BYTES:]):
        return body
    comma = b"," if body != b"{}" else b""
    return body[:-1] + comma + b'"formerly":"%s:%d"}' % (epoch.encode("ascii", "replace"), seq)


def _fill(new: sqlite3.Connection, file: Path, mark: tuple[str, int] | None, now: float) -> Damage:
    """Copy what reads into the new database, below a gap record that says what became of the rest."""
    try:
        wreck = Wreck(file, mark)
    except sqlite3.Error:  # nothing reads
        epoch, seq = mark or (None, 0)
        damage = Damage(epoch=epoch, ranges=[(1, seq)] if seq else [], salvaged=0, lost=None)
        insert_row(new, seq + 1, Found(Row(0, "gap", "", now, damage_body(now, seq + 1, damage, {})), GAP_RANK, None))
        _count_record(new, seq + 1)
        return damage
    with contextlib.closing(wreck):
        first = seq = wreck.highest + 1
        saved: Counter[str] = Counter()
        for found in wreck.rows():
            seq += 1
            row = found.row
            insert_row(new, seq, replace(found, row=replace(row, body=renamed(row.body, wreck.epoch or "", row.seq))))
            saved[row.pipeline] += 1
        lost = insert_counts(new, wreck.counts, saved)
        damage = Damage(
            epoch=wreck.epoch,
            ranges=wreck.unread,
            salvaged=saved.total(),
            lost=None if wreck.counts is None else sum(lost.values()) + wreck.cut,
        )
        insert_row(new, first, Found(Row(0, "gap", "", now, damage_body(now, first, damage, lost)), GAP_RANK, None))
    _count_record(new, first)
    return damage


def _count_record(new: sqlite3.Connection, seq: int) -> None:
    new.execute(
        "INSERT INTO counts (pipeline, accepted, bytes) SELECT '', 1, LENGTH(body) FROM queue WHERE seq = ? "
        "ON CONFLICT (pipeline) DO UPDATE SET accepted = accepted + 1, bytes = bytes + excluded.bytes",
        (seq,),
    )


def insert_counts(
    db: sqlite3.Connection, counts: dict[str, tuple[int, ...]] | None, saved: Mapping[str, int]
) -> dict[str, int]:
    """Write the counts of a spool whose rows are in the queue; return how many results are lost, by pipeline.

    Args:
        db: where to; it has no counts yet.
        counts: what the spool had counted, by pipeline in the order of `COUNT_COLUMNS`; None where that is not known.
        saved: how many rows are in the queue, by pipeline.
    """
    lost: dict[str, int] = {}
    for name in sorted({*saved, *(counts or {})}):
        numbers = list((counts or {}).get(name, (saved.get(name, 0), 0, 0, 0, 0, 0, 0)))
        missing = numbers[0] - sum(numbers[_GONE]) - saved.get(name, 0)
        numbers[0] -= min(0, missing)  # the counts are behind the rows
        numbers[5] += max(0, missing)
        if missing > 0 and name:
            lost[name] = missing
        size = db.execute("SELECT COALESCE(SUM(LENGTH(body)), 0) FROM queue WHERE pipeline = ?", (name,)).fetchone()[0]
        db.execute(_COUNT, (name, *numbers, size))
    return lost


def insert_row(new: sqlite3.Connection, seq: int, found: Found) -> None:
    """Add a row to a queue, under a number that may be another than it had."""
    row = found.row
    new.execute(
        "INSERT INTO queue (seq, kind, pipeline, accepted_ts, body, class, expires_ts, crc) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            seq,
            row.kind,
            row.pipeline,
            row.accepted_ts,
            row.body,
            found.rank,
            found.expires_ts,
            checksum(seq, row.pipeline, row.body, row.kind),
        ),
    )


def _checksum_of(row: Row) -> int | None:
    typed = isinstance(row.body, bytes) and isinstance(row.pipeline, str)
    return checksum(row.seq, row.pipeline, row.body, row.kind) if typed else None


def _found(columns: tuple[Any, ...]) -> Found | None:
    """Return a row that was read, or None when it is not what was written."""
    seq, kind, pipeline, accepted_ts, body, *rest = columns
    row = Row(seq, kind, pipeline, accepted_ts, body)
    rank, expires_ts, crc = rest or (None, None, _checksum_of(row))  # version 1 had none
    if not is_whole(row, crc):
        return None
    if not isinstance(accepted_ts, float) or not TS_MIN <= accepted_ts <= TS_MAX:
        row = replace(row, accepted_ts=0.0)
    known = rank if isinstance(rank, int) and rank in RANKS.values() else RANKS["result"]
    return Found(row, GAP_RANK if kind == "gap" else known, expires_ts if isinstance(expires_ts, float) else None)
