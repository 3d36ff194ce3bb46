"""The spool's store: SQLite in WAL mode, one writer thread, group commit.

A result is accepted when its commit is on disk (`synchronous=FULL`), and leaves only when the broker has
acknowledged it, or with a gap record: evicted by the budget, expired, set aside, or lost with a damaged file.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lisiere.clock import Clock
from lisiere.config import Importance, SpoolConfig
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.spool.file import Damaged, Mark, connect, epoch_of, finish_replacing, is_damage, sync_folder
from lisiere.spool.gaps import Reason
from lisiere.spool.ledger import RANKS, Batch, Ledger
from lisiere.spool.reader import database_file
from lisiere.spool.salvage import replacement_file, salvage
from lisiere.values import MessageKind

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 120_000  # within AWS IoT Core's 128 KB once the envelope's identity is added
_BATCH_ROWS = 512
_PENDING_ROWS = 1024
_PENDING_BYTES = 8 << 20
_RETRY_S = 1.0
_EXPIRY_S = 60.0  # how often what has expired is looked for, while nothing else is written


class Spool:
    """The writing end. `append` and `acknowledge` may be called from any thread; one thread writes.

    Args:
        config: where, how many rows and bytes, how long a batch may wait.
        clock: for the stamps of acceptance.
        on_commit: called by the writer after each commit, with the highest seq on disk.

    Raises:
        Permanent: the database cannot be opened, was made by a newer version, or is in use by another process.

    Attributes:
        epoch: the random id made with the file.
        damage: what became of a file that was found damaged since the start, as a sentence, or None.
    """

    def __init__(self, config: SpoolConfig, clock: Clock, on_commit: Callable[[int], None] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._on_commit = on_commit
        self._folder = Path(config.path)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending = Batch()
        self._writing = False
        self._leaving = 0  # rows that the batch which is being written deletes
        self._closing = False
        self._failure: str | None = None
        self._wake = threading.Event()
        self._pause = threading.Event()  # set by close(), so that a waiting writer does not hold it up
        self._torn: str | None = None  # why the file has to be replaced before anything can be written
        self._replaced = False  # since the last commit: another replacement would not help either
        self.damage: str | None = None
        self.epoch: str
        self._db: sqlite3.Connection
        self._ledger: Ledger
        try:
            _make(self._folder)
            self._mark = Mark(self._folder)
            try:
                self._open()
            except BaseException:
                self._mark.close()
                raise
        except (OSError, sqlite3.Error, Damaged) as error:
            raise Permanent(
                f"The spool {database_file(self._folder)} cannot be used: {error}. Free or mend the disk, or move the "
                "folder away to start a new one."
            ) from error
        self._wake.set()  # something may have expired
        self._thread = threading.Thread(target=self._write, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """The highest seq that is on disk."""
        return self._ledger.totals.seq

    @property
    def waiting(self) -> int:
        """How many rows wait to be acknowledged."""
        return self._ledger.totals.rows

    @property
    def bytes_waiting(self) -> int:
        """How many bytes of bodies wait."""
        return self._ledger.totals.size

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

    def append(
        self,
        pipeline: str,
        body: bytes,
        timeout: float | None = None,
        importance: Importance = "result",
        ttl_s: float | None = None,
        kind: MessageKind = "result",
    ) -> None:
        """Hand over one message, usually a result. It is accepted once committed; `flush` waits for that.

        Args:
            pipeline: the pipeline's name.
            body: a JSON object, the envelope without identity; at most 120,000 bytes.
            timeout: seconds to wait while the writer is behind; None waits for as long as the spool is open.
            importance: what is less important is evicted first.
            ttl_s: seconds after which it need not be delivered any more; None means never.
            kind: which kind of message of the pipeline it is.

        Raises:
            Rejected: the body is too large for a message.
            Retryable: the writer stayed behind (a full or failing disk) or the spool is closed. Nothing was taken.
        """
        if len(body) > BODY_MAX_BYTES:
            raise Rejected(f"A result of {len(body)} bytes cannot be sent; {BODY_MAX_BYTES} is the limit.")
        now = self._clock.now()
        row = (kind, pipeline, RANKS[importance], now, now + ttl_s if ttl_s is not None else None, body)
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

    def acknowledge(self, seqs: Iterable[int], sent: Mapping[str, int] | None = None) -> None:
        """Let go of rows that the broker has acknowledged; they are deleted with the next commit.

        Args:
            seqs: of the rows.
            sent: pipeline -> how many results have been handed to a transport since this was told last.
        """
        with self._changed:
            self._pending.acknowledged.extend(seqs)
            self._pending.sent.update(sent or {})
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

    def _await_room(self, timeout: float | None) -> Batch:
        """Wait until a row can be taken, and return where to; the lock is held."""

        def room() -> bool:
            return len(self._pending.rows) < _PENDING_ROWS and self._pending.size < _PENDING_BYTES

        self._changed.wait_for(lambda: room() or self._closing, timeout)
        if self._closing or not room():
            raise Retryable(f"The spool takes nothing: {self._failure or 'it is closed or too slow'}.")
        return self._pending

    def _idle(self) -> bool:
        return not (self._pending or self._writing)

    def _write(self) -> None:
        """The writer thread: gather, commit, tell; again when the disk refuses."""
        linger = self._config.linger_ms / 1000
        while True:
            self._wake.wait(_EXPIRY_S if self._ledger.totals.expiry is not None else None)
            self._wake.clear()
            # The drain waits for what is let go of; what comes meanwhile makes the next batch.
            if not (self._closing or self._pending.acknowledged) and linger and len(self._pending.rows) < _BATCH_ROWS:
                self._wake.wait(linger)
            with self._changed:
                pending, self._pending = self._pending, Batch()
                self._writing = bool(pending) or self._overdue()
                self._leaving = len(pending.acknowledged) + len(pending.aside)
                closing = self._closing
                self._changed.notify_all()  # there is room again, while this batch is written
            refused = self._writing and not self._commit(pending)
            if closing:  # nothing is added after closing, so one batch was all, and a refusing disk gets no more
                with contextlib.suppress(sqlite3.Error):
                    self._db.close()
                self._mark.close()
                return
            if refused:
                self._pause.wait(_RETRY_S)
                self._wake.set()

    def _overdue(self) -> bool:
        expiry = self._ledger.totals.expiry
        return expiry is not None and expiry <= self._clock.now()

    def _commit(self, pending: Batch) -> bool:
        """Commit one batch and return whether the disk took it; if not, it is pending again, at the head."""
        try:
            if self._torn is not None:
                self._replace(self._torn)
            self._ledger.apply(pending)
        except (sqlite3.Error, OSError, Damaged) as error:
            if isinstance(error, sqlite3.Error) and is_damage(error) and not self._replaced:
                self._torn = str(error)
            with self._changed:
                self._failure = f"{database_file(self._folder)} refuses to commit: {error}"
                self._pending.rows[:0] = pending.rows
                self._pending.size += pending.size
                self._pending.acknowledged[:0] = pending.acknowledged
                self._pending.aside[:0] = pending.aside
                self._pending.sent.update(pending.sent)
                self._writing, self._leaving = False, 0
            return False
        seq = self._ledger.totals.seq
        self._mark.write(self.epoch, seq)
        self._replaced = False
        with self._changed:
            self._failure = None
            self._writing, self._leaving = False, 0
            self._changed.notify_all()
            if self._pending or self._overdue():
                self._wake.set()
        if self._on_commit is not None:
            self._on_commit(seq)
        return True

    def _open(self) -> None:
        """Open the file, or a new one with what can be saved of it."""
        finish_replacing(self._folder, replacement_file(self._folder))
        try:
            self._db = connect(database_file(self._folder), self._clock, self._mark.read())
        except Damaged as error:
            self._replace(str(error))
        else:
            self._begin()

    def _replace(self, why: str) -> None:
        """Put a new file in the place of a damaged one. Readers of the old one notice, and have to open it anew."""
        if hasattr(self, "_db"):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self.damage = salvage(self._folder, self._mark.read(), why, self._clock)
        log.error("%s", self.damage)
        self._db = connect(database_file(self._folder), self._clock, None)
        self._begin()
        self._torn, self._replaced = None, True

    def _begin(self) -> None:
        self.epoch = epoch_of(self._db)
        self._ledger = Ledger(self._db, self._config, self._clock)
        self._mark.write(self.epoch, self._ledger.totals.seq)


def _make(folder: Path) -> None:
    """Make the folder and sync its entry in the one above: SQLite syncs what is in it, and a power cut takes the rest.

    It is synced as well when it is there already, since who made it may have been killed before.
    """
    absent = [above for above in folder.parents if not above.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in (folder, *absent):
        with contextlib.suppress(PermissionError):  # a folder that may be entered and not read: it was there before
            sync_folder(made.parent)
