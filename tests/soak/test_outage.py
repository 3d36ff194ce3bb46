"""The slow form of an outage: three days of results while nobody listens, in flat memory, and all of it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from lisiere.clock import parse_ts
from lisiere.spool import SpoolReader
from support import REPOSITORY
from support.brokers import free_port
from support.preload import SharedPage, library
from support.stage import TOPIC, check, configuration, stage

pytestmark = pytest.mark.soak

ROWS = int(os.environ.get("LISIERE_ROWS", "500000"))
HOURS = 72
PER_S = 2500  # what the drain is allowed; at 80 a second half a million take an hour and three quarters


def test_three_days_wait_in_flat_memory_and_arrive_at_the_configured_rate(tmp_path: Path) -> None:
    accumulate(tmp_path)
    limits: dict[str, float] = {}
    if "publishes_per_s" in (REPOSITORY / "docs" / "contract" / "config.schema.json").read_text():
        limits = {"publishes_per_s": float(PER_S), "kib_per_s": 0.0}
    with stage(tmp_path, 100, transport=limits) as staged:
        started = time.monotonic()
        staged.host.start()
        at = 0
        while not (staged.ear.heard[at:] and staged.ear.heard[at][0] == TOPIC + "result/hum"):
            assert staged.ear.wait(at + 2, 60)
            at += 1
        first = time.monotonic() - started
        device = psutil.Process(staged.host.pid)
        memory = most = device.memory_info().rss
        while sum(1 for topic, _ in staged.ear.heard if topic == TOPIC + "backlog/hum") < ROWS:
            assert staged.ear.wait(len(staged.ear.heard) + PER_S, 60), "The drain stands still."
            most = max(most, device.memory_info().rss)
        drained = time.monotonic() - started
        assert staged.host.end() == 0, staged.log
        accepted = check(staged)
        busiest = in_one_second(staged.ear.heard)
    print(  # noqa: T201 - the figures of docs/TESTING.md
        f"{ROWS} rows: first inference after {first:.1f} s, drained in {drained:.0f} s, at most {busiest} in a second, "
        f"memory +{(most - memory) / 1e6:.1f} MB while draining, {accepted} accepted in all"
    )
    assert first < 5
    assert most - memory < 20e6
    if limits:
        assert busiest <= PER_S
        assert ROWS / drained > 0.8 * PER_S


def accumulate(folder: Path) -> None:
    """Let a device make its rows while no broker is there, its wall clock going through three days."""
    wall = SharedPage(folder / "clock.page", "offset_ns", "state")
    environment = os.environ | {
        "LD_PRELOAD": str(library("clock")),
        "LISIERE_CLOCK_CONTROL": str(folder / "clock.page"),
    }
    config = configuration(folder, free_port(), 0, rows=8 * ROWS)
    process = subprocess.Popen([sys.executable, "-m", "lisiere", "run", str(config)], env=environment)
    try:
        device = psutil.Process(process.pid)
        early = late = made = 0
        while made < ROWS:
            time.sleep(0.5)
            assert process.poll() is None
            made = accepted_in(folder / "spool")
            wall["offset_ns"] = int(min(1.0, made / ROWS) * HOURS * 3600 * 1e9)
            late = device.memory_info().rss
            if made > ROWS // 10 and not early:
                early = late
    finally:
        process.kill()
        process.wait(30)
        wall.close()
    print(f"memory +{(late - early) / 1e6:.1f} MB while {made} rows came in {HOURS} h")  # noqa: T201
    assert early
    assert late - early < 20e6


def accepted_in(spool: Path) -> int:
    """Return how many results a spool has accepted; none where it is not there yet."""
    try:
        reader = SpoolReader(spool)
    except Exception:  # noqa: BLE001 - it is being made
        return 0
    counts = reader.counts().get("hum")
    reader.close()
    return counts.accepted if counts else 0


def in_one_second(heard: list[tuple[str, bytes]]) -> int:
    """Return the most results that were published within a second, by their own stamps."""
    stamps = []
    for topic, payload in heard:
        if topic.endswith("/hum"):
            message: dict[str, Any] = json.loads(payload)
            stamps.append(parse_ts(message["published_ts"]))
    most = first = 0
    for last, stamp in enumerate(stamps):
        while stamps[first] <= stamp - 1:
            first += 1
        most = max(most, last - first + 1)
    return most
