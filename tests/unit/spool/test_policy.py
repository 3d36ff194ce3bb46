"""The policy against a simple model: whatever is done, every result is accounted for, once."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lisiere.clock import ManualClock
from lisiere.config import Importance, SpoolConfig
from lisiere.spool import SpoolReader, database_file
from lisiere.spool.file import connect
from lisiere.spool.gaps import GapBody, Reason
from lisiere.spool.ledger import RANKS, Batch, Handed, Ledger

ROWS = 100


class Policy(RuleBasedStateMachine):
    """Batches as the writer applies them, and what a simple model says of them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = ManualClock()
        self.accepted: dict[int, tuple[str, int, float | None]] = {}  # seq -> pipeline, class, when it expires
        self.delivered: set[int] = set()
        self.told: dict[int, GapBody] = {}  # gap records that a subscriber has
        self.config = SpoolConfig(path=str(self.folder), max_rows=ROWS, max_mb=1)
        self.open()

    def open(self) -> None:
        self.db = connect(database_file(self.folder), self.clock, None)
        self.ledger = Ledger(self.db, self.config, self.clock)

    def waiting(self) -> dict[int, GapBody | None]:
        found = self.db.execute("SELECT seq, kind, body FROM queue").fetchall()
        return {seq: msgspec.json.decode(body, type=GapBody) if kind == "gap" else None for seq, kind, body in found}

    def apply(self, batch: Batch) -> None:
        before = self.ledger.totals.seq
        for at, (_, pipeline, rank, _, expires, _) in enumerate(batch.rows):
            self.accepted[before + 1 + at] = (pipeline, rank, expires)
        held = {seq for seq, gap in self.waiting().items() if gap is None}
        held |= set(range(before + 1, before + 1 + len(batch.rows)))
        self.ledger.apply(batch)
        left = {seq for seq, gap in self.waiting().items() if gap is None}
        now = self.clock.now()
        away = held - left - set(batch.acknowledged) - {seq for seq, _ in batch.aside}
        expired = {seq for seq in away if (self.accepted[seq][2] or now + 1) <= now}
        evicted = [(self.accepted[seq][1], -seq) for seq in away - expired]
        if evicted:  # lowest class first, oldest first within it
            assert min(evicted) >= max(((self.accepted[seq][1], -seq) for seq in left), default=(-1, 0))
        assert not any((self.accepted[seq][2] or now + 1) <= now for seq in left)

    @initialize(importance=st.sampled_from(sorted(RANKS)), count=st.integers(1, 250))
    def begin(self, importance: Importance, count: int) -> None:
        self.append(importance, count, None, "dock", 10)

    @rule(
        importance=st.sampled_from(sorted(RANKS)),
        count=st.integers(1, 120),
        ttl_s=st.none() | st.integers(1, 100),
        pipeline=st.sampled_from(["dock", "yard"]),
        size=st.sampled_from([10, 100, 30_000]),
    )
    def append(self, importance: Importance, count: int, ttl_s: int | None, pipeline: str, size: int) -> None:
        now = self.clock.now()
        expires = now + ttl_s if ttl_s is not None else None
        body = b'{"x":"%s"}' % (b"y" * size)
        self.apply(Batch([("result", pipeline, RANKS[importance], now, expires, body)] * count, count * len(body)))

    @rule(data=st.data(), aside=st.none() | st.sampled_from(["too_large", "refused", "spool_damaged"]))
    def let_go(self, data: st.DataObject, aside: Reason | None) -> None:
        waiting = self.waiting()
        some = data.draw(st.lists(st.sampled_from(sorted(waiting)), max_size=40)) if waiting else []
        if aside is None:
            self.told |= {seq: gap for seq in some if (gap := waiting[seq]) is not None}
            self.delivered |= {seq for seq in some if waiting[seq] is None}
            self.apply(Batch(acknowledged=some))
        else:
            self.apply(Batch(aside=[(seq, aside) for seq in some if waiting[seq] is None]))

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.apply(Batch())

    @rule()
    def restart(self) -> None:
        before = self.ledger.totals
        self.db.close()
        self.open()
        # What would have expired first may have gone otherwise, which only costs a look.
        assert replace(self.ledger.totals, expiry=None) == replace(before, expiry=None)

    @invariant()
    def everything_is_accounted_for(self) -> None:
        waiting = self.waiting()
        results = Counter(self.accepted[seq][0] for seq, gap in waiting.items() if gap is None)
        reader = SpoolReader(self.folder)
        counts = reader.counts()
        assert reader.waiting() == results
        reader.close()
        assert {name: count.accepted for name, count in counts.items()} == Counter(
            pipeline for pipeline, *_ in self.accepted.values()
        )
        assert sum(count.acknowledged for count in counts.values()) == len(self.delivered)
        gaps = {**self.told, **{seq: gap for seq, gap in waiting.items() if gap is not None}}
        in_gaps = Counter[str]()
        explained = Counter[int]()
        replaced = {seq for gap in gaps.values() for low, high in gap.ranges for seq in range(low, high + 1)}
        for seq, gap in gaps.items():
            if seq not in replaced:
                in_gaps += Counter(gap.counts)
                explained += Counter(seq for low, high in gap.ranges for seq in range(low, high + 1))
                assert gap.exact
        assert in_gaps == Counter({name: count.gone - count.acknowledged for name, count in counts.items()})
        missing = set(self.accepted) - self.delivered - set(waiting)
        assert {seq for seq in explained if seq in self.accepted} == missing
        assert all(explained[seq] == 1 for seq in missing)

    @invariant()
    def the_budget_holds(self) -> None:
        rows, size, gaps = self.db.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0), COALESCE(SUM(kind = 'gap'), 0) FROM queue"
        ).fetchone()
        totals = self.ledger.totals
        assert (rows, size, gaps) == (totals.rows, totals.size, totals.gaps)
        assert rows <= ROWS
        assert size <= 1_000_000
        assert gaps <= 10

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.folder)


