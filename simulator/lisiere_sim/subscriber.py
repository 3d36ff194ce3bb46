"""The subscriber that counts: what arrived, how often, in what order, and what is missing, by `lisiere.subscriber`.

It speaks to the broker directly, so that the simulated network stands between device and broker only.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from lisiere.clock import parse_ts
from lisiere.subscriber import Event, Link, Missed, Occurrence, Result, Score, Status
from lisiere.subscriber import Subscriber as LibrarySubscriber
from lisiere.subscriber.intervals import Intervals
from lisiere_sim.broker import Address

_NEVER_S = 1e6  # a hole stays one until the end of the run, however long it has settled
_STOP_S = 10.0


@dataclass(slots=True)
class Seen:
    """What arrived from one pipeline.

    Attributes:
        delivered: distinct ids.
        duplicates: messages whose id had been seen before.
        replayed: distinct ids whose first delivery was flagged `replay`.
        disordered: first deliveries with a seq below an earlier one of the same topic.
        evicted: results that gap records say were evicted.
        backends: which backends gave results, with how many each.
        latencies: on-device milliseconds, one a distinct result.
        faults: how many results name which fault of their input, and `named` when the first of them was stamped.
        first: when the first result was stamped; seconds since the epoch.
        newest: the highest seq.
        task: the task of the newest result, and `answer` its `result` object.
    """

    delivered: int = 0
    duplicates: int = 0
    replayed: int = 0
    disordered: int = 0
    evicted: int = 0
    backends: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    latencies: list[float] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    named: dict[str, float] = field(default_factory=dict)
    first: float = math.inf
    newest: int = 0
    task: str = ""
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The counts at one moment.

    Attributes:
        delivered: distinct ids, by pipeline.
        statuses: the states announced on `status`, in order, without what was retained from earlier.
        unreadable: messages that are not what their topic promises.
    """

    delivered: dict[str, int]
    statuses: tuple[str, ...]
    unreadable: int


class Watch:
    """Ranges of seq that somebody waits for.

    Attributes:
        size: how many had not arrived when the watch began.
        done_at: monotonic time when the last of them arrived or was named by a gap record, or None.
    """

    def __init__(self, epoch: str, ranges: list[tuple[int, int]]) -> None:
        self.epoch = epoch
        self.ranges = ranges
        self.size = sum(last - first + 1 for first, last in ranges)
        self.done_at: float | None = None if ranges else time.monotonic()


class Subscriber:
    """Subscribes to everything of one device and counts. All methods may be called from any thread."""

    def __init__(self, prefix: str, device: str) -> None:
        self._prefix = prefix
        self._device = device
        self._changed = threading.Condition()
        self._pipelines: dict[str, Seen] = {}
        self._highest: dict[tuple[str, str, type | None], int] = {}  # epoch, pipeline, topic -> highest first delivery
        self._statuses: list[str] = []
        self._watches: list[Watch] = []
        self._failure: str | None = None
        self._library: LibrarySubscriber | None = None
        self._thread: threading.Thread | None = None

    def start(self, broker: Address) -> None:
        """Connect and subscribe; return once the broker has granted the subscription.

        Raises:
            Retryable: the broker does not answer or refuses.
        """
        library = LibrarySubscriber(*broker, device=self._device, prefix=self._prefix, settle_s=_NEVER_S)
        library.open()
        self._library = library
        self._thread = threading.Thread(target=library.listen, args=[self._take], name="subscriber", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect. Calling it twice does no harm."""
        if self._library is not None and self._thread is not None:
            self._library.close()
            self._thread.join(_STOP_S)

    @property
    def failure(self) -> str | None:
        """Why the subscriber can no longer count, or None."""
        return self._failure

    def snapshot(self) -> Snapshot:
        """Return the counts."""
        with self._changed:
            return self._snapshot()

    def seen(self, pipeline: str) -> Seen:
        """Return what arrived from one pipeline; a copy, but for `latencies`, which only grows."""
        with self._changed:
            found = self._pipelines.get(pipeline)
            if found is None or self._library is None:
                return Seen()
            duplicates = self._library.counts.duplicates[self._device, pipeline]
            return replace(found, backends=dict(found.backends), duplicates=duplicates)

    def holes(self, epoch: str, up_to: int) -> list[int]:
        """Return the seqs of an epoch that neither arrived nor are explained by a gap record.

        Args:
            epoch: the spool's.
            up_to: the highest seq given.
        """
        return [seq for first, last in self._missing(epoch, 1, up_to) for seq in range(first, last + 1)]

    def watch(self, epoch: str, seqs: Iterable[int]) -> Watch:
        """Begin to wait until some results have arrived or been named by a gap record."""
        wanted = Intervals((seq, seq) for seq in seqs).ranges()
        with self._changed:
            watch = Watch(epoch, [hole for first, last in wanted for hole in self._missing(epoch, first, last)])
            self._watches.append(watch)
            return watch

    def wait_for(self, predicate: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the counts satisfy the predicate; return whether they do.

        Also returns when the connection to the broker is lost: what was sent meanwhile would not be counted.
        """
        with self._changed:
            self._settle_watches()  # a gap record that names nothing new ends one, too
            self._changed.wait_for(lambda: self._failure is not None or predicate(self._snapshot()), timeout)
            return predicate(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            {name: seen.delivered for name, seen in self._pipelines.items()},
            tuple(self._statuses),
            self._library.counts.unreadable if self._library else 0,
        )

    def _missing(self, epoch: str, first: int, last: int) -> list[tuple[int, int]]:
        return self._library.holes((self._device, epoch), first, last) if self._library else [(first, last)]

    def _take(self, event: Event) -> None:
        """Count one event, on the library's thread."""
        with self._changed:
            if isinstance(event, Result | Occurrence | Score):
                self._count(event)
            elif isinstance(event, Missed) and event.record is not None:
                for pipeline, count in event.record.counts.items():
                    self._pipelines.setdefault(pipeline, Seen()).evicted += count
            elif isinstance(event, Status) and self._library is not None and not self._library.retained:
                self._statuses.append(event.state)
            elif isinstance(event, Link):
                self._failure = f"The subscriber's connection was lost. {event.why}"
            self._settle_watches()
            self._changed.notify_all()

    def _settle_watches(self) -> None:
        for watch in self._watches:
            if watch.done_at is None and not any(self._missing(watch.epoch, *wanted) for wanted in watch.ranges):
                watch.done_at = time.monotonic()

    def _count(self, result: Result | Occurrence | Score) -> None:
        seen = self._pipelines.setdefault(result.pipeline, Seen())
        seen.delivered += 1
        seen.replayed += result.replay
        kind = type(result) if not result.replay else None  # what is late comes on one topic
        topic = result.epoch, result.pipeline, kind
        if result.seq < self._highest.get(topic, 0):
            seen.disordered += 1
        else:
            self._highest[topic] = result.seq
        if not isinstance(result, Result):
            return
        seen.backends[result.model.backend] += 1
        stamp = parse_ts(result.ts)
        seen.first = min(seen.first, stamp)  # what waited out an outage comes late
        for fault in result.input.faults:
            seen.faults[fault] += 1
            seen.named[fault] = min(seen.named.get(fault, math.inf), stamp)
        latency = result.latency_ms
        seen.latencies.append(latency.preprocess + latency.infer + latency.postprocess)
        if result.seq > seen.newest:  # what was replayed is older than what arrived meanwhile
            seen.newest, seen.task, seen.answer = result.seq, result.task, msgspec.to_builtins(result.result)
