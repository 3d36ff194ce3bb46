"""Local fan-out: new results in order, holding nothing up, with what did not get through counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.errors import Retryable
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.local import LocalFan
from lisiere.sync.topics import Topics


class Rig:
    def __init__(self, folder: Path) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[Future[Any]] = []
        self.failure: Exception | None = None
        self.arrived = threading.Condition()
        self.spool = Spool(SpoolConfig(path=str(folder), linger_ms=0), SystemClock(), self.committed)
        self.spool.append("dock", b'{"old":1}')
        assert self.spool.flush(10)
        reader = lambda: SpoolReader(folder)  # noqa: E731
        self.fan = LocalFan("pi", Topics("lisiere", "pi"), self.spool, reader, self.publish, SystemClock())
        self.thread = threading.Thread(target=self.fan.run)

    def committed(self, _seq: int) -> None:
        if hasattr(self, "fan"):
            self.fan.committed()

    def publish(self, topic: str, payload: bytes) -> Future[Any]:
        with self.arrived:
            self.published.append((topic, json.loads(payload)))
            self.arrived.notify_all()
        if self.failure is not None:
            raise self.failure
        self.answers.append(Future())
        return self.answers[-1]

    def append(self, count: int) -> None:
        for at in range(count):
            self.spool.append("dock", b'{"x":%d}' % at)
        assert self.spool.flush(10)

    def wait(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.published) >= count, 10)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "spool")
    yield rig
    rig.fan.stop()
    if rig.thread.ident is not None:
        rig.thread.join(10)
        assert not rig.thread.is_alive()
    rig.spool.close()


def test_new_results_go_out_in_order_as_their_envelopes(rig: Rig) -> None:
    rig.thread.start()
    rig.append(3)
    rig.wait(3)
    assert [(topic, message["seq"], message["x"]) for topic, message in rig.published] == [
        ("lisiere/v1/pi/result/dock", at + 2, at) for at in range(3)
    ]
    for answer in rig.answers:
        answer.set_result(None)
    assert rig.fan.counts() == {"published": 3}


def test_what_has_been_delivered_and_deleted_before_is_missed(rig: Rig) -> None:
    rig.append(5)
    rig.spool.acknowledge([2, 3, 6])
    assert rig.spool.flush(10)
    rig.fan.committed()
    rig.thread.start()
    rig.wait(2)
    rig.append(1)
    rig.wait(3)
    assert [message["seq"] for _, message in rig.published] == [4, 5, 7]
    assert rig.fan.counts()["missed"] == 3


def test_more_than_can_be_under_way_is_let_go(rig: Rig) -> None:
    rig.append(40)
    rig.thread.start()
    rig.wait(16)
    rig.fan.stop()
    rig.thread.join(10)
    assert len(rig.published) == 16
    assert rig.fan.counts() == {"too_many": 24}


def test_failures_are_counted_and_said_ever_more_rarely(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.failure = Retryable("It is not allowed.")
    rig.append(20)
    rig.thread.start()
    rig.wait(20)
    rig.fan.stop()
    rig.thread.join(10)
    assert rig.fan.counts() == {"failed": 20}
    assert len(caplog.records) == 2