TestPolicy = Policy.TestCase
TestPolicy.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    clock = ManualClock()
    db = connect(database_file(tmp_path), clock, None)
    yield Ledger(db, SpoolConfig(path=str(tmp_path), max_rows=2000, max_mb=50), clock)
    db.close()


def test_gap_records_stay_few_though_every_second_row_goes(ledger: Ledger, tmp_path: Path) -> None:
    # Alarms between the metrics, so that no two evicted rows are neighbours; and nothing is ever delivered.
    for _ in range(30):
        row = (RANKS["alarm"], 0.0, None, b'{"x":1}')
        other = (RANKS["metric"], 0.0, None, b'{"x":1}')
        ledger.apply(Batch([("result", "dock", *row), ("result", "yard", *other)] * 100, 200 * 7))
    reader = SpoolReader(tmp_path)
    rows = reader.after(0, 10_000)
    gaps = [msgspec.json.decode(row.body, type=GapBody) for row in rows if row.kind == "gap"]
    counts = reader.counts()
    reader.close()
    assert len(rows) <= 2000
    assert len(gaps) <= 40
    assert sum(gap.counts.get("dock", 0) for gap in gaps) == counts["dock"].evicted
    assert sum(gap.counts.get("yard", 0) for gap in gaps) == counts["yard"].evicted == 3000


@pytest.mark.parametrize("step", [-3e8, 3e8])
def test_setting_the_clock_makes_nothing_older(step: float, tmp_path: Path) -> None:
    class Stepped(ManualClock):
        def monotonic(self) -> float:
            return super().monotonic() + behind

    behind = 0.0
    clock = Stepped()
    db = connect(database_file(tmp_path), clock, None)
    ledger = Ledger(db, SpoolConfig(path=str(tmp_path)), clock)
    ledger.apply(Batch([("result", "dock", 1, clock.now(), clock.now() + 60, b'{"x":1}')], 7))
    clock.advance(step)
    behind = -step  # wall time alone
    ledger.apply(Batch())
    assert ledger.totals.rows == 1
    clock.advance(59)
    ledger.apply(Batch())
    assert ledger.totals.rows == 1
    clock.advance(2)
    ledger.apply(Batch())
    assert ledger.totals.gaps == ledger.totals.rows == 1
    db.close()


def test_evicting_and_expiring_read_no_more_than_they_take(tmp_path: Path) -> None:
    """However many rows wait: every search is by an index or the key, and none sorts."""
    clock = ManualClock()
    db = connect(database_file(tmp_path), clock, None)
    ledger = Ledger(db, SpoolConfig(path=str(tmp_path), max_rows=1000), clock)
    statements: set[str] = set()
    for _ in range(3):
        db.set_trace_callback(statements.add)
        row: Handed = ("result", "dock", 1, clock.now(), clock.now() + 30, b'{"x":1}')
        ledger.apply(Batch([row] * 900, 900 * 7, acknowledged=[3, 5], aside=[(7, "refused")]))
        clock.advance(20)
        db.set_trace_callback(None)
    searches = [text for text in statements if text.startswith(("SELECT", "DELETE"))]
    assert any("expires_ts <=" in text for text in searches)
    assert any("MAX(class)" in text for text in searches)
    assert any("class = 1 AND seq >" in text for text in searches)
    for text in searches:
        steps = [plan[3] for plan in db.execute(f"EXPLAIN QUERY PLAN {text}")]
        assert not [step for step in steps if step.startswith("SCAN queue") and "INDEX" not in step], (text, steps)
        assert "USE TEMP B-TREE FOR ORDER BY" not in steps, (text, steps)
    db.close()
