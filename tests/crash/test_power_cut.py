"""What the spool has called accepted is there after the power went, whatever was not synced being gone.

`kill -9` cannot show this: what a process wrote, the kernel keeps. So the writer here runs on a disk that forgets
(disk.c), and the same test finds losses when the spool is made to leave out its syncs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.errors import Permanent
from lisiere.spool import Spool, SpoolReader, database_file
from support.disk import Disk

SEED = int(os.environ.get("LISIERE_SEED", "5"))

# Appends numbered bodies without pause, and says `c SEQ` after each commit and `a SEQ` before it lets go of rows.
# The second argument, where it is not FULL, is what each transaction is made to run with.
WRITER = """
import sqlite3, sys, time
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.spool import Spool

folder, synchronous, max_rows, life = sys.argv[1:]

class Careless(sqlite3.Connection):
    begun = False

    def execute(self, sql, *rest):
        if self.begun and sql.startswith("BEGIN"):
            super().execute(f"PRAGMA synchronous = {synchronous}")
        return super().execute(sql, *rest)

if synchronous != "FULL":
    connect = sqlite3.connect
    sqlite3.connect = lambda *rest, **more: connect(*rest, **more, factory=Careless)

def say(text):
    sys.stdout.write(text + "\\n")
    sys.stdout.flush()

config = SpoolConfig(path=folder, linger_ms=0.1, max_rows=int(max_rows))
spool = Spool(config, SystemClock(), lambda seq: say(f"c {seq}"))
while not spool.epoch:  # the disk refused; it is tried again
    time.sleep(0.001)
say(f"e {spool.epoch}")
Careless.begun = True  # an empty spool that is gone would be a cheap loss
done = 0
for number in range(10**9):
    body = b'{"life": %s, "number": %d, "x": "%s"}' % (life.encode(), number, b"y" * (number * 37 % 2000))
    spool.append("dock", body)
    if int(life) % 3 and number % 20 == 19:
        spool.flush()  # else each commit holds a thousand rows
    if number % 40 == 39 and spool.committed - 60 > done:
        upto = spool.committed - 60
        say(f"a {upto}")
        spool.acknowledge(range(done + 1, upto + 1))
        done = upto
"""


# Lets go of 12,000 rows by sixteens, never more than a thousand rows ahead of the disk.
RELEASER = """
import sys, time
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.spool import Spool, store

folder, release_rows = sys.argv[1:]
if release_rows:
    store._RELEASE_ROWS, store._RELEASE_S = int(release_rows), 1000.0
spool = Spool(SpoolConfig(path=folder), SystemClock())
for first in range(1, 12001, 16):
    sys.stdout.write(f"a {first + 15}\\n")
    sys.stdout.flush()
    spool.acknowledge(range(first, first + 16))
    while not release_rows and len(spool.released) > 1024:
        time.sleep(0.001)
spool.close()
"""


@dataclass
class Word:
    """What the writer said before the power went."""

    epoch: str = ""
    committed: int = 0
    released: int = 0
    bodies: dict[int, bytes] = field(default_factory=dict)  # what has been seen on disk once may not change

    def take(self, line: str) -> None:
        """Hear one line."""
        what, _, rest = line.strip().partition(" ")
        if what == "e":
            assert self.epoch in ("", rest), f"A new epoch {rest}: the spool {self.epoch} is gone."
            self.epoch = rest
        elif what == "c":
            self.committed = int(rest)
        elif what == "a":
            self.released = max(self.released, int(rest))


class Loss(AssertionError):
    """The spool did not keep its word."""


def live_once(disk: Disk, word: Word, rng: random.Random, synchronous: str, max_rows: int, life: int) -> None:
    """Run the writer until the power goes at a change that chance says, and start the machine again."""
    disk.arm(rng.randrange(1, rng.choice((60, 600, 2500))))
    live(disk, word, disk.root / "spool", synchronous, max_rows, life)
    disk.restore(rng)


def live(
    disk: Disk, word: Word, spool: Path, synchronous: str = "FULL", max_rows: int = 1_000_000, life: int = 0
) -> None:
    """Run the writer until the power goes, and hear what it says until then."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(spool), synchronous, str(max_rows), str(life)],
        stdout=subprocess.PIPE,
        env=disk.environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = process.stdout.readlines()
    for line in lines:
        if line.endswith("\n"):
            word.take(line)
    # A disk that refuses is refused at the start.
    assert process.returncode == -9 or disk.failed, f"The writer ended with {process.returncode} before the power went."


