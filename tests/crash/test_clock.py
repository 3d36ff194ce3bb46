"""The wall clock is set by ten years, passes midnight and a leap second, or is not there: nothing is lost for it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import parse_ts
from support.preload import SharedPage, library
from support.stage import TOPIC, Stage, check, stage

YEAR = 365.25 * 86_400
TIME_OK, TIME_INS, TIME_OOP, TIME_WAIT, TIME_ERROR = 0, 1, 3, 4, 5


class Wall:
    """The device's wall clock."""

    def __init__(self, folder: Path) -> None:
        file = folder / "clock.page"
        self._page = SharedPage(file, "offset_ns", "state")
        self.environment = os.environ | {"LD_PRELOAD": str(library("clock")), "LISIERE_CLOCK_CONTROL": str(file)}

    def set(self, moment: float, state: int = TIME_OK) -> None:
        """Set it to so many seconds since the epoch."""
        self._page["state"] = state
        self._page["offset_ns"] = int((moment - time.time()) * 1e9)

    def now(self) -> float:
        return time.time() + self._page["offset_ns"] / 1e9

    def close(self) -> None:
        self._page.close()


@pytest.fixture
def wall(tmp_path: Path) -> Iterator[Wall]:
    wall = Wall(tmp_path)
    yield wall
    wall.close()


def live(staged: Stage, wall: Wall, number: int = 20) -> list[dict[str, Any]]:
    """Return so many live results that were stamped from now on by the clock as it is."""
    found: list[dict[str, Any]] = []
    started, at = wall.now(), len(staged.ear.heard)
    last = at + 20_000
    while len(found) < number:
        assert at < last, "The device does not stamp by its clock."
        assert staged.ear.wait(at + 1, 30), "The device delivers nothing more."
        topic, payload = staged.ear.heard[at]
        at += 1
        if topic == TOPIC + "result/hum":
            message = json.loads(payload)
            if started <= parse_ts(message["published_ts"]) <= wall.now():
                found.append(message)
    return found


def test_the_clock_is_set_by_ten_years_both_ways_and_meets_a_leap_second(wall: Wall, tmp_path: Path) -> None:
    midnight = datetime(2027, 1, 1, tzinfo=timezone.utc).timestamp()
    with stage(tmp_path, 200, wall.environment) as staged:
        wall.set(0.0, TIME_ERROR)  # 1970: a machine without a battery, before anything has set its clock
        staged.host.start()
        assert {message["ts_quality"] for message in live(staged, wall)} == {"unsynced"}
        wall.set(midnight - 10 * YEAR)
        live(staged, wall)
        wall.set(midnight - 0.2, TIME_INS)
        live(staged, wall, 60)  # past midnight
        wall.set(midnight - 0.1, TIME_OOP)  # the last second once more
        live(staged, wall, 40)
        wall.set(wall.now(), TIME_WAIT)
        for moment in (midnight + 10 * YEAR, midnight - 10 * YEAR, midnight):
            wall.set(moment)
            live(staged, wall)
        assert staged.host.end() == 0, staged.log
        check(staged)


def test_what_waited_out_a_start_without_a_clock_is_delivered_in_order(wall: Wall, tmp_path: Path) -> None:
    with stage(tmp_path, 200, wall.environment) as staged:
        wall.set(0.0, TIME_ERROR)
        staged.host.start()
        live(staged, wall)
        staged.broker.kill()
        staged.ear.last_words()
        staged.host.kill()
        wall.set(10 * YEAR)
        staged.broker.start()
        staged.ear.connect()
        staged.host.start()
        live(staged, wall)
        assert staged.host.end() == 0, staged.log
        check(staged)
