"""What the spool has called accepted is there after `kill -9`, at whatever moment it comes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from lisiere.spool import SpoolReader

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
