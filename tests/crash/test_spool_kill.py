"""What the spool has called accepted is there after `kill -9`, at whatever moment it comes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.spool import Counts, Spool, SpoolReader

KILLS = 2

# Appends without pause, and says after each commit up to which seq all is accepted.
WRITER = """
import sys
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.spool import Spool

def accepted(seq):
    sys.stdout.write(f"{seq}\\n")
    sys.stdout.flush()

spool = Spool(SpoolConfig(path=sys.argv[1], linger_ms=1), SystemClock(), accepted)
while True:
    for number in range(20):
        spool.append("dock", b'{"x": "' + b"y" * 500 + b'"}')
    spool.acknowledge([spool.committed - 40])
"""

# Lets go of a thousand rows by sixteens, and says so; the kill comes before any of them is deleted.
RELEASER = """
import sys
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.spool import Spool, store

store._RELEASE_ROWS, store._RELEASE_S = 10**9, 1000.0
spool = Spool(SpoolConfig(path=sys.argv[1]), SystemClock())
for number in range(1000):
    spool.append("dock", b'{"x": "' + b"y" * 500 + b'"}')
spool.flush()
for first in range(1, 1001, 16):
    spool.acknowledge(range(first, min(first + 16, 1001)), {"dock": 16})
    print(first + 15, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_writer_keeps_its_word(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    promised = 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 60)):
            promised = int(process.stdout.readline())
        process.kill()
        for line in process.stdout:  # what it had said before it died
            if line.endswith("\n"):
                promised = int(line)
        process.stdout.close()
        process.wait(10)
        reader = SpoolReader(tmp_path)
        counts = reader.counts()["dock"]
        seqs = [row.seq for row in reader.after(0, 1_000_000)]
        reader.close()
        assert counts.accepted >= promised, "something that was accepted is gone"
        assert len(seqs) == counts.accepted - counts.acknowledged
        assert seqs == sorted(set(seqs))
        assert seqs[-1] == counts.accepted


@pytest.mark.parametrize("seed", range(KILLS))
def test_what_was_acknowledged_does_not_come_again_after_a_kill(seed: int, tmp_path: Path) -> None:
    lots = random.Random(seed).randrange(1, 62)
    command = [sys.executable, "-c", RELEASER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    told = [int(process.stdout.readline()) for _ in range(lots)]
    process.kill()
    told += [int(line) for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.stdin.close()
    process.wait(10)
    released = min(told[-1], 1000)
    before = SpoolReader(tmp_path)
    assert before.waiting() == {"dock": 1000}, "Something was deleted before the kill, so that this shows nothing."
    before.close()
    spool = Spool(SpoolConfig(path=str(tmp_path)), SystemClock())
    reader = SpoolReader(tmp_path)
    seqs = [row.seq for row in reader.after(0, 2000)]
    counts = reader.counts()["dock"]
    reader.close()
    spool.close()
    assert set(range(max(told[-1] + 17, 1), 1001)) <= set(seqs) <= set(range(released + 1, 1001))
    assert counts == Counts(1000, 1000 - len(seqs), sent=1000 - len(seqs))
