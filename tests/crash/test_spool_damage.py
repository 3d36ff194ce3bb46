"""A spool's files cut short or with bits flipped, anywhere: an exact prefix, or a quarantine with an alarm.

Never is a row delivered that is not what was accepted, and never is a number given twice under one epoch.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import msgspec
import pytest

from lisiere.clock import ManualClock
from lisiere.config import SpoolConfig
from lisiere.spool import GapBody, Spool, SpoolReader

ROWS = 300
SEEDS = 40


def opened(folder: Path) -> Spool:
    return Spool(SpoolConfig(path=str(folder), linger_ms=0), ManualClock())


def body(seq: int) -> bytes:
    return b'{"pipeline":"dock","n":%d,"x":"%s"}' % (seq, random.Random(seq).randbytes(300).hex().encode())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool as a power cut leaves it: database and log, of many commits; the first 50 rows are delivered."""
    live, cut = tmp_path_factory.mktemp("live"), tmp_path_factory.mktemp("cut") / "spool"
    spool = opened(live)
    spool._db.execute("PRAGMA wal_autocheckpoint = 100")
    for seq in range(1, ROWS + 1):
        spool.append("dock", body(seq))
        if seq % 10 == 0:
            assert spool.flush(10)
        if seq == 100:
            spool.acknowledge(range(1, 51))
    shutil.copytree(live, cut)
    spool.close()
    (cut / "spool.db-shm").unlink()
    return cut


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8, 200])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file: Path, rng: random.Random) -> None:
    with file.open("r+b") as handle:
        handle.truncate(rng.randrange(file.stat().st_size))


def zero(file: Path, rng: random.Random) -> None:
    """Pages that were never written."""
    with file.open("r+b") as handle:
        handle.seek(rng.randrange(file.stat().st_size) // 512 * 512)
        handle.write(bytes(512 * rng.randrange(1, 20)))


@pytest.mark.parametrize("harm", [flip, truncate, zero])
@pytest.mark.parametrize("name", ["spool.db", "spool.db-wal"])
def test_what_is_left_is_a_prefix_or_an_alarm_and_never_a_lie(harm, name, whole, tmp_path) -> None:  # type: ignore[no-untyped-def]
    alarms = 0
    for seed in range(SEEDS):
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        harm(folder / name, random.Random(seed))
        epoch, promised = (whole / "spool.mark").read_text().split()
        spool = opened(folder)
        told: list[int] = []
        reader = SpoolReader(folder, told.extend)
        rows = [row for row in reader.after(0, 10_000) if row.kind == "result"]
        for row in rows:
            document = msgspec.json.decode(row.body)
            number = document.pop("n")
            former = document.pop("formerly", f"{spool.epoch}:{row.seq}")
            assert former == f"{epoch}:{number}", "a row under another's number"
            assert document == {"pipeline": "dock", "x": msgspec.json.decode(body(number))["x"]}
        if spool.epoch == epoch:  # nothing was noticed at the start: all is there, but for rows that are told
            assert spool.damage is None
            assert spool.committed == int(promised) == ROWS
            assert sorted([*(row.seq for row in rows), *told]) == list(range(51, ROWS + 1))
            alarms += bool(told)
            spool.set_aside(told, "spool_damaged")
            assert spool.flush(10)
        else:
            alarms += 1
            assert spool.damage is not None
            first = reader.after(0, 1)[0]
            assert first.seq > ROWS, "a number that had been given is given again"
            gap = msgspec.json.decode(first.body, type=GapBody)
            assert isinstance(gap.damage, msgspec.Struct)
            assert gap.damage.salvaged == len(rows)
            assert list(folder.glob("*.damaged-*"))
            saved = {msgspec.json.decode(row.body)["n"] for row in rows}
            named = {seq for low, high in gap.damage.ranges for seq in range(low, high + 1)}
            assert not saved & named
        counts = reader.counts().get("dock")
        assert counts is None or counts.accepted - counts.gone == reader.waiting().get("dock", 0)
        reader.close()
        assert spool.close()
        shutil.rmtree(folder)
    assert alarms, "this harm never showed"
