"""Local fan-out: results to the other components of the same device, as soon as they are on disk.

It goes on while the cloud is away. It is best effort: what was delivered and deleted before it was read here, or could
not be handed over, is counted and not kept.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import LisiereError
from lisiere.health import worth_logging
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.envelope import seal
from lisiere.sync.topics import Topics

log = logging.getLogger(__name__)

_FETCH_ROWS = 64
_UNDER_WAY_MAX = 16

# Hands one message over; the future ends when that is done, or with an error of our tree.
LocalPublish = Callable[[str, bytes], "Future[Any]"]


class LocalFan:
    """Publishes new results locally. `run` is a unit for a thread of its own, so that it holds nothing up.

    Args:
        device: the device's name.
        topics: the device's topics.
        spool: where new results are.
        open_reader: makes its own reading end of the spool.
        publish: hands a message over without waiting.
        clock: for the stamp of publication.
    """

    def __init__(
        self,
        device: str,
        topics: Topics,
        spool: Spool,
        open_reader: Callable[[], SpoolReader],
        publish: LocalPublish,
        clock: Clock,
    ) -> None:
        self._device = device
        self._topics = topics
        self._spool = spool
        self._open_reader = open_reader
        self._publish = publish
        self._clock = clock
        self._at = spool.committed
        self._wake = threading.Event()
        self._stopping = False
        self._under_way = 0
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Return how many were published, missed (gone before they were read), failed, and too_many at once."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def committed(self) -> None:
        """Hear that there are new results on disk."""
        self._wake.set()

    def stop(self) -> None:
        """End."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Publish what is committed until stopped."""
        while not (self._spool.epoch or self._stopping):  # its disk refuses
            self._wake.wait()
            self._wake.clear()
            self._at = self._spool.committed
        if self._stopping:
            return
        reader = self._open_reader()
        try:
            while not self._stopping:
                self._wake.wait()
                self._wake.clear()
                while not self._stopping and self._at < (newest := self._spool.committed):
                    rows = reader.after(self._at, _FETCH_ROWS, newest)
                    for row in rows:
                        self._count("missed", row.seq - self._at - 1)
                        self._at = row.seq
                        if row.kind != "gap":
                            payload = seal(row, self._device, self._spool.epoch, self._clock.now(), False)
                            self._send(self._topics.live(row.pipeline, row.kind), payload)
                    if not rows:
                        self._count("missed", newest - self._at)
                        self._at = newest
        finally:
            reader.close()

    def _send(self, topic: str, payload: bytes) -> None:
        with self._lock:
            if self._under_way >= _UNDER_WAY_MAX:
                self._counts["too_many"] += 1
                return
            self._under_way += 1
        try:
            answer = self._publish(topic, payload)
        except LisiereError as error:
            self._over(error)
        else:
            answer.add_done_callback(lambda done: self._over(done.exception()))

    def _over(self, error: BaseException | None) -> None:
        with self._lock:
            self._under_way -= 1
            self._counts["published" if error is None else "failed"] += 1
            failed = self._counts["failed"]
        if error is not None and worth_logging(failed):
            log.warning("A result was not published on this device. %s (%d so far)", error, failed)

    def _count(self, what: str, number: int) -> None:
        if number:
            with self._lock:
                self._counts[what] += number
