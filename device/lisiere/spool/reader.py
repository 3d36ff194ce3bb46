"""Reading a spool: what waits, in order, and where the results went."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import Permanent, Retryable
from lisiere.values import MessageKind

FILE_NAME = "spool.db"
KINDS: tuple[MessageKind, ...] = ("result", "event", "score")
SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One accepted message that waits."""

    seq: int
    kind: str
    pipeline: str
    accepted_ts: float
    body: bytes
    expires_ts: float | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the results of one pipeline went, over the whole life of the spool.

    `set_aside` were too large or refused for ever; `damaged` were lost with a file that was damaged. What was accepted
    and is none of these waits. `sent` counts what was handed to a transport, twice what was sent twice; after a kill it
    is as many too low as were under way.
    """

    accepted: int = 0
    acknowledged: int = 0
    evicted: int = 0
    expired: int = 0
    set_aside: int = 0
    damaged: int = 0
    sent: int = 0

    @property
    def gone(self) -> int:
        """How many do not wait any more."""
        return self.acknowledged + self.evicted + self.expired + self.set_aside + self.damaged


def database_file(folder: Path) -> Path:
    """Return the path of the database in a spool's folder."""
    return folder / FILE_NAME


class SpoolReader:
    """The reading end, for one thread: what waits, in order, and the counts. Sees only what is committed.

    Args:
        folder: the spool's folder.
        damaged: called with the seqs of rows that are not what was written; they are left out of what is returned.

    Raises:
        Permanent: there is no readable spool.
    """

    def __init__(self, folder: Path, damaged: Callable[[list[int]], None] = lambda _seqs: None) -> None:
        file = database_file(folder)
        try:
            db = connect_to_read(file)
            try:
                check_version(db, file)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise Permanent(f"There is no readable spool at {file}: {error}.") from error
        self._db = db
        self.folder = folder
        self._file = file
        self._identity = file.stat().st_ino
        self._damaged = damaged

    @property
    def epoch(self) -> str:
        """The random id made with the spool."""
        found: str = self._db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0]
        return found

    @property
    def highest(self) -> int:
        """The highest seq ever given."""
        return highest(self._db)

    def after(self, seq: int, limit: int, up_to: int | None = None, without: Collection[str] = ()) -> list[Row]:
        """Return at most `limit` rows with a seq above `seq` (and at most `up_to`), in order.

        Rows of the pipelines in `without` are left out; gap records are those of the pipeline ''. Fewer than `limit`
        means that there are no more.

        Raises:
            Retryable: the file was damaged and another has taken its place; open a new reader.
        """
        try:
            replaced = self._file.stat().st_ino != self._identity
        except OSError:
            replaced = True
        if replaced:
            raise Retryable("The spool was damaged and replaced; it is read anew.")
        marks = ", ".join("?" * len(without))
        where = f"seq > ? AND seq <= ? AND pipeline NOT IN ({marks})"
        rows: list[Row] = []
        damaged: list[int] = []
        found = self._db.execute(
            f"SELECT seq, kind, pipeline, accepted_ts, body, expires_ts, crc FROM queue WHERE {where} ORDER BY seq",  # noqa: S608
            (seq, up_to if up_to is not None else 2**62, *without),
        )
        try:
            for *values, crc in found:
                row = Row(*values)
                if is_whole(row, crc):
                    rows.append(row)
                    if len(rows) >= limit:
                        break
                else:
                    damaged.append(row.seq)
        finally:
            found.close()  # or the reader would see this moment for ever
        if damaged:
            self._damaged(damaged)
        return rows

    def every(self) -> Iterator[tuple[Row, int, float | None, bool]]:
        """Yield every row in order with its class, when it expires, and whether it is what was written."""
        found = self._db.execute(
            "SELECT seq, kind, pipeline, accepted_ts, body, class, expires_ts, crc FROM queue ORDER BY seq"
        )
        for *values, rank, expires_ts, crc in found:
            row = Row(*values)
            yield row, rank, expires_ts, is_whole(row, crc)

    def counts(self) -> dict[str, Counts]:
        """Return where the results went, by pipeline."""
        rows = self._db.execute(
            "SELECT pipeline, accepted, acknowledged, evicted, expired, set_aside, damaged, sent FROM counts "
            "WHERE pipeline <> '' ORDER BY pipeline"
        )
        return {pipeline: Counts(*numbers) for pipeline, *numbers in rows}

    def waiting(self) -> dict[str, int]:
        """Return how many results wait, by pipeline."""
        return {name: left for name, counts in self.counts().items() if (left := counts.accepted - counts.gone)}

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one moment of the spool for as long as it takes."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def integrity(self) -> list[str]:
        """Return what SQLite finds wrong with the file; nothing where it is whole. Reads the whole file."""
        found = [str(row[0]) for row in self._db.execute("PRAGMA integrity_check(20)")]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def connect_to_read(file: Path) -> sqlite3.Connection:
    """Open a database without the right to change it; for any one thread at a time."""
    uri = f"{file.resolve().as_uri()}?mode=ro"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    db.text_factory = lenient
    return db


def lenient(text: bytes) -> str:
    """Decode a text of the database, so that one flipped bit does not make the whole file unreadable."""
    return text.decode("utf-8", "replace")


def check_version(db: sqlite3.Connection, file: Path) -> None:
    """Raise Permanent unless the database has the version that this release reads."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise Permanent(
            f"{file} has the schema version {version}; this release reads version {SCHEMA_VERSION}. A device that "
            "opens an older one brings it up to date."
        )


def highest(db: sqlite3.Connection) -> int:
    """Return the highest seq ever given."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'queue'").fetchone()
    return int(found[0]) if found else 0


def is_whole(row: Row, crc: object) -> bool:
    """Whether a row is what was written. In a damaged file a column may even hold another type than it was given."""
    if not isinstance(row.body, bytes) or not isinstance(row.pipeline, str):
        return False
    if row.kind not in (KINDS if row.pipeline else ("gap",)):
        return False
    return crc == checksum(row.seq, row.pipeline, row.body, row.kind)


def checksum(seq: int, pipeline: str, body: bytes, kind: str = "result") -> int:
    """Return the CRC-32 that a row has."""
    return zlib.crc32(body, seed(pipeline, kind) ^ (seq & 0xFFFFFFFF))


@functools.lru_cache(maxsize=256)
def seed(pipeline: str, kind: str = "result") -> int:
    """Return where the checksums of a pipeline's rows of one kind start from."""
    # No pipeline has a slash in its name. Of results and gap records the name alone, as it was before other kinds.
    named = f"{kind}/{pipeline}" if kind in ("event", "score") else pipeline
    return zlib.crc32(named.encode("utf-8", "surrogatepass"))
