"""The spooler on disk: a SQLite database of the messages that are not delivered.

Source: the component aws.greengrass.DiskSpooler. A damaged database is deleted, and what it held is lost, as there.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

_log = logging.getLogger(__name__)
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS spooler"
    " (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT, payload BLOB, qos INTEGER, retain INTEGER)"
)


class SpoolFile:
    """Rows of (id, topic, payload, qos, retain), in the order in which they came. For one thread.

    What cannot be written is said in the log, and stays in memory alone.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db, self.rows = _open(file)
        except sqlite3.DatabaseError as error:
            _log.error(
                "IoT Core: the spooler %s is damaged (%s). It is deleted, and what it held is lost.", file, error
            )
            for part in (file, *file.parent.glob(f"{file.name}-*")):
                part.unlink(missing_ok=True)
            self._db, self.rows = _open(file)

    def add(self, topic: str, payload: bytes, qos: int, retain: bool) -> int | None:
        """Write a message and return its id, or None where that fails."""
        try:
            return self._db.execute(
                "INSERT INTO spooler (topic, payload, qos, retain) VALUES (?, ?, ?, ?)", (topic, payload, qos, retain)
            ).lastrowid
        except sqlite3.Error as error:
            _log.warning(
                "IoT Core: the spooler %s cannot be written (%s); the message is in memory.", self._file, error
            )
            return None

    def remove(self, number: int) -> None:
        """Let go of a message; if that fails it will be sent again after a restart."""
        try:
            self._db.execute("DELETE FROM spooler WHERE id = ?", (number,))
        except sqlite3.Error as error:
            _log.warning("IoT Core: the spooler %s cannot be written (%s).", self._file, error)

    def close(self) -> None:
        """Close the database."""
        self._db.close()


def _open(file: Path) -> tuple[sqlite3.Connection, list[tuple[int, str, bytes, int, int]]]:
    database = sqlite3.connect(file, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(_SCHEMA)
        rows = database.execute("SELECT id, topic, payload, qos, retain FROM spooler ORDER BY id").fetchall()
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database, rows
