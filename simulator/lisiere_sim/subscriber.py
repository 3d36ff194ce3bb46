"""The subscriber that counts: what arrived, how often, in what order, and what is missing.

It speaks to the broker directly, so that the simulated network stands between device and broker only.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import paho.mqtt.client as paho
from msgspec import Struct

from lisiere.errors import Retryable
from lisiere.sync.topics import Topics
from lisiere_sim.broker import Address

_CONNECT_S = 10.0


class _Model(Struct):
    backend: str


class _Envelope(Struct):
    """What the subscriber needs of a result envelope."""

    id: str
    epoch: str
    seq: int
    pipeline: str
    task: str
    model: _Model
    latency_ms: dict[str, float]
    result: dict[str, Any]
    replay: bool


class _Gap(Struct):
    """What the subscriber needs of a gap record."""

    id: str
    epoch: str
    seq: int
    ranges: list[tuple[int, int]]
    counts: dict[str, int]


class _Status(Struct):
    state: str


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
    """A set of results that somebody waits for.

    Attributes:
        size: how many had not arrived when the watch began.
        done_at: monotonic time when the last of them arrived, or None.
    """

    def __init__(self, epoch: str, missing: set[int]) -> None:
        self.epoch = epoch
        self.missing = missing
        self.size = len(missing)
        self.done_at: float | None = None if missing else time.monotonic()

    def see(self, epoch: str, seq: int) -> None:
        """Strike one result off."""
        if epoch == self.epoch and seq in self.missing:
            self.missing.discard(seq)
            if not self.missing:
                self.done_at = time.monotonic()


class Subscriber:
    """Subscribes to everything of one device and counts. All methods may be called from any thread."""

    def __init__(self, prefix: str, device: str) -> None:
        self._topics = Topics(prefix, device)
        self._changed = threading.Condition()
        self._pipelines: dict[str, Seen] = {}
        self._seqs: dict[str, set[int]] = defaultdict(set)  # epoch -> results seen
        self._explained: dict[str, set[int]] = defaultdict(set)  # epoch -> gap records and what they name
        self._highest: dict[str, tuple[str, int]] = {}  # topic -> epoch and highest first delivery
        self._statuses: list[str] = []
        self._unreadable = 0
        self._watches: list[Watch] = []
        self._failure: str | None = None
        self._client: paho.Client | None = None

    def start(self, broker: Address) -> None:
        """Connect and subscribe; return once the broker has granted the subscription.

        Raises:
            Retryable: the broker does not answer or refuses.
        """
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, clean_session=True, reconnect_on_failure=False)
        granted: list[bool] = []

        def on_connect(_client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                self._fail(f"The broker refuses the subscriber: {reason}.")
            else:
                client.subscribe(f"{self._topics.base}/#", qos=1)

        def on_subscribe(_client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
            with self._changed:
                granted.append(not any(reason.is_failure for reason in reasons))
                self._changed.notify_all()

        def on_disconnect(_client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if self._client is not None:
                self._fail(f"The broker closed the subscriber's connection: {reason}.")

        client.on_connect, client.on_subscribe, client.on_disconnect = on_connect, on_subscribe, on_disconnect
        client.on_message = self._on_message
        self._client = client
        try:
            client.connect(*broker, keepalive=60)
        except OSError as error:
            self._client = None
            raise Retryable(f"The broker {broker[0]}:{broker[1]} cannot be reached: {error}") from error
        client.loop_start()
        with self._changed:
            answered = self._changed.wait_for(lambda: bool(granted or self._failure), _CONNECT_S)
        if not answered or self._failure or not granted[0]:
            why = self._failure or "The broker does not grant the subscription."
            self.stop()
            raise Retryable(why)

    def stop(self) -> None:
        """Disconnect. Calling it twice does no harm."""
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

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
            if found is None:
                return Seen()
            return replace(found, backends=dict(found.backends))

    def holes(self, epoch: str, up_to: int | None = None) -> list[int]:
        """Return the seqs of an epoch that neither arrived nor are explained by a gap record.

        Args:
            epoch: the spool's.
            up_to: the highest seq given; without it, the highest that arrived.
        """
        with self._changed:
            known = self._seqs[epoch] | self._explained[epoch]
            last = up_to if up_to is not None else max(known, default=0)
            return [seq for seq in range(1, last + 1) if seq not in known]

    def watch(self, epoch: str, seqs: Iterable[int]) -> Watch:
        """Begin to wait until some results have arrived or been named by a gap record."""
        with self._changed:
            watch = Watch(epoch, set(seqs) - self._seqs[epoch])
            self._watches.append(watch)
            return watch

    def wait_for(self, predicate: Callable[[Snapshot], bool], timeout: float) -> bool:
        """Wait until the counts satisfy the predicate; return whether they do.

        Also returns when the connection to the broker is lost, since nothing will change any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or predicate(self._snapshot()), timeout)
            return predicate(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            {name: seen.delivered for name, seen in self._pipelines.items()}, tuple(self._statuses), self._unreadable
        )

    def _fail(self, why: str) -> None:
        with self._changed:
            self._failure = why
            self._changed.notify_all()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        kind = message.topic.removeprefix(self._topics.base + "/").partition("/")[0]
        with self._changed:
            try:
                if kind in ("result", "backlog"):
                    self._count(message.topic, msgspec.json.decode(message.payload, type=_Envelope))
                elif kind == "gap":
                    self._explain(msgspec.json.decode(message.payload, type=_Gap))
                elif kind == "status" and not message.retain:
                    self._statuses.append(msgspec.json.decode(message.payload, type=_Status).state)
            except msgspec.DecodeError:
                self._unreadable += 1
            self._changed.notify_all()

    def _count(self, topic: str, envelope: _Envelope) -> None:
        seen = self._pipelines.setdefault(envelope.pipeline, Seen())
        if envelope.seq in self._seqs[envelope.epoch]:
            seen.duplicates += 1
            return
        self._seqs[envelope.epoch].add(envelope.seq)
        seen.delivered += 1
        seen.replayed += envelope.replay
        epoch, highest = self._highest.get(topic, (envelope.epoch, 0))
        if epoch == envelope.epoch and envelope.seq < highest:
            seen.disordered += 1
        else:
            self._highest[topic] = (envelope.epoch, envelope.seq)
        seen.backends[envelope.model.backend] += 1
        seen.latencies.append(sum(envelope.latency_ms.values()))
        if envelope.seq > seen.newest:  # what was replayed is older than what arrived meanwhile
            seen.newest, seen.task, seen.answer = envelope.seq, envelope.task, envelope.result
        for watch in self._watches:
            watch.see(envelope.epoch, envelope.seq)

    def _explain(self, gap: _Gap) -> None:
        explained = self._explained[gap.epoch]
        if gap.seq in explained:
            return  # the same record again
        named = {gap.seq, *(seq for first, last in gap.ranges for seq in range(first, last + 1))}
        explained |= named
        for watch in self._watches:
            for seq in named & watch.missing:
                watch.see(gap.epoch, seq)
        for pipeline, count in gap.counts.items():
            self._pipelines.setdefault(pipeline, Seen()).evicted += count
