"""Reading a spool: what waits, in order, and where the results went."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import Permanent

FILE_NAME = "spool.db"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One accepted message that waits."""

    seq: int
    kind: str
    pipeline: str
    accepted_ts: float
    body: bytes


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the results of one pipeline went, over the whole life of the spool."""

    accepted: int = 0
    acknowledged: int = 0
    evicted: int = 0


def database_file(folder: Path) -> Path:
    """Return the path of the database in a spool's folder."""
    return folder / FILE_NAME


class SpoolReader:
    """The reading end, for one thread: what waits, in order, and the counts. Sees only what is committed.

    Args:
        folder: the spool's folder.

    Raises:
        Permanent: there is no readable spool.
    """

    def __init__(self, folder: Path) -> None:
        file = database_file(folder)
        try:
            db = sqlite3.connect(
                f"{file.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
            )
            try:
                check_version(db, file)
            except BaseException:
                db.close()
                raise
        except sqlite3.Error as error:
            raise Permanent(f"There is no readable spool at {file}: {error}.") from error
        self._db = db

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

        Rows of the pipelines in `without` are left out; gap records are those of the pipeline ''.
        """
        marks = ", ".join("?" * len(without))
        where = f"seq > ? AND seq <= ? AND pipeline NOT IN ({marks})"
        found = self._db.execute(
            f"SELECT seq, kind, pipeline, accepted_ts, body FROM queue WHERE {where} ORDER BY seq LIMIT ?",  # noqa: S608
            (seq, up_to if up_to is not None else 2**62, *without, limit),
        )
        return [Row(*row) for row in found]

    def counts(self) -> dict[str, Counts]:
        """Return where the results went, by pipeline."""
        rows = self._db.execute("SELECT pipeline, accepted, acknowledged, evicted FROM counts ORDER BY pipeline")
        return {pipeline: Counts(*numbers) for pipeline, *numbers in rows}

    def waiting(self) -> dict[str, int]:
        """Return how many results wait, by pipeline."""
        return dict(
            self._db.execute("SELECT pipeline, COUNT(*) FROM queue WHERE kind = 'result' GROUP BY pipeline").fetchall()
        )

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def check_version(db: sqlite3.Connection, file: Path) -> None:
    """Raise Permanent unless the database has the version that this release reads."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise Permanent(f"{file} has the schema version {version}; this release reads version {SCHEMA_VERSION}.")


def highest(db: sqlite3.Connection) -> int:
    """Return the highest seq ever given."""
    found = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'queue'").fetchone()
    return int(found[0]) if found else 0
