"""The spool's file: made, brought up to date, checked, and replaced when it is damaged.

A damaged file is moved beside the new one under a dated name. What reads of it goes on in the new file, which has an
epoch of its own and begins with a gap record that says what became of the old one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import sqlite3
import zlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from lisiere.clock import Clock, rfc3339
from lisiere.errors import Permanent
from lisiere.spool.reader import SCHEMA_VERSION, checksum, database_file, highest, lenient

_CHECK_S = 2.0  # a larger file is checked in part at the start; `lisiere spool verify` checks it whole
_CHECK_STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock
_MARK = "spool.mark"
_PASSING = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)
_MARK_BYTES = 64


class Damaged(Exception):
    """The database is not what was written. Caught in this folder, where it is salvaged."""


class Mark:
    """A file beside the database that says how far it once was, and that one process alone writes to it.

    A write-ahead log that was cut short leaves a database that looks whole and is behind: numbers would be given twice.
    The mark is written after each commit and never synced, so it is never ahead of what is on disk.

    Args:
        folder: the spool's folder.

    Raises:
        OSError: the folder cannot be written to.
        Permanent: another process has the spool open.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / _MARK
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise Permanent(f"The spool in {folder} is in use by another process. Stop that one first.") from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def read(self) -> tuple[str, int] | None:
        """Return the epoch and the highest seq that were written last, or None."""
        return _parsed_mark(os.pread(self._descriptor, _MARK_BYTES, 0))

    def write(self, epoch: str, seq: int) -> None:
        """Say how far the database is."""
        # Without it a database that falls behind is not noticed, which is no reason to stop.
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, f"{epoch} {seq}\n".ljust(_MARK_BYTES).encode("ascii"), 0)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def read_mark(folder: Path) -> tuple[str, int] | None:
    """Return what stands in a folder's mark: the epoch and the highest seq, or None."""
    try:
        with (folder / _MARK).open("rb") as mark:
            return _parsed_mark(mark.read(_MARK_BYTES))
    except OSError:
        return None


