"""The shadow: at a bounded rate, of a bounded size, and quiet where there is no shadow manager."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lisiere.clock import ManualClock
from lisiere.errors import Retryable
from lisiere.greengrass.shadow import Shadow, shadow_document
from lisiere.ipc import Environment

GOOD = {"state": "accepted", "why": ""}


class Manager:
    """A shadow manager as far as it is asked here."""

    def __init__(self) -> None:
        self.documents: list[dict[str, Any]] = []
        self.there = True
        self.asked = 0
        self.environment = Environment("/s", "token", thing="thing-1")

    def update_shadow(self, _name: str, document: bytes) -> None:
        self.asked += 1
        if not self.there:
            raise Retryable("There is none.")
        self.documents.append(json.loads(document)["state"]["reported"])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def manager() -> Manager:
    return Manager()


def state(version: str = "1", **pipelines: Any) -> dict[str, Any]:
    return {"version": version, "pipelines": pipelines, "configuration": GOOD}


def test_changes_are_reported_not_more_often_than_every_five_seconds(clock: ManualClock, manager: Manager) -> None:
    shadow = Shadow(manager, clock)  # type: ignore[arg-type]
    shadow.report(state("1"), {})
    shadow.report(state("2"), {})
    shadow.report(state("3"), {})
    assert [document["version"] for document in manager.documents] == ["1"]
    clock.advance(5)
    shadow.report(state("3"), {})
    shadow.report(state("3"), {})
    assert [document["version"] for document in manager.documents] == ["1", "3"]


def test_figures_alone_are_reported_once_a_minute(clock: ManualClock, manager: Manager) -> None:
    shadow = Shadow(manager, clock)  # type: ignore[arg-type]
    for second in range(130):
        shadow.report(state(), {"rows": second})
        clock.advance(1)
    assert [document["spool"]["rows"] for document in manager.documents] == [0, 60, 120]


def test_without_a_manager_it_asks_once_an_hour_or_when_told_to(
    clock: ManualClock, manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    manager.there = False
    shadow = Shadow(manager, clock)  # type: ignore[arg-type]
    for _ in range(100):
        shadow.report(state(), {})
        clock.advance(30)
    assert manager.asked == 1
    assert len(caplog.records) == 1
    shadow.again()
    shadow.report(state(), {})
    assert manager.asked == 2
    clock.advance(3600)
    manager.there = True
    shadow.report(state(), {})
    assert len(manager.documents) == 1


def test_a_document_fits_into_a_shadow_whatever_runs() -> None:
    part = {"model": "m" * 100, "digest": "sha256:" + "a" * 64, "state": "failed", "why": "because " * 1000}
    many = {
        **state(),
        "delivery": {"state": "failing", "why": "because " * 1000},
        "pipelines": {f"p{at}": part for at in range(64)},
    }
    document = shadow_document(many, {"rows": 1})
    assert len(document) < 7000
    reported = json.loads(document)["state"]["reported"]
    assert len(reported["pipelines"]) + reported["pipelines_left_out"] == 64
    assert all(len(pipeline["why"]) == 200 for pipeline in reported["pipelines"].values())
    assert len(many["pipelines"]) == 64
