"""From the device's disk to a program that takes results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.config import Config, parse_config
from lisiere.runtime import Runtime
from lisiere.subscriber import Result, Subscriber
from lisiere_sim.broker import Address
from support import tiny
from support.brokers import running_mosquitto

WAIT_S = 30


@pytest.fixture
def broker() -> Iterator[Address]:
    with running_mosquitto("allow_anonymous true\npersistence false") as port:
        yield "127.0.0.1", port


PHOTOS = {"type": "images", "path": "photos"}


def configuration(folder: Path, broker: Address) -> Config:
    if not (folder / "photos").exists():
        tiny.classifier(folder / "trees")
        (folder / "photos").mkdir()
        for at in range(20):
            cv2.imwrite(str(folder / "photos" / f"{at:02}.png"), np.full((10, 10, 3), 10 * at, np.uint8))
    document = {
        "device": "pi-1",
        "pipelines": [{"name": "dock", "source": PHOTOS, "model": "trees"}],
        "transport": {"type": "mqtt", "host": broker[0], "port": broker[1]},
    }
    return parse_config(document, folder)


def test_a_program_that_dies_is_told_again_what_it_had_not_taken(broker: Address, tmp_path: Path) -> None:
    memory = tmp_path / "seen.json"
    first = Subscriber(*broker, client_id="desk", memory=memory)
    first.open()
    Runtime(configuration(tmp_path, broker), SystemClock()).run()
    taken: list[int] = []
    while len(taken) < 8:
        event = first.next(WAIT_S)
        taken += [event.seq] if isinstance(event, Result) else []
    first.close()  # dies while it deals with the eighth: nothing of it is saved
    with Subscriber(*broker, client_id="desk", memory=memory) as second:
        again: list[int] = []
        while 20 not in again:
            event = second.next(WAIT_S)
            assert event is not None
            again += [event.seq] if isinstance(event, Result) else []
    assert again[0] <= taken[-1]  # it may be told again of what it had taken, too: at least once
    assert again == list(range(again[0], 21))
