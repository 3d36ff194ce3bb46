"""The spool's store: SQLite in WAL mode, one writer thread, group commit.

A result is accepted when its commit is on disk (`synchronous=FULL`), and leaves only when the broker has
acknowledged it or when the bound on rows or bytes evicts it, which a gap record then says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from operator import itemgetter
from pathlib import Path

from lisiere.clock import Clock
from lisiere.config import SpoolConfig
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.spool.gaps import Reason, gap_bodies
from lisiere.spool.reader import SCHEMA_VERSION, check_version, database_file, highest

BODY_MAX_BYTES = 120_000  # within AWS IoT Core's 128 KB once the envelope's identity is added
_BATCH_ROWS = 512
_PENDING_ROWS = 1024
_PENDING_BYTES = 8 << 20
_EVICT_ROWS = 256  # evict in lots, so that gap records stay few
_RETRY_S = 1.0
_INSERTS = {
    size: "INSERT INTO queue (kind, pipeline, accepted_ts, body) VALUES " + ", ".join(["('result', ?, ?, ?)"] * size)  # noqa: S608
    for size in (128, 32, 8, 1)
}


@dataclass(slots=True)
class _Pending:
    """What the writer has yet to commit."""

    rows: list[tuple[str, float, bytes]] = field(default_factory=list)  # pipeline, accepted_ts, body
    size: int = 0  # bytes of bodies in `rows`
    acknowledged: list[int] = field(default_factory=list)
    aside: list[tuple[int, Reason]] = field(default_factory=list)  # seq, and why it is never delivered


class Spool:
    """The writing end. `append` and `acknowledge` may be called from any thread; one thread writes.

    Args:
        config: where, how many rows and bytes, how long a batch may wait.
        clock: for the stamps of acceptance.
        on_commit: called by the writer after each commit, with the highest seq on disk.

    Raises:
        Permanent: the database cannot be opened, is damaged, or was made by a newer version.
    """

    def __init__(self, config: SpoolConfig, clock: Clock, on_commit: Callable[[int], None] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._on_commit = on_commit
        self._folder = Path(config.path)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending = _Pending()
        self._writing = False
        self._leaving = 0  # rows that the batch which is being written deletes
        self._closing = False
        self._failure: str | None = None
        self._wake = threading.Event()
        self._pause = threading.Event()  # set by close(), so that a waiting writer does not hold it up
        try:
            _make(self._folder)
            self._db = _open(database_file(self._folder))
            self.epoch = _epoch(self._db)
            self._seq = highest(self._db)
            found = self._db.execute("SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM queue").fetchone()
            self._rows, self._bytes = int(found[0]), int(found[1])
        except (OSError, sqlite3.Error) as error:
            raise Permanent(
                f"The spool {database_file(self._folder)} cannot be used: {error}. Move the folder away to start a "
                "new one."
            ) from error
        self._committed = self._seq
        self._thread = threading.Thread(target=self._write, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """The highest seq that is on disk."""
        return self._committed

    @property
    def waiting(self) -> int:
        """How many rows wait to be acknowledged."""
        return self._rows

    @property
    def bytes_waiting(self) -> int:
        """How many bytes of bodies wait."""
        return self._bytes

    @property
    def releasing(self) -> int:
        """How many rows have been let go of and are still on disk: after a kill they would be delivered again.

        None while commits fail, so that a full disk does not end delivery.
        """
        with self._lock:
            return 0 if self._failure else len(self._pending.acknowledged) + len(self._pending.aside) + self._leaving

    @property
    def failure(self) -> str | None:
        """Why commits fail at present, or None."""
        return self._failure

    def append(self, pipeline: str, body: bytes, timeout: float | None = None) -> None:
        """Hand over one result. It is accepted once committed; `flush` waits for that.

        Args:
            pipeline: the pipeline's name.
            body: a JSON object, the envelope without identity; at most 120,000 bytes.
            timeout: seconds to wait while the writer is behind; None waits for as long as the spool is open.

        Raises:
            Rejected: the body is too large for a message.
            Retryable: the writer stayed behind (a full or failing disk) or the spool is closed. Nothing was taken.
        """
        if len(body) > BODY_MAX_BYTES:
            raise Rejected(f"A result of {len(body)} bytes cannot be sent; {BODY_MAX_BYTES} is the limit.")
        row = (pipeline, self._clock.now(), body)
        with self._lock:  # the bare lock: entering by way of the condition is the larger part of an append
            pending = self._pending
            if self._closing or len(pending.rows) >= _PENDING_ROWS or pending.size >= _PENDING_BYTES:
                pending = self._await_room(timeout)
            pending.rows.append(row)
            pending.size += len(body)
            count = len(pending.rows)
        # The writer lingers for a batch, so it needs to hear of the first row and of a full batch only.
        if count == 1 or count == _BATCH_ROWS:
            self._wake.set()

    def acknowledge(self, seqs: Iterable[int]) -> None:
        """Let go of rows that the broker has acknowledged; they are deleted with the next commit."""
        with self._changed:
            self._pending.acknowledged.extend(seqs)
        self._wake.set()

    def set_aside(self, seqs: Iterable[int], reason: Reason) -> None:
        """Let go of rows that can never be delivered; the next commit deletes them and writes a gap record.

        Gap records themselves go without one: that there is a hole is then told by `seq` alone.
        """
        with self._changed:
            self._pending.aside.extend((seq, reason) for seq in seqs)
        self._wake.set()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over is on disk; return whether it is."""
        with self._changed:
            return self._changed.wait_for(self._idle, timeout)

    def close(self, timeout: float = 10.0) -> bool:
        """Commit what is pending and close the file; return whether everything handed over is on disk."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._pause.set()
        self._wake.set()
        self._thread.join(timeout)
        return not self._pending.rows and not self._writing

    def _await_room(self, timeout: float | None) -> _Pending:
        """Wait until a row can be taken, and return where to; the lock is held."""

        def room() -> bool:
            return len(self._pending.rows) < _PENDING_ROWS and self._pending.size < _PENDING_BYTES

        self._changed.wait_for(lambda: room() or self._closing, timeout)
        if self._closing or not room():
            raise Retryable(f"The spool takes nothing: {self._failure or 'it is closed or too slow'}.")
        return self._pending

    def _idle(self) -> bool:
        return not (self._pending.rows or self._pending.acknowledged or self._pending.aside or self._writing)

    def _write(self) -> None:
        """The writer thread: gather, commit, tell; again when the disk refuses."""
        linger = self._config.linger_ms / 1000
        while True:
            self._wake.wait()
            self._wake.clear()
            # The drain waits for what is let go of; what comes meanwhile makes the next batch.
            if not (self._closing or self._pending.acknowledged) and linger and len(self._pending.rows) < _BATCH_ROWS:
                self._wake.wait(linger)
            with self._changed:
                pending, self._pending = self._pending, _Pending()
                self._writing = bool(pending.rows or pending.acknowledged or pending.aside)
                self._leaving = len(pending.acknowledged) + len(pending.aside)
                closing = self._closing
                self._changed.notify_all()  # there is room again, while this batch is written
            refused = self._writing and not self._commit(pending)
            if closing:  # nothing is added after closing, so one batch was all, and a refusing disk gets no more
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                return
            if refused:
                self._pause.wait(_RETRY_S)
                self._wake.set()

    def _commit(self, pending: _Pending) -> bool:
        """Commit one batch and return whether the disk took it; if not, it is pending again, at the head."""
        try:
            seq, rows, size = self._apply(pending)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            with self._changed:
                self._failure = f"{database_file(self._folder)} refuses to commit: {error}"
                self._pending.rows[:0] = pending.rows
                self._pending.size += pending.size
                self._pending.acknowledged[:0] = pending.acknowledged
                self._pending.aside[:0] = pending.aside
                self._writing, self._leaving = False, 0
            return False
        with self._changed:
            self._seq = self._committed = seq
            self._rows, self._bytes = rows, size
            self._failure = None
            self._writing, self._leaving = False, 0
            self._changed.notify_all()
            if self._pending.rows or self._pending.acknowledged or self._pending.aside:
                self._wake.set()
        if self._on_commit is not None:
            self._on_commit(seq)
        return True

    def _apply(self, pending: _Pending) -> tuple[int, int, int]:
        """Write one batch in one transaction; return the highest seq, the rows and the bytes that then wait."""
        seq, rows, size, db = self._seq, self._rows, self._bytes, self._db
        db.execute("BEGIN IMMEDIATE")
        if pending.acknowledged:
            gone, freed = self._delete(pending.acknowledged)
            rows, size = rows - gone, size - freed
        if pending.aside:
            seq, rows, size = self._put_aside(pending.aside, seq, rows, size)
        if pending.rows:
            self._insert(pending.rows)
            _count(db, "accepted", Counter(map(itemgetter(0), pending.rows)))
            added = len(pending.rows)
            seq, rows, size = seq + added, rows + added, size + pending.size
            limit = int(self._config.max_mb * 1e6)
            if rows > self._config.max_rows or size > limit:
                seq, rows, size = self._evict(seq, rows, size, limit)
        db.execute("COMMIT")
        return seq, rows, size

    def _insert(self, rows: list[tuple[str, float, bytes]]) -> None:
        """Add rows to the queue. AUTOINCREMENT numbers them without holes: a batch that fails gives its own back.

        Many rows a statement, because each statement lets go of the interpreter's lock and has to win it back from
        the threads that infer.
        """
        start = 0
        for size, statement in _INSERTS.items():
            while start + size <= len(rows):
                flat = [value for row in rows[start : start + size] for value in row]
                self._db.execute(statement, flat)
                start += size

    def _delete(self, seqs: list[int]) -> tuple[int, int]:
        """Delete acknowledged rows; return how many there were and how many bytes they held."""
        done: Counter[str] = Counter()
        gone = freed = 0
        for seq in seqs:
            found = self._db.execute(
                "DELETE FROM queue WHERE seq = ? RETURNING kind, pipeline, LENGTH(body)", (seq,)
            ).fetchall()
            for kind, pipeline, length in found:
                gone, freed = gone + 1, freed + length
                if kind == "result":
                    done[pipeline] += 1
        _count(self._db, "acknowledged", done)
        return gone, freed

    def _evict(self, seq: int, rows: int, size: int, limit: int) -> tuple[int, int, int]:
        """Make room by the oldest results, in lots, and write down what went.

        Gap records themselves stay: they are what makes an eviction more than a loss.
        """
        evicted: list[tuple[int, str, float]] = []
        while rows >= self._config.max_rows or size > limit:
            lot = self._db.execute(
                "DELETE FROM queue WHERE seq IN (SELECT seq FROM queue WHERE kind = 'result' ORDER BY seq LIMIT ?) "
                "RETURNING seq, pipeline, accepted_ts, LENGTH(body)",
                (_EVICT_ROWS if rows > _EVICT_ROWS else 1,),
            ).fetchall()
            if not lot:
                break
            for number, pipeline, ts, length in sorted(lot):
                rows, size = rows - 1, size - length
                evicted.append((number, pipeline, ts))
        return self._write_gaps("spool_full", evicted, seq, rows, size)

    def _put_aside(self, aside: list[tuple[int, Reason]], seq: int, rows: int, size: int) -> tuple[int, int, int]:
        """Delete what can never be delivered, and write down what went."""
        gone: dict[Reason, list[tuple[int, str, float]]] = {}
        for number, reason in sorted(aside):
            found = self._db.execute(
                "DELETE FROM queue WHERE seq = ? RETURNING kind, pipeline, accepted_ts, LENGTH(body)", (number,)
            ).fetchall()
            for kind, pipeline, ts, length in found:
                rows, size = rows - 1, size - length
                if kind == "result":
                    gone.setdefault(reason, []).append((number, pipeline, ts))
        for reason, results in gone.items():
            seq, rows, size = self._write_gaps(reason, results, seq, rows, size)
        return seq, rows, size

    def _write_gaps(
        self, reason: Reason, gone: list[tuple[int, str, float]], seq: int, rows: int, size: int
    ) -> tuple[int, int, int]:
        """Count what went as evicted and write gap records of it; return the highest seq, the rows and the bytes."""
        _count(self._db, "evicted", Counter(pipeline for _, pipeline, _ in gone))
        now = self._clock.now()
        for body in gap_bodies(reason, now, gone):
            seq, rows, size = seq + 1, rows + 1, size + len(body)
            self._db.execute("INSERT INTO queue VALUES (?, 'gap', '', ?, ?)", (seq, now, body))
        return seq, rows, size


def _make(folder: Path) -> None:
    """Make the folder and sync its entry in the one above: SQLite syncs what is in it, and a power cut takes the rest.

    It is synced as well when it is there already, since who made it may have been killed before.
    """
    absent = [above for above in folder.parents if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in (folder, *absent):
        with contextlib.suppress(PermissionError):  # a folder that may be entered and not read: it was there before
            above = os.open(made.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(above)
            finally:
                os.close(above)


def _open(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 5000")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            script = resources.files("lisiere.spool").joinpath(f"schema_v{SCHEMA_VERSION}.sql").read_text("utf-8")
            db.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        check_version(db, file)
    except BaseException:
        db.close()
        raise
    return db


def _epoch(db: sqlite3.Connection) -> str:
    db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', ?)", (secrets.token_hex(8),))
    found: str = db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()[0]
    return found


def _count(db: sqlite3.Connection, column: str, numbers: Counter[str]) -> None:
    db.executemany(
        f"INSERT INTO counts (pipeline, {column}) VALUES (?, ?) "  # noqa: S608 - one of three names above
        f"ON CONFLICT (pipeline) DO UPDATE SET {column} = {column} + excluded.{column}",
        list(numbers.items()),
    )