def connect(file: Path, clock: Clock, mark: tuple[str, int] | None) -> sqlite3.Connection:
    """Open a database, bring it up to date, and check it for a bounded time; make it where there is none.

    Raises:
        Damaged: it is not what was written.
        Permanent: it was made by a newer version.
        sqlite3.Error: it cannot be opened.
        OSError: there is no file at its path, and none can be made.
    """
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))  # says why not; SQLite does not
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    db.text_factory = lenient
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        migrate(db, file)
        epoch_of(db)
        _check(db, clock)
        _check_mark(db, mark)
    except sqlite3.Error as error:
        db.close()
        if is_damage(error):
            raise Damaged(f"{error}") from error
        raise
    except BaseException:
        db.close()
        raise
    return db


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is damaged, rather than that the disk refuses.

    A refusing disk gives an OperationalError; what is malformed or no database gives the class above it.
    """
    missing = isinstance(error, sqlite3.OperationalError) and str(error).startswith(("no such ", "duplicate column"))
    return missing or type(error) in (sqlite3.DatabaseError, sqlite3.IntegrityError)


def is_passing(error: Exception) -> bool:
    """Whether it is the disk that refuses, as a full or read-only one does, and not a file that is wrong."""
    if isinstance(error, sqlite3.Error):
        return isinstance(error, sqlite3.OperationalError) and not is_damage(error)
    return isinstance(error, OSError) and error.errno in _PASSING


def make_folder(folder: Path) -> None:
    """Make the folder and sync its entry in the one above: SQLite syncs what is in it, and a power cut takes the rest.

    It is synced as well when it is there already, since who made it may have been killed before.
    """
    absent = [above for above in folder.parents if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in (folder, *absent):
        with contextlib.suppress(PermissionError):  # a folder that may be entered and not read: it was there before
            sync_folder(made.parent)


def migrate(db: sqlite3.Connection, file: Path, up_to: int = SCHEMA_VERSION) -> None:
    """Bring a database up to date, from one version to the next; an empty one from none.

    Raises:
        Damaged: it says two versions.
        Permanent: it was made by a newer version.
    """
    version = _version(db)
    db.create_function("checksum", 3, checksum)
    if version > up_to:
        raise Permanent(
            f"{file} has the schema version {version}; this release reads up to version {up_to}. Use the newer release "
            "again, or move the folder away to start a new spool."
        )
    while version < up_to:
        version += 1
        script = resources.files("lisiere.spool").joinpath(f"schema_v{version}.sql").read_text("utf-8")
        try:
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT;")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
    if db.execute("SELECT 1 FROM meta WHERE key = 'epoch_crc'").fetchone() is None:  # new, or of version 1
        found = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        set_epoch(db, str(found[0]) if found else secrets.token_hex(8))


def epoch_of(db: sqlite3.Connection) -> str:
    """Return the epoch of a database.

    Raises:
        Damaged: it is not what was written; results would go under another's name.
    """
    found = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('epoch', 'epoch_crc')").fetchall())
    epoch = str(found.get("epoch"))
    if str(zlib.crc32(epoch.encode())) != found.get("epoch_crc"):
        raise Damaged("its epoch is not what was written")
    return epoch


def set_epoch(db: sqlite3.Connection, epoch: str) -> None:
    """Give a database its epoch, with a checksum."""
    rows = [("epoch", epoch), ("epoch_crc", str(zlib.crc32(epoch.encode())))]
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


def quarantine(folder: Path, clock: Clock, keep: int = 2) -> Path:
    """Move the damaged database and its log beside under a dated name, and return that; at most `keep` stay."""
    file = database_file(folder)
    stamp = rfc3339(clock.now()).replace(":", "").replace("-", "")
    aside = file.with_name(f"{file.name}.damaged-{stamp}")
    number = 0
    while aside.exists():
        number += 1
        aside = file.with_name(f"{file.name}.damaged-{stamp}-{number}")
    if file.exists():
        file.rename(aside)
    _move_log(file, aside)
    kept = [old for old in folder.glob(f"{file.name}.damaged-*") if not old.name.endswith("-wal")]
    for old in sorted(kept, key=lambda old: (old != aside, -old.stat().st_mtime_ns))[keep:]:
        old.unlink()
        _log_of(old).unlink(missing_ok=True)
    return aside


def put_in_place(folder: Path, replacement: Path) -> None:
    """Give the spool its new file, after `quarantine`; both survive a power cut in between."""
    file = database_file(folder)
    replacement.rename(file)
    sync_folder(folder)


def finish_replacing(folder: Path, replacement: Path) -> None:
    """Finish or forget what a crash interrupted between `quarantine` and `put_in_place`."""
    file = database_file(folder)
    if not replacement.exists():
        return
    if file.exists():  # the new file may be in part; the old one is still there to be salvaged again
        replacement.unlink()
        replacement.with_name(f"{replacement.name}-journal").unlink(missing_ok=True)
        return
    quarantined = sorted(folder.glob(f"{file.name}.damaged-*"), key=lambda old: old.stat().st_mtime_ns)
    _move_log(file, quarantined[-1] if quarantined else file.with_name(f"{file.name}.damaged"))
    put_in_place(folder, replacement)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed_mark(text: bytes) -> tuple[str, int] | None:
    parts = text.decode("ascii", "replace").split()
    if len(parts) != 2 or not re.fullmatch("[0-9a-f]{1,64}", parts[0]) or not re.fullmatch("[0-9]{1,15}", parts[1]):
        return None
    return parts[0], int(parts[1])


def _version(db: sqlite3.Connection) -> int:
    """Return the version, which stands in the file's header and, from version 2 on, in a table as well."""
    told = int(db.execute("PRAGMA user_version").fetchone()[0])
    if db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
        written = 0
    else:
        found = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        written = int(found[0]) if found and str(found[0]).isdecimal() else 1
    if told != written:
        raise Damaged(f"it says two schema versions, {told} and {written}")
    return told


def _check(db: sqlite3.Connection, clock: Clock) -> None:
    """Ask SQLite whether the file is whole, for a bounded time."""
    seq = highest(db)
    if seq < (db.execute("SELECT MAX(seq) FROM queue").fetchone()[0] or 0):
        raise Damaged("a row has a number that was never given")
    counted = db.execute(
        "SELECT COALESCE(SUM(accepted - acknowledged - evicted - expired - set_aside - damaged), 0) FROM counts"
    ).fetchone()[0]
    deadline = clock.monotonic() + _CHECK_S
    overdue: Callable[[], bool] = lambda: clock.monotonic() > deadline  # noqa: E731
    db.set_progress_handler(overdue, _CHECK_STEPS)
    try:
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise Damaged(str(found).splitlines()[-1])
        rows = db.execute("SELECT COUNT(*) FROM queue").fetchone()[0]
        if rows != counted:
            raise Damaged(f"{rows} rows wait where its counts say {counted}")
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
    finally:
        db.set_progress_handler(None, 0)


def _check_mark(db: sqlite3.Connection, mark: tuple[str, int] | None) -> None:
    """Raise Damaged when the database is behind what it once was."""
    if mark is None or mark[0] != epoch_of(db):
        return
    seq = highest(db)
    if seq < mark[1]:
        raise Damaged(f"it ends at {seq}, though {mark[1]} had been given")


def _log_of(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def _move_log(file: Path, aside: Path) -> None:
    """Move a database's write-ahead log with it: it must never be taken for the log of another."""
    if _log_of(file).exists():
        _log_of(file).rename(_log_of(aside))
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)
    sync_folder(file.parent)
