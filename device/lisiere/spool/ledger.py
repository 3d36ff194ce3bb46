"""The spool's transactions: what comes in, what goes out, and that every row is accounted for.

After every commit: accepted = acknowledged + evicted + expired + set aside + damaged + waiting, by pipeline, and what
waits is within the budget of rows and bytes.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lisiere.clock import TS_MAX, TS_MIN, Clock
from lisiere.config import Importance, SpoolConfig
from lisiere.spool.gaps import RECORD_MAX_BYTES, Gone, Reason, gap_bodies, merged
from lisiere.spool.reader import highest, seed
from lisiere.values import MessageKind

RANKS: dict[Importance, int] = {"alarm": 0, "result": 1, "sample": 2, "metric": 3}
GAP_RANK = -1
_EVICT_ROWS = 256  # evict in lots, so that gap records stay few
_STEP_S = 2.0  # a clock that differs by more from the passing of time was set
_EXPIRE_ROWS = 2048  # in one transaction, so that results do not wait behind it
_INSERT = "INSERT INTO queue (seq, kind, pipeline, class, accepted_ts, expires_ts, body, crc) VALUES "
_INSERTS = {size: _INSERT + ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * size) for size in (128, 32, 8, 1)}
# In a file that was damaged unseen a column may hold another type than it was given.
_RETURNING = (
    "RETURNING seq, kind, COALESCE(pipeline, ''), COALESCE(CAST(accepted_ts AS REAL), 0), "
    "COALESCE(CAST(body AS BLOB), x'')"
)
_SUMS = (
    "SELECT COALESCE(pipeline, ''), COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM queue WHERE seq BETWEEN ? AND ? "
    "GROUP BY 1"
)
_DELETE = "DELETE FROM queue WHERE seq IN (SELECT seq FROM queue"
_COLUMN: dict[Reason, str] = {
    "spool_full": "evicted",
    "expired": "expired",
    "too_large": "set_aside",
    "refused": "set_aside",
    "spool_damaged": "damaged",
}
_COUNT = (
    "INSERT INTO counts (pipeline, accepted, acknowledged, evicted, expired, set_aside, damaged, sent, bytes) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (pipeline) DO UPDATE SET accepted = accepted + excluded.accepted, "
    "acknowledged = acknowledged + excluded.acknowledged, evicted = evicted + excluded.evicted, "
    "expired = expired + excluded.expired, set_aside = set_aside + excluded.set_aside, "
    "damaged = damaged + excluded.damaged, sent = sent + excluded.sent, bytes = bytes + excluded.bytes"
)
_COLUMNS = ("accepted", "acknowledged", "evicted", "expired", "set_aside", "damaged", "sent", "bytes")

# A message as it is handed over: kind, pipeline, class, when accepted, when it expires, body.
Handed = tuple[MessageKind, str, int, float, float | None, bytes]


@dataclass(slots=True)
class Batch:
    """What has yet to be committed."""

    rows: list[Handed] = field(default_factory=list)
    size: int = 0  # bytes of bodies in `rows`
    acknowledged: list[int] = field(default_factory=list)
    recalled: list[int] = field(default_factory=list)  # acknowledged before a kill, and not yet counted as sent
    aside: list[tuple[int, Reason]] = field(default_factory=list)  # seq, and why it is never delivered
    sent: Counter[str] = field(default_factory=Counter)  # results handed to a transport, by pipeline

    def __bool__(self) -> bool:
        return bool(self.rows or self.acknowledged or self.aside or self.sent)


@dataclass(frozen=True, slots=True)
class Totals:
    """What is on disk: the highest seq ever given, and what waits.

    Attributes:
        rows: how many rows wait, gap records among them.
        size: bytes of their bodies.
        gaps: how many of them are gap records.
        expiry: wall time at which the next of them expires, or None.
    """

    seq: int
    rows: int
    size: int
    gaps: int
    expiry: float | None


class Ledger:
    """Applies batches to the database, each in one transaction. For one thread at a time.

    Args:
        db: a database of this version; this is its only writer.
        config: the budget.
        clock: for the stamps of gap records, and for what expires.
    """

    def __init__(self, db: sqlite3.Connection, config: SpoolConfig, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._max_rows = config.max_rows
        self._max_bytes = int(config.max_mb * 1e6)
        # At most a fifth of the budget is gap records; there are five reasons.
        self._gaps_each = max(2, min(100, self._max_rows // 50, self._max_bytes // (50 * RECORD_MAX_BYTES)))
        self.totals = self._read_totals()
        self._first = self.totals.seq  # what comes after was accepted by this process
        self._offset = clock.now() - clock.monotonic()
        self._passed = 0  # no row of the class `result` has a seq up to this
        self._now = self.totals  # while a transaction is under way
        self._counts: dict[str, Counter[str]] = {}

    def apply(self, batch: Batch) -> None:
        """Commit one batch, and let go of what has expired or has no room.

        Raises:
            sqlite3.Error: the disk refuses; nothing has changed.
        """
        db = self._db
        self._now, self._counts = self.totals, {}
        db.execute("BEGIN IMMEDIATE")
        try:
            for pipeline, number in batch.sent.items():
                self._count(pipeline, "sent", number, 0)
            if batch.recalled:
                self._acknowledge(batch.recalled, unsent=True)
            if batch.acknowledged:
                self._acknowledge(batch.acknowledged)
            if batch.aside:
                self._put_aside(batch.aside)
            if batch.rows:
                self._insert(batch.rows, batch.size)
            now = self._clock.now()
            offset = now - self._clock.monotonic()
            if self._now.expiry is not None:
                if abs(offset - self._offset) > _STEP_S:
                    self._shift_expiry(offset - self._offset)
                if self._now.expiry is not None and self._now.expiry <= now:
                    self._expire(now)
            while self._now.rows > self._max_rows or self._now.size > self._max_bytes:
                self._evict()
            self._write_counts()
            db.execute("COMMIT")
        except BaseException:
            self._passed = 0
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self.totals, self._offset = self._now, offset

    def _read_totals(self) -> Totals:
        db = self._db
        rows, size = db.execute(
            "SELECT COALESCE(SUM(accepted - acknowledged - evicted - expired - set_aside - damaged), 0), "
            "COALESCE(SUM(bytes), 0) FROM counts"
        ).fetchone()
        gaps = db.execute("SELECT COUNT(*) FROM queue WHERE class <> 1 AND class = ?", (GAP_RANK,)).fetchone()[0]
        return Totals(highest(db), rows, size, gaps, self._next_expiry())

    def _next_expiry(self) -> float | None:
        found = self._db.execute(
            "SELECT expires_ts FROM queue WHERE expires_ts IS NOT NULL ORDER BY expires_ts LIMIT 1"
        ).fetchone()
        return float(found[0]) if found else None

    def _insert(self, rows: list[Handed], size: int) -> None:
        """Add rows to the queue, numbered without holes.

        Many rows a statement, because each statement lets go of the interpreter's lock and has to win it back from
        the threads that infer.
        """
        seq, expiry = self._now.seq, self._now.expiry
        flat: list[object] = []
        by_pipeline: dict[str, list[int]] = {}
        for kind, pipeline, rank, ts, expires, body in rows:
            seq += 1
            crc = zlib.crc32(body, seed(pipeline, kind) ^ (seq & 0xFFFFFFFF))
            flat += (seq, kind, pipeline, rank, ts, expires, body, crc)
            by_pipeline.setdefault(pipeline, []).append(len(body))
            if expires is not None and (expiry is None or expires < expiry):
                expiry = expires
        start = 0
        for count, statement in _INSERTS.items():
            while start + count <= len(rows):
                self._db.execute(statement, flat[8 * start : 8 * (start + count)])
                start += count
        for pipeline, lengths in by_pipeline.items():
            self._count(pipeline, "accepted", len(lengths), sum(lengths))
        now = self._now
        self._now = replace(now, seq=seq, rows=now.rows + len(rows), size=now.size + size, expiry=expiry)

    def _acknowledge(self, seqs: list[int], unsent: bool = False) -> None:
        """Delete what was delivered."""
        runs: list[list[int]] = []  # what is acknowledged in order goes by few statements
        for seq in sorted(set(seqs)):
            if runs and runs[-1][1] == seq - 1:
                runs[-1][1] = seq
            else:
                runs.append([seq, seq])
        now = self._now
        rows, size, gaps = now.rows, now.size, now.gaps
        for run in runs:
            # Not RETURNING: each row that is returned lets go of the interpreter's lock and has to win it back.
            for pipeline, number, length in self._db.execute(_SUMS, run).fetchall():
                self._count(pipeline, "acknowledged", number, -length)
                if unsent and pipeline:
                    self._count(pipeline, "sent", number, 0)
                rows, size, gaps = rows - number, size - length, gaps - (0 if pipeline else number)
            self._db.execute("DELETE FROM queue WHERE seq BETWEEN ? AND ?", run)
        self._now = replace(now, rows=rows, size=size, gaps=gaps)

    def _put_aside(self, aside: list[tuple[int, Reason]]) -> None:
        """Delete what can never be delivered, and write down what went."""
        gone: dict[Reason, list[Gone]] = {}
        for seq, reason in sorted(aside):
            rows = self._db.execute(f"DELETE FROM queue WHERE seq = ? {_RETURNING}", (seq,)).fetchall()  # noqa: S608
            gone.setdefault(reason, []).extend(self._removed(rows, _COLUMN[reason]))
        for reason, results in gone.items():
            self._write_gaps(reason, results)

    def _shift_expiry(self, seconds: float) -> None:
        """The clock was set: what was accepted since the start has not waited for longer because of that."""
        self._db.execute(
            "UPDATE queue SET expires_ts = expires_ts + ? WHERE expires_ts IS NOT NULL AND seq > ? AND seq <= ?",
            (seconds, self._first, self.totals.seq),
        )
        self._now = replace(self._now, expiry=self._next_expiry())

    def _expire(self, now: float) -> None:
        rows = self._db.execute(
            f"{_DELETE} WHERE expires_ts <= ? ORDER BY expires_ts LIMIT ?) {_RETURNING}",
            (now, _EXPIRE_ROWS),
        ).fetchall()
        self._write_gaps("expired", self._removed(rows, "expired"))
        self._now = replace(self._now, expiry=self._next_expiry())

    def _evict(self) -> None:
        """Make room by one lot: of the lowest class that there is, the oldest. Gap records stay.

        They are what makes an eviction more than a loss; merging keeps them within a fifth of the budget.
        """
        count = max(1, min(_EVICT_ROWS, (self._now.rows - self._now.gaps) // 16))
        lowest = self._db.execute("SELECT MAX(class) FROM queue WHERE class <> 1").fetchone()[0]
        rows: Sequence[tuple[int, str, str, float, bytes]] = []
        if lowest is None or lowest <= RANKS["result"]:
            rows = self._db.execute(
                f"{_DELETE} WHERE class = 1 AND seq > ? ORDER BY seq LIMIT ?) {_RETURNING}", (self._passed, count)
            ).fetchall()
            if rows:
                self._passed = max(row[0] for row in rows)
        if not rows:
            rows = self._db.execute(
                f"{_DELETE} WHERE class <> 1 AND class >= 0 AND class = ? ORDER BY seq LIMIT ?) {_RETURNING}",
                (lowest, count),
            ).fetchall()
        if not rows:
            raise sqlite3.DatabaseError("there is nothing to evict, and still no room: the spool's counts are wrong")
        self._write_gaps("spool_full", self._removed(rows, "evicted"))

    def _removed(self, rows: Sequence[tuple[int, str, str, float, bytes]], column: str) -> list[Gone]:
        """Take deleted rows off the totals; return the results among them, in the order of seq."""
        now, gone = self._now, []
        size = gaps = 0
        for seq, kind, pipeline, ts, body in sorted(rows):
            size, gaps = size + len(body), gaps + (kind == "gap")
            self._count(pipeline, column, 1, -len(body))
            if kind != "gap":
                gone.append(Gone(seq, pipeline, min(max(ts, TS_MIN), TS_MAX), body))
        self._now = replace(now, rows=now.rows - len(rows), size=now.size - size, gaps=now.gaps - gaps)
        return gone

    def _write_gaps(self, reason: Reason, gone: list[Gone]) -> None:
        now = self._clock.now()
        for body in gap_bodies(reason, now, gone):
            self._write_gap(now, body)
        if self._now.gaps > self._gaps_each:
            self._merge_gaps(now)

    def _merge_gaps(self, now: float) -> None:
        """Put fewer gap records in the place of many."""
        found = self._db.execute("SELECT seq, body FROM queue WHERE class <> 1 AND class = ?", (GAP_RANK,)).fetchall()
        fewer = merged(found, now, self._gaps_each)
        if fewer is None:
            return
        seqs, bodies = fewer
        rows: list[tuple[int, str, str, float, bytes]] = []
        for seq in seqs:
            rows += self._db.execute(f"DELETE FROM queue WHERE seq = ? {_RETURNING}", (seq,)).fetchall()  # noqa: S608
        self._removed(rows, "evicted")
        for body in bodies:
            self._write_gap(now, body)

    def _write_gap(self, ts: float, body: bytes) -> None:
        now = self._now
        seq = now.seq + 1
        self._db.execute(
            "INSERT INTO queue (seq, kind, pipeline, class, accepted_ts, body, crc) VALUES (?, 'gap', '', ?, ?, ?, ?)",
            (seq, GAP_RANK, ts, body, zlib.crc32(body, seed("") ^ (seq & 0xFFFFFFFF))),
        )
        self._count("", "accepted", 1, len(body))
        self._now = replace(now, seq=seq, rows=now.rows + 1, size=now.size + len(body), gaps=now.gaps + 1)

    def _count(self, pipeline: str, column: str, number: int, size: int) -> None:
        counts = self._counts.get(pipeline)
        if counts is None:
            counts = self._counts[pipeline] = Counter()
        counts[column] += number
        counts["bytes"] += size

    def _write_counts(self) -> None:
        self._db.executemany(
            _COUNT,
            [(pipeline, *(counts[column] for column in _COLUMNS)) for pipeline, counts in self._counts.items()],
        )
