"""Export and import: a spool as lines of JSON, for carrying what waits from one device's card to another.

The first line says which spool it was, one line a row follows, and the last says how many there were.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from lisiere.clock import TS_MAX, TS_MIN, Clock
from lisiere.config import PIPELINE_NAME
from lisiere.errors import Permanent, Rejected
from lisiere.spool.file import Damaged, Mark, connect, epoch_of, read_mark, set_epoch
from lisiere.spool.ledger import GAP_RANK, RANKS
from lisiere.spool.reader import Row, database_file, highest
from lisiere.spool.salvage import COUNT_COLUMNS, Found, Wreck, insert_counts, insert_row, renamed

_LINE_MAX_BYTES = 1 << 20
_Seq = Annotated[int, Meta(ge=1, lt=1 << 52)]
_Moment = Annotated[float, Meta(ge=TS_MIN, le=TS_MAX)]


class Head(Struct, forbid_unknown_fields=True, kw_only=True):
    """The first line: which spool it was, and where its results went (by pipeline, '' being the gap records)."""

    schema: Literal["lisiere.spool/1"]
    epoch: Annotated[str, Meta(pattern=r"^[0-9a-f]{1,64}$(?!\n)")] | None
    highest_seq: Annotated[int, Meta(ge=0, lt=1 << 52)]
    counts: dict[str, dict[str, Annotated[int, Meta(ge=0)]]] | None


class Line(Struct, forbid_unknown_fields=True, kw_only=True):
    """One row. Times are seconds since 1970; `body` is the envelope without its identity.

    `kind` is there for what is neither a result nor a gap record.
    """

    seq: _Seq
    kind: Literal["event", "score"] | UnsetType = UNSET
    pipeline: str
    importance: Literal["gap", "alarm", "result", "sample", "metric"]
    accepted_ts: _Moment
    expires_ts: float | None
    body: Raw


class Foot(Struct, forbid_unknown_fields=True, kw_only=True):
    """The last line: how many rows there were, and how many could not be read."""

    rows: int
    unread: int


_HEAD = msgspec.json.Decoder(Head)
_LINE = msgspec.json.Decoder(Line)
_FOOT = msgspec.json.Decoder(Foot)


@dataclass(frozen=True, slots=True)
class Transferred:
    """What was exported or imported.

    Attributes:
        epoch: of the spool that was exported.
        rows: how many rows went over.
        unread: how many numbers could not be read, of a damaged file.
        renamed: whether the rows have new numbers, because the spool that took them had given some of its own.
    """

    epoch: str | None
    rows: int
    unread: int
    renamed: bool = False


def export(folder: Path, out: IO[bytes]) -> Transferred:
    """Write what waits in a spool, and of a damaged one what reads; nothing is changed. A device may be running on it.

    Raises:
        Permanent: there is nothing that can be read.
    """
    file = database_file(folder)
    if not file.is_file():
        raise Permanent(f"There is no spool at {file}.")
    try:
        wreck = Wreck(file, read_mark(folder))
    except sqlite3.Error as error:
        raise Permanent(f"Nothing of {file} can be read: {error}.") from error
    names = {rank: name for name, rank in RANKS.items()} | {GAP_RANK: "gap"}
    rows = spoilt = 0
    with contextlib.closing(wreck):
        counts = wreck.counts
        told = {name: dict(zip(COUNT_COLUMNS, each, strict=True)) for name, each in (counts or {}).items()}
        _write(
            out,
            Head(
                schema="lisiere.spool/1",
                epoch=wreck.epoch,
                highest_seq=wreck.highest,
                counts=told if counts is not None else None,
            ),
        )
        for found in wreck.rows():
            row = found.row
            if not _is_object(row.body):
                spoilt += 1
                continue
            line = Line(
                seq=row.seq,
                kind=row.kind if row.kind in ("event", "score") else UNSET,  # type: ignore[arg-type]
                pipeline=row.pipeline,
                importance=names[found.rank],  # type: ignore[arg-type]
                accepted_ts=row.accepted_ts,
                expires_ts=found.expires_ts,
                body=Raw(row.body),
            )
            _write(out, line)
            rows += 1
        unread = spoilt + sum(high - low + 1 for low, high in wreck.unread)
        _write(out, Foot(rows=rows, unread=unread))
        return Transferred(wreck.epoch, rows, unread)


def import_lines(lines: Iterable[bytes], folder: Path, clock: Clock) -> Transferred:
    """Take what was exported into a spool that no device is running on.

    A spool that is new becomes the one that was exported: same epoch, same numbers, same counts, so every id stays what
    it was. One that has given numbers of its own gives new ones, and each row says by `formerly` what it was called.
    It is all or nothing, and the same rows are taken once however often they are imported.

    Args:
        lines: what `export` wrote.
        folder: of the spool to import into; made where there is none.
        clock: for checking within a bounded time.

    Raises:
        Rejected: it is not what `export` writes, or it is cut short. Nothing was taken.
        Permanent: the spool cannot be used, or it is the very one that was exported.
    """
    rows = _parsed(lines)
    head = next(rows)
    assert isinstance(head, Head)  # noqa: S101 - _parsed looked
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            contextlib.closing(Mark(folder)) as mark,
            contextlib.closing(connect(database_file(folder), clock, mark.read())) as db,
        ):
            own, fresh = epoch_of(db), highest(db) == 0
            if not fresh and head.epoch == own:
                raise Permanent(
                    f"The spool in {folder} is the very one that was exported: it has these rows, or had them."
                )
            db.execute("BEGIN IMMEDIATE")
            taken = _adopt(db, head.epoch, head, rows) if fresh and head.epoch else _append(db, head, rows)
            db.execute("COMMIT")  # an error before it leaves everything as it was
            mark.write(epoch_of(db), highest(db))
            return taken
    except Damaged as error:
        raise Permanent(
            f"The spool in {folder} is damaged ({error}). Start the device on it once, which saves what can be saved, "
            "or import into a new folder."
        ) from error
    except (OSError, sqlite3.Error) as error:
        raise Permanent(f"The spool in {folder} cannot be written to: {error}. Nothing was taken.") from error


def _adopt(db: sqlite3.Connection, epoch: str, head: Head, rows: Iterator[Head | Line | Foot]) -> Transferred:
    """Become the spool that was exported."""
    set_epoch(db, epoch)
    taken: Counter[str] = Counter()
    unread = 0
    for line in rows:
        if isinstance(line, Line):
            if line.seq > head.highest_seq:
                raise Rejected(f"The row {line.seq} is above the highest number that was given, {head.highest_seq}.")
            insert_row(db, line.seq, _found(line, bytes(line.body)))
            taken[line.pipeline] += 1
        elif isinstance(line, Foot):
            unread = line.unread
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'queue'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('queue', ?)", (head.highest_seq,))
    told = head.counts or {}
    counts = {name: tuple(each.get(column, 0) for column in COUNT_COLUMNS) for name, each in told.items()}
    insert_counts(db, counts if head.counts is not None else None, taken)
    return Transferred(head.epoch, taken.total(), unread)


def _append(db: sqlite3.Connection, head: Head, rows: Iterator[Head | Line | Foot]) -> Transferred:
    """Take rows in under new numbers; those that were taken before are left out."""
    key = f"imported:{head.epoch or 'unknown'}"
    found = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    before = int(found[0]) if found and head.epoch else 0
    seq, count, unread = highest(db), 0, 0
    for line in rows:
        if isinstance(line, Line) and line.seq > before:
            seq, count = seq + 1, count + 1
            body = renamed(bytes(line.body), head.epoch or "", line.seq)
            insert_row(db, seq, _found(line, body))
            db.execute(
                "INSERT INTO counts (pipeline, accepted, bytes) VALUES (?, 1, ?) ON CONFLICT (pipeline) DO UPDATE "
                "SET accepted = accepted + 1, bytes = bytes + excluded.bytes",
                (line.pipeline, len(body)),
            )
        elif isinstance(line, Foot):
            unread = line.unread
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(max(before, head.highest_seq))))
    return Transferred(head.epoch, count, unread, renamed=True)


def _found(line: Line, body: bytes) -> Found:
    gap = line.importance == "gap"
    rank = GAP_RANK if line.importance == "gap" else RANKS[line.importance]
    return Found(
        Row(line.seq, "gap" if gap else line.kind or "result", line.pipeline, line.accepted_ts, body),
        rank,
        line.expires_ts,
    )


def _parsed(lines: Iterable[bytes]) -> Iterator[Head | Line | Foot]:
    """Yield the head, every row and the foot, each checked.

    Raises:
        Rejected: a line is not what `export` writes, or the last one is missing.
    """
    number = rows = seq = 0
    foot: Foot | None = None
    for number, text in enumerate(lines, 1):
        if len(text) > _LINE_MAX_BYTES:
            raise Rejected(f"Line {number} of the export has more than {_LINE_MAX_BYTES} bytes.")
        if foot is not None:
            raise Rejected(f"Line {number} of the export comes after the last one.")
        try:
            if number == 1:
                yield _HEAD.decode(text)
                continue
            if text.startswith(b'{"rows":'):
                foot = _FOOT.decode(text)
                continue
            line = _LINE.decode(text)
        except msgspec.DecodeError as error:
            raise Rejected(f"Line {number} is not what `lisiere spool export` writes: {error}.") from error
        gap = line.importance == "gap"
        named = gap if line.pipeline == "" else not gap and re.fullmatch(PIPELINE_NAME, line.pipeline) is not None
        if line.seq <= seq or not named or not _is_object(bytes(line.body)):
            raise Rejected(f"Line {number} is not what `lisiere spool export` writes: no row can be like this.")
        seq, rows = line.seq, rows + 1
        yield line
    if foot is None or foot.rows != rows:
        raise Rejected(f"The export is cut short after line {number}. Export it again.")
    yield foot


def _is_object(body: bytes) -> bool:
    """Whether a body can stand in an envelope and on a line of its own."""
    try:
        return b"\n" not in body and bool(msgspec.json.decode(body, type=dict[str, Raw])) and body[:1] == b"{"
    except msgspec.DecodeError:
        return False


def _write(out: IO[bytes], line: Head | Line | Foot) -> None:
    out.write(msgspec.json.encode(line) + b"\n")
