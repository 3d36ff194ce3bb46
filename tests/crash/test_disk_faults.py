"""The disk refuses every n-th write: inference goes on, health tells it, and every result is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.disk import Disk
from support.ear import Ear
from support.stage import TOPIC, check, stage

ERRORS = ("ENOSPC", "EIO", "EROFS")


class Reports:
    """The health messages that the subscriber has heard."""

    def __init__(self, ear: Ear) -> None:
        self._ear = ear
        self._at = 0

    def wait(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the next one that is as wanted."""
        while self._ear.wait(self._at + 1, 30):
            topic, payload = self._ear.heard[self._at]
            self._at += 1
            if topic == TOPIC + "health" and wanted(message := json.loads(payload)):
                found: dict[str, Any] = message
                return found
        raise AssertionError("Health does not tell it.")


def results(message: dict[str, Any]) -> int:
    """How many results the pipeline had made."""
    return int(message["pipelines"]["hum"]["counters"]["results"])


def refuse(folder: Path, cases: list[tuple[int, str]]) -> None:
    """Run a device through all cases, then hold what was heard against its spool."""
    (folder / "spool").mkdir()
    disk = Disk(folder / "spool", folder)
    rows = max(200_000, 24_000 * len(cases))  # half a minute's for each case, which takes some seconds
    with stage(folder, 200, disk.environment, rows=rows) as staged:
        staged.host.start()
        reports = Reports(staged.ear)
        reports.wait(lambda message: message["spool_failure"] is None)
        for every, error in cases:
            disk.fail(every, error)
            told = reports.wait(lambda message: message["spool_failure"] is not None)
            assert told["state"] == "degraded"
            made = results(told)
            reports.wait(lambda message, made=made: results(message) > made)  # type: ignore[misc]
            assert disk.failed > 0
            disk.fail(0, error)
            reports.wait(lambda message: message["spool_failure"] is None)
        assert staged.host.end() == 0, staged.log
        accepted = check(staged)
        last = [json.loads(payload) for topic, payload in staged.ear.heard if topic == TOPIC + "health"][-1]
        assert results(last) == accepted, "Results were made that were neither accepted nor counted as lost."
    disk.close()


def test_a_disk_that_is_full_at_the_start_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    disk = Disk(tmp_path / "spool", tmp_path)
    disk.fail(1, "ENOSPC")
    with stage(tmp_path, 600, disk.environment) as staged:
        staged.host.start()
        heard, reports = staged.ear.heard, Reports(staged.ear)
        told = reports.wait(lambda message: message["pipelines"]["hum"]["counters"].get("spool_unavailable", 0) > 0)
        assert told["state"] == "degraded"
        assert "cannot be used" in told["spool_failure"]
        assert results(told) == 1024, "What has no room in memory is refused, and counted."
        disk.fail(0, "ENOSPC")
        reports.wait(lambda message: message["spool_failure"] is None)
        # Results come by a connection that is made for the spool; a last word sent before it is there would be lost.
        reports.wait(lambda _: any(topic.startswith((TOPIC + "result", TOPIC + "backlog")) for topic, _ in heard))
        assert staged.host.end() == 0, staged.log
        accepted = check(staged)
        last = [json.loads(payload) for topic, payload in staged.ear.heard if topic == TOPIC + "health"][-1]
        assert results(last) == accepted > 1024
    disk.close()


def test_every_nth_write_fails_and_nothing_is_unaccounted_for(tmp_path: Path) -> None:
    refuse(tmp_path, [(1, "ENOSPC"), (2, "EROFS"), (7, "EIO")])


@pytest.mark.soak
@pytest.mark.parametrize("error", ERRORS)
def test_for_every_n(error: str, tmp_path: Path) -> None:
    refuse(tmp_path, [(every, error) for every in range(1, 41)])
