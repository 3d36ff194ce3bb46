"""Verifying a spool: whether its file is what was written and its counts add up. It changes nothing."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lisiere.errors import Permanent
from lisiere.spool.file import read_mark
from lisiere.spool.reader import SpoolReader, database_file


@dataclass(frozen=True, slots=True)
class Check:
    """What was checked, whether it holds, and what was found."""

    name: str
    holds: bool
    sentence: str


def verify(folder: Path) -> list[Check]:
    """Check a spool whole; a device may be running on it.

    Args:
        folder: the spool's folder.

    Raises:
        Permanent: there is no spool, or another version made it.
    """
    file = database_file(folder)
    if not file.is_file():
        raise Permanent(f"There is no spool at {file}.")
    try:
        reader = SpoolReader(folder)
    except Permanent as error:
        if not isinstance(error.__cause__, sqlite3.DatabaseError):
            raise
        return [Check("file", False, str(error))]
    checks: list[Callable[[SpoolReader], Check]] = [_file, _rows, _mark]
    done = []
    try:
        for check in checks:
            try:
                done.append(check(reader))
            except sqlite3.Error as error:
                done.append(Check(check.__name__[1:], False, f"It cannot be read: {error}."))
    finally:
        reader.close()
    return done


def _file(reader: SpoolReader) -> Check:
    found = reader.integrity()
    return Check("file", not found, "SQLite finds " + ("nothing wrong." if not found else "; ".join(found)))


def _rows(reader: SpoolReader) -> Check:
    """Every row is what was written, and there are as many as the counts say."""
    with reader.snapshot():
        rows: Counter[str] = Counter()
        damaged = []
        for row, _rank, _expires, whole in reader.every():
            rows[row.pipeline] += 1
            if not whole:
                damaged.append(row.seq)
        waiting = reader.waiting()
    if damaged:
        some = ", ".join(map(str, damaged[:5])) + (" …" if len(damaged) > 5 else "")
        return Check("rows", False, f"{len(damaged)} of {rows.total()} rows are not what was written: {some}.")
    for name in sorted({*rows, *waiting} - {""}):
        told = waiting.get(name, 0)
        if rows[name] != told:
            return Check("rows", False, f"{rows[name]} rows of {name} wait where its counts say {told}.")
    return Check("rows", True, f"All {rows.total()} rows are what was written, and the counts add up.")


def _mark(reader: SpoolReader) -> Check:
    """No number that was given has gone without a trace."""
    mark = read_mark(reader.folder)  # before the database, which may go on meanwhile
    highest = reader.highest
    if mark is not None and mark[0] == reader.epoch and mark[1] > highest:
        return Check("numbers", False, f"The file ends at {highest}, though {mark[1]} had been given.")
    return Check("numbers", True, f"The file ends at {highest}, the highest number that was given.")
