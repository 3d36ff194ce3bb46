"""The spool's store: SQLite in WAL mode, one writer thread, group commit.

A result is accepted when its commit is on disk (`synchronous=FULL`), and leaves only when the broker has
acknowledged it, or with a gap record: evicted by the budget, expired, set aside, or lost with a damaged file. A disk
that refuses holds nothing up for long: what has no room in memory is refused at once, and the disk is tried again.
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
from lisiere.spool.file import Damaged, Mark, connect, epoch_of, finish_replacing, is_damage, is_passing, make_folder
from lisiere.spool.gaps import Reason
from lisiere.spool.ledger import RANKS, Batch, Ledger, Totals
from lisiere.spool.reader import database_file
from lisiere.spool.receipts import Receipts
from lisiere.spool.salvage import replacement_file, salvage
from lisiere.values import MessageKind

log = logging.getLogger(__name__)

BODY_MAX_BYTES = 120_000  # within AWS IoT Core's 128 KB once the envelope's identity is added
_BATCH_ROWS = 512
_PENDING_ROWS = 1024
_PENDING_BYTES = 8 << 20
_RETRY_S = 1.0
_REOPEN_MAX_S = 60.0
_REFUSED_WAIT_S = 0.5  # how long one who hands over waits for a disk that refuses; those after wait no more
_RELEASE_ROWS = 512
_RELEASE_S = 0.25  # how long what is acknowledged, and written down so, waits for a commit to share
_EXPIRY_S = 60.0  # how often what has expired is looked for, while nothing else is written
_NOTHING = Totals(0, 0, 0, 0, None)


class Spool:
    """The writing end. `append` and `acknowledge` may be called from any thread; one thread writes.

    Args:
        config: where, how many rows and bytes, how long a batch may wait.
        clock: for the stamps of acceptance.
        on_commit: called by the writer after each commit, with the highest seq on disk.

    A disk that refuses at the start is tried again with growing pauses; what is handed over meanwhile is kept within
    the same bounds as ever. Until then the epoch is empty.

    Raises:
        Permanent: the database may not be opened, was made by a newer version, or is in use by another process.

    Attributes:
        epoch: the random id made with the file; empty as long as the file could not be opened.
        damage: what became of a file that was found damaged since the start, as a sentence, or None.
    """

    def __init__(self, config: SpoolConfig, clock: Clock, on_commit: Callable[[int], None] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._on_commit = on_commit
        self._folder = Path(config.path)
        self._lock = threading.Lock()
        self._noting = threading.Lock()  # one of its own: a slow disk must not hold up who appends
        self._changed = threading.Condition(self._lock)
        self._pending = Batch()
        self._writing = False
        self._hurried = False  # whether what is acknowledged is to be committed at once
        self._leaving: frozenset[int] = frozenset()  # seqs that the batch which is being written deletes
        self._closing = False
        self._failure: str | None = None
        self._full = False  # one has waited for room in vain, and there has been none since
        self._wake = threading.Event()
        self._pause = threading.Event()  # set by close(), so that a waiting writer does not hold it up
        self._torn: str | None = None  # why the file has to be replaced before anything can be written
        self._replaced = False  # since the last commit: another replacement would not help either
        self.damage: str | None = None
        self.epoch = ""
        self._mark: Mark | None = None
        self._receipts: Receipts | None = None
        self._db: sqlite3.Connection
        self._ledger: Ledger | None = None
        self._try_to_open()
        self._wake.set()  # something may have expired
        self._thread = threading.Thread(target=self._write, name="spool-writer", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int:
        """The highest seq that is on disk."""
        return self._totals.seq

    @property
    def waiting(self) -> int:
        """How many rows wait to be acknowledged."""
        return self._totals.rows

    @property
    def bytes_waiting(self) -> int:
        """How many bytes of bodies wait."""
        return self._totals.size

    @property
    def released(self) -> frozenset[int]:
        """Rows that were let go of and are still on disk: who finds them there is not to deliver them again."""
        with self._lock:
            return self._leaving.union(self._pending.acknowledged, (seq for seq, _ in self._pending.aside))

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
            if self._closing or not self._room():
                pending = self._await_room(timeout)
            pending.rows.append(row)
            pending.size += len(body)
            count = len(pending.rows)
        # The writer lingers for a batch, so it needs to hear of the first row and of a full batch only.
        if count == 1 or count == _BATCH_ROWS:
            self._wake.set()

    def acknowledge(self, seqs: Iterable[int], sent: Mapping[str, int] | None = None) -> None:
        """Let go of rows that the broker has acknowledged.

        It is written down at once, so that a kill does not have them delivered again; they are deleted by the hundred.

        Args:
            seqs: of the rows.
            sent: pipeline -> how many results have been handed to a transport since this was told last; None where
                the rows were counted as sent before.
        """
        gone = list(seqs)
        with self._noting:
            if self._receipts is not None:
                self._receipts.add(gone, sent is not None)
        with self._lock:
            pending = self._pending
            first = not pending.acknowledged
            pending.acknowledged += gone
            pending.sent.update(sent or {})
            due = first or len(pending.acknowledged) >= _RELEASE_ROWS
        if due:
            self._wake.set()

    def hurry(self) -> None:
        """Commit at once what is acknowledged."""
        self._hurried = True
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
        self.hurry()
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

    @property
    def _totals(self) -> Totals:
        return self._ledger.totals if self._ledger is not None else _NOTHING

    def _room(self) -> bool:
        return len(self._pending.rows) < _PENDING_ROWS and self._pending.size < _PENDING_BYTES

    def _await_room(self, timeout: float | None) -> Batch:
        """Wait until a row can be taken, and return where to; the lock is held.

        Where one has waited in vain, others do not wait until there was room again: inference is to go on.
        """
        if not self._full:
            self._changed.wait_for(lambda: self._room() or self._closing or bool(self._failure and timeout), timeout)
            if self._failure and timeout:
                self._changed.wait_for(lambda: self._room() or self._closing, min(timeout, _REFUSED_WAIT_S))
        if self._closing or not self._room():
            self._full = True
            raise Retryable(f"The spool takes nothing: {self._failure or 'it is closed or too slow'}.")
        return self._pending

    def _idle(self) -> bool:
        return not (self._pending or self._writing)

    def _write(self) -> None:
        """The writer thread: gather, commit, tell; again when the disk refuses."""
        pause = _RETRY_S
        while self._ledger is None and not self._closing:
            self._pause.wait(pause)
            pause = min(2 * pause, _REOPEN_MAX_S)
            try:
                if not self._closing and self._try_to_open() and self._on_commit is not None:
                    self._on_commit(self.committed)
            except Permanent as error:
                self._failure = str(error)
        while self._ledger is not None:
            self._gather()
            with self._changed:
                pending, self._pending = self._pending, Batch()
                self._writing = bool(pending) or self._overdue()
                self._leaving = frozenset((*pending.acknowledged, *(seq for seq, _ in pending.aside)))
                closing = self._closing
                self._full = False
                self._changed.notify_all()  # there is room again, while this batch is written
            refused = self._writing and not self._commit(pending)
            if closing:  # nothing is added after closing, so one batch was all, and a refusing disk gets no more
                self._let_go()
                return
            if refused:
                self._pause.wait(_RETRY_S)
                self._wake.set()

    def _gather(self) -> None:
        """Wait until there is something to commit that need not wait for more."""
        self._wake.wait(_EXPIRY_S if self._totals.expiry is not None else None)
        self._wake.clear()
        linger = self._config.linger_ms / 1000
        if not (self._urgent or self._pending.rows):
            self._wake.wait(_RELEASE_S)
            self._wake.clear()
        if linger and not self._urgent and len(self._pending.rows) < _BATCH_ROWS:
            self._wake.wait(linger)
        self._hurried = False

    @property
    def _urgent(self) -> bool:
        pending = self._pending
        return bool(self._closing or self._hurried or pending.aside or len(pending.acknowledged) >= _RELEASE_ROWS)

    def _overdue(self) -> bool:
        expiry = self._totals.expiry
        return expiry is not None and expiry <= self._clock.now()

    def _commit(self, pending: Batch) -> bool:
        """Commit one batch and return whether the disk took it; if not, it is pending again, at the head."""
        try:
            if self._torn is not None:
                self._replace(self._torn)
            assert self._ledger is not None  # noqa: S101 - the writer begins once it is there
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
                self._writing, self._leaving = False, frozenset()
                self._changed.notify_all()
            return False
        seq = self.committed
        self._tell_mark()
        self._replaced = False
        with self._changed:
            self._failure = None
            self._writing, self._leaving = False, frozenset()
            self._changed.notify_all()
            if self._pending or self._overdue():
                self._wake.set()
        if self._on_commit is not None:
            self._on_commit(seq)
        return True

    def _try_to_open(self) -> bool:
        """Open the file and return whether that went; if not, `failure` says why, and it may be tried again.

        Raises:
            Permanent: another try would not help.
        """
        try:
            make_folder(self._folder)
            self._mark = Mark(self._folder)
            self._open()
        except (OSError, sqlite3.Error, Damaged) as error:
            self._let_go()
            why = f"The spool {database_file(self._folder)} cannot be used: {error}."
            if not is_passing(error):
                raise Permanent(f"{why} Free or mend the disk, or move the folder away to start a new one.") from error
            if self._failure is None:
                log.warning("%s It is tried again; results wait in memory meanwhile, as far as there is room.", why)
            self._failure = why
            return False
        except BaseException:
            self._let_go()
            raise
        self._failure = None
        return True

    def _open(self) -> None:
        """Open the file, or a new one with what can be saved of it."""
        assert self._mark is not None  # noqa: S101 - it is opened first
        finish_replacing(self._folder, replacement_file(self._folder))
        try:
            self._db = connect(database_file(self._folder), self._clock, self._mark.read())
        except Damaged as error:
            self._replace(str(error))
        else:
            self._begin()

    def _replace(self, why: str) -> None:
        """Put a new file in the place of a damaged one. Readers of the old one notice, and have to open it anew."""
        assert self._mark is not None  # noqa: S101 - it is opened first
        if hasattr(self, "_db"):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self.damage = salvage(self._folder, self._mark.read(), why, self._clock)
        log.error("%s", self.damage)
        self._db = connect(database_file(self._folder), self._clock, None)
        self._begin()
        self._torn, self._replaced = None, True

    def _begin(self) -> None:
        """Read where the file is, and let go of what was acknowledged before the last process ended."""
        epoch = epoch_of(self._db)
        ledger = Ledger(self._db, self._config, self._clock)
        receipts = Receipts(self._folder, epoch)
        try:
            if found := receipts.read():
                recalled = [seq for seq, uncounted in found.items() if uncounted]
                ledger.apply(Batch(acknowledged=[seq for seq in found if not found[seq]], recalled=recalled))
        except BaseException:
            receipts.close()
            raise
        with self._noting:
            if self._receipts is not None:
                self._receipts.close()
            self.epoch, self._ledger, self._receipts = epoch, ledger, receipts
        self._tell_mark()

    def _tell_mark(self) -> None:
        if self._mark is not None:
            self._mark.write(self.epoch, self.committed)

    def _let_go(self) -> None:
        """Close whatever is open."""
        with self._noting:
            receipts, self._receipts = self._receipts, None
        if hasattr(self, "_db"):
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        for part in (receipts, self._mark):
            if part is not None:
                part.close()