def check(folder: Path, word: Word) -> None:
    """Hold the spool against what the writer said of it."""
    spool = Spool(SpoolConfig(path=str(folder)), SystemClock())
    assert spool.close()
    if not word.epoch:
        return
    assert spool.epoch == word.epoch, f"The spool {word.epoch} is gone."
    reader = SpoolReader(folder)
    rows = {row.seq: row for row in reader.after(0, 10_000_000)}
    counts, waiting = reader.counts(), sum(reader.waiting().values())
    highest = reader.highest
    reader.close()
    assert highest >= word.committed, f"The spool ends at {highest}; {word.committed} were accepted."
    told: set[int] = set()
    for row in rows.values():
        if row.kind == "gap":
            told.update(seq for first, last in json.loads(row.body)["ranges"] for seq in range(first, last + 1))
    lost = [seq for seq in range(word.released + 1, word.committed + 1) if seq not in rows and seq not in told]
    assert not lost, f"{len(lost)} accepted results are gone, first {lost[0]}, of {word.committed}."
    for seq, row in rows.items():
        assert word.bodies.setdefault(seq, row.body) == row.body, f"The row {seq} is another one now."
    word.bodies = {seq: body for seq, body in word.bodies.items() if seq in rows}
    orders = [
        (b["life"], b["number"]) for b in (json.loads(rows[s].body) for s in sorted(rows) if rows[s].kind == "result")
    ]
    assert orders == sorted(set(orders)), "The rows are not in the order in which they came."
    total = counts.get("dock")
    if total is not None:
        assert total.accepted == total.acknowledged + total.evicted + waiting
    with sqlite3.connect(database_file(folder)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def cut_power(
    tmp_path: Path, cuts: int, seed: int, synchronous: str = "FULL", max_rows: int = 1_000_000, every: int = 0
) -> None:
    """Run the writer and cut its power so many times, a fresh spool each ten, checking after each."""
    rng = random.Random(seed)
    for first in range(0, cuts, 10):
        root = tmp_path / str(first)
        root.mkdir()
        disk, word = Disk(root, tmp_path), Word()
        disk.fail(every, "EIO")
        try:
            for life in range(first, min(cuts, first + 10)):
                live_once(disk, word, rng, synchronous, max_rows, life)
                check(root / "spool", word)
        except (AssertionError, Permanent, sqlite3.Error) as error:
            raise Loss(f"LISIERE_SEED={SEED}, run {seed}, cut {life + 1}: {error}") from error
        finally:
            disk.close()
        shutil.rmtree(root)


def repeated(root: Path, control: Path, cut: int, release_rows: str = "") -> int:
    """Run the releaser until the power goes; return how many rows it had let go of and are there again."""
    root.mkdir()
    spool = Spool(SpoolConfig(path=str(root / "spool")), SystemClock())
    for number in range(12_000):
        spool.append("dock", b'{"life": 0, "number": %d}' % number)
    assert spool.close()
    disk, word = Disk(root, control), Word(spool.epoch, spool.committed)
    try:
        disk.arm(cut)
        command = [sys.executable, "-c", RELEASER, str(root / "spool"), release_rows]
        told = subprocess.run(command, stdout=subprocess.PIPE, env=disk.environment, text=True, check=False)
        for line in told.stdout.splitlines(keepends=True):
            if line.endswith("\n"):
                word.take(line)
        disk.restore(Merciless())
    finally:
        disk.close()
    check(root / "spool", word)
    reader = SpoolReader(root / "spool")
    there = len(reader.after(0, 20_000, up_to=word.released))
    reader.close()
    return there


def test_a_power_cut_repeats_no_more_than_was_acknowledged_since_the_last_commit(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    most = max(repeated(tmp_path / str(run), tmp_path, rng.randrange(60, 600)) for run in range(2))
    print(f"at most {most} came twice")  # noqa: T201
    assert 0 < most <= 1024 + 2 * 16, "None: nothing was let go of without a sync, so that this shows nothing."
    assert repeated(tmp_path / "late", tmp_path, 600, release_rows="100000") > 1024 + 2 * 16


@pytest.mark.parametrize("max_rows", [1_000_000, 300], ids=["roomy", "full"])
def test_nothing_accepted_is_lost_at_a_power_cut(max_rows: int, tmp_path: Path) -> None:
    cut_power(tmp_path, 5, SEED + max_rows, max_rows=max_rows)


class Merciless(random.Random):
    """Chance at its worst: of what was not synced nothing is kept, be it data or the entry of a folder."""

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def randrange(self, *_: Any) -> int:
        return 0


def test_the_spool_s_own_folder_outlasts_a_power_cut(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk, word = Disk(root, tmp_path), Word()
    disk.arm(400)
    live(disk, word, root / "a" / "spool", life=1)
    disk.restore(Merciless())
    disk.close()
    assert word.committed
    check(root / "a" / "spool", word)


def test_the_same_test_finds_losses_without_syncs(tmp_path: Path) -> None:
    with pytest.raises(Loss):
        cut_power(tmp_path, 40, SEED, synchronous="OFF")


@pytest.mark.soak
@pytest.mark.parametrize("max_rows", [1_000_000, 300], ids=["roomy", "full"])
def test_nothing_accepted_is_lost_at_a_hundred_power_cuts(max_rows: int, tmp_path: Path) -> None:
    cut_power(tmp_path, 100, SEED + 1000 + max_rows, max_rows=max_rows)


@pytest.mark.soak
def test_nothing_accepted_is_lost_when_syncs_fail_before_the_power_goes(tmp_path: Path) -> None:
    cut_power(tmp_path, 10, SEED + 2000, every=400)


@pytest.mark.soak
@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
def test_the_same_long_test_finds_losses_with_fewer_syncs(synchronous: str, tmp_path: Path) -> None:
    losses = 0
    for run in range(20):
        folder = tmp_path / str(run)
        folder.mkdir()
        try:
            cut_power(folder, 5, SEED + run, synchronous)
        except Loss:
            losses += 1
    assert losses >= 10, f"Only {losses} of 20 runs lost something."
