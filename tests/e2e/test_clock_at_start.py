"""A device that starts without the time: what it made before leaves with the true time once that is known."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from lisiere.clock import SystemClock, TsQuality
from lisiere.config import Config, parse_config
from lisiere.runtime import Runtime
from lisiere.schema import json_schema
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport
from support import tiny

YEARS_10 = 10 * 365.25 * 86_400


class WrongClock(SystemClock):
    """This machine's clock, as far off as a test wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.off = 0.0
        self.said: TsQuality = "synced"

    def now(self) -> float:
        return super().now() + self.off

    def quality(self) -> TsQuality:
        return self.said


@pytest.fixture
def config(tmp_path: Path) -> Config:
    tiny.classifier(tmp_path / "trees")
    (tmp_path / "photos").mkdir()
    for at in range(6):
        cv2.imwrite(str(tmp_path / "photos" / f"{at}.png"), np.full((10, 10, 3), 40 * at, np.uint8))
    source = {"type": "images", "path": "photos"}
    return parse_config(
        {"device": "pi-1", "pipelines": [{"name": "dock", "source": source, "model": "trees"}]}, tmp_path
    )


def arrived(broker: MemoryBroker, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(message.payload) for message in broker.of(f"lisiere/v1/pi-1/{kind}/dock")]
    for message in found:
        jsonschema.validate(message, json_schema("result"))
    return sorted(found, key=lambda message: int(message["seq"]))


def stamp(message: dict[str, Any]) -> float:
    return datetime.fromisoformat(message["ts"].replace("Z", "+00:00")).timestamp()


@pytest.mark.parametrize("off", [-YEARS_10, YEARS_10, -1.7e9])
def test_what_waited_is_restamped_and_what_comes_after_is_right(config: Config, off: float) -> None:
    clock = WrongClock()
    clock.off, clock.said = off, "unsynced"
    began = time.time()
    Runtime(config, clock).run()  # no transport: all of it waits
    ended = time.time()
    clock.off, clock.said = 0.0, "synced"
    broker = MemoryBroker()
    Runtime(config, clock, lambda: MemoryTransport(broker)).run()
    everything = sorted(arrived(broker, "backlog") + arrived(broker, "result"), key=lambda message: int(message["seq"]))
    waited, later = everything[:6], everything[6:]
    assert [message["ts_quality"] for message in waited] == ["corrected"] * 6
    assert all(began - 0.01 <= stamp(message) <= ended + 0.01 for message in waited)
    assert [message["ts_quality"] for message in later] == ["synced"] * 6
    stamps = [stamp(message) for message in everything]
    assert stamps == sorted(stamps)


def test_what_leaves_before_the_time_is_known_says_so(config: Config) -> None:
    clock = WrongClock()
    clock.off, clock.said = -YEARS_10, "unsynced"
    broker = MemoryBroker()
    Runtime(config, clock, lambda: MemoryTransport(broker)).run()
    everything = arrived(broker, "backlog") + arrived(broker, "result")
    assert {message["ts_quality"] for message in everything} == {"unsynced"}
    assert {message["clock"]["boot"] for message in everything} == {clock.boot()}
    # Whoever knows the true offset can put it right.
    now = clock.monotonic()
    assert all(now - 60 < message["clock"]["mono_s"] <= now for message in everything)


def test_a_clock_that_is_wrong_stops_nothing(config: Config) -> None:
    clock = WrongClock()
    for off, said in ((YEARS_10, "unsynced"), (-YEARS_10, "unsynced"), (0.0, "synced")):
        clock.off, clock.said = off, said  # type: ignore[assignment]
        Runtime(config, clock).run()
    broker = MemoryBroker()
    Runtime(config, clock, lambda: MemoryTransport(broker)).run()
    everything = arrived(broker, "backlog") + arrived(broker, "result")
    assert sorted(message["seq"] for message in everything) == list(range(1, 25))
    assert {message["ts_quality"] for message in everything} == {"corrected", "synced"}
