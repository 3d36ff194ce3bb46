"""From the device's disk to a program that takes results: batches, acknowledgements of the consumer, and a death."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.config import Config, parse_config
from lisiere.runtime import Runtime
from lisiere.spool import SpoolReader
from lisiere.subscriber import Missed, Result, Subscriber
from lisiere_sim.broker import Address
from support import tiny
from support.brokers import running_mosquitto

WAIT_S = 30


@pytest.fixture
def broker() -> Iterator[Address]:
    with running_mosquitto("allow_anonymous true\npersistence false") as port:
        yield "127.0.0.1", port


PHOTOS = {"type": "images", "path": "photos"}
SILENT = {"type": "socket", "listen": "unix:sensor.sock"}  # goes on for ever and says nothing


def configuration(folder: Path, broker: Address | None, silent: bool = False, **transport: object) -> Config:
    if not (folder / "photos").exists():
        tiny.classifier(folder / "trees")
        tiny.forecaster(folder / "tide")
        (folder / "photos").mkdir()
        for at in range(20):
            cv2.imwrite(str(folder / "photos" / f"{at:02}.png"), np.full((10, 10, 3), 10 * at, np.uint8))
    pipeline = {"source": SILENT, "model": "tide"} if silent else {"source": PHOTOS, "model": "trees"}
    document: dict[str, object] = {"device": "pi-1", "pipelines": [{"name": "dock", **pipeline}]}
    if broker is not None:
        document["transport"] = {"type": "mqtt", "host": broker[0], "port": broker[1], **transport}
    return parse_config(document, folder)


def test_what_waited_comes_in_batches_and_leaves_when_the_program_took_it(
    broker: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Runtime(configuration(tmp_path, None), SystemClock()).run()
    settings = {"backlog_batch_kb": 16, "consumer_ack": True}
    device = Runtime(configuration(tmp_path, broker, silent=True, **settings), SystemClock())
    thread = threading.Thread(target=device.run)
    reader = SpoolReader(tmp_path / "spool")
    with Subscriber(*broker, order="seq", acknowledge=True) as subscriber:
        thread.start()
        try:
            seqs: list[int] = []
            while len(seqs) < 20:
                event = subscriber.next(WAIT_S)
                assert event is not None
                assert not isinstance(event, Missed), event.sentence
                seqs += [event.seq] if isinstance(event, Result) else []
            assert seqs == list(range(1, 21))
            for _ in range(WAIT_S * 5):  # what was taken is told within a second, and deleted then
                if not reader.waiting():
                    break
                subscriber.next(0.2)
            assert reader.waiting() == {}
            assert reader.counts()["dock"].acknowledged == 20
        finally:
            device.stop()
            thread.join(WAIT_S)
            reader.close()


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
