"""The slow form of an outage: hours of results while nobody listens, in flat memory, and all of them afterwards."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.errors import Retryable
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.drain import Drain
from lisiere.sync.topics import Topics
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport

pytestmark = pytest.mark.soak

ROWS = 200_000
BODY = b'{"x": "' + b"y" * 600 + b'"}'


def test_two_hundred_thousand_results_wait_in_flat_memory_and_arrive(tmp_path: Path) -> None:
    broker = MemoryBroker(online=False)
    spool = Spool(SpoolConfig(path=str(tmp_path)), SystemClock(), lambda seq: drain.committed(seq))
    topics = Topics("lisiere", "pi-1")
    drain = Drain("pi-1", topics, spool, lambda: SpoolReader(tmp_path), lambda: MemoryTransport(broker), SystemClock())
    process = psutil.Process()
    for _ in range(ROWS // 10):
        spool.append("dock", BODY)
    spool.flush()
    before = process.memory_info().rss
    for _ in range(ROWS - ROWS // 10):
        spool.append("dock", BODY)
    spool.flush()
    with pytest.raises(Retryable):
        drain.run()
    assert process.memory_info().rss - before < 20e6
    broker.online = True
    drain.finish()
    runner = threading.Thread(target=drain.run)
    runner.start()
    runner.join(600)
    assert not runner.is_alive()
    assert len(broker.of(topics.backlog("dock"))) == ROWS
    assert spool.waiting == 0
    spool.close()
