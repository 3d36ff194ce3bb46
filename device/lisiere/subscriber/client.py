"""The subscriber: events from a broker, each once, with what was missed. One thread iterates; any may close."""

from __future__ import annotations

import contextlib
import logging
import queue
import ssl
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from lisiere.clock import Clock, SystemClock
from lisiere.errors import Rejected, Retryable
from lisiere.health import worth_logging
from lisiere.subscriber import memory
from lisiere.subscriber.book import Book
from lisiere.subscriber.events import Event, Link, Missed, Unreadable
from lisiere.subscriber.link import Broker, Connection, Message
from lisiere.subscriber.reading import Typed, read
from lisiere.subscriber.receipts import Receipts
from lisiere.subscriber.sorter import Sorter
from lisiere.sync.envelope import GapEnvelope, HealthMessage, ResultEnvelope, Sequenced, StatusMessage

log = logging.getLogger(__name__)

_OF_PIPELINES = ("result", "event", "score", "backlog")
_KINDS = (*_OF_PIPELINES, "gap", "status", "health", "metrics")
_HELD_MAX = 10_000  # results of one device that wait for older ones
_SAVE_S = 5.0
_PAUSE_S = 0.05  # at least so long between two looks at what is due


@dataclass(slots=True)
class Counts:
    """What came. `results` and `duplicates` are by (device, pipeline); a duplicate is not handed out again.

    Events and scores count as results, since they are numbered with them.
    """

    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    duplicates: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)  # by reason
    unreadable: int = 0


class Subscriber:
    """Subscribes to devices, and yields what comes: typed, each result once, with what was missed and why.

    Results come at once as they arrive: live ones before the backlog that is older. With `order="seq"` they come in
    the order of `seq` of each device, for which newer ones wait, at most `wait_s`.

    A message is acknowledged to the broker when the next event is asked for (with `order="seq"`, when it came), so
    with a `client_id` a program that dies loses none. What fills memory is bounded: by holes, not by results.

    Args:
        host: the broker's.
        port: the broker's; by default 8883 with TLS and 1883 without.
        device: one device's name, or `+` for all.
        prefix: of the topics, as configured on the devices.
        order: `arrival` or `seq`.
        wait_s: how long a result waits for older ones with `order="seq"`.
        settle_s: after so long without news a hole that nothing explains is told as `Missed`.
        username, password: for the broker.
        tls: True for a connection whose certificate is checked against the system's authorities, or a context.
        client_id: makes the broker keep a session, so that what comes while the subscriber is away waits there.
        memory: a file that keeps what was seen, so that a restart repeats nothing and notices what it missed.
        acknowledge: whether to tell devices which results were taken (`cmd/ack`), for those that wait for it.
        clock: where time comes from.

    Attributes:
        counts: what came so far.
        retained: whether the broker had kept the event that was handed out last from earlier (a status).

    Example:
        >>> from lisiere.subscriber import Missed, Result, Subscriber
        >>> def watch(host: str) -> None:
        ...     with Subscriber(host) as subscriber:
        ...         for event in subscriber:
        ...             if isinstance(event, Result):
        ...                 print(event.pipeline, event.result)
        ...             elif isinstance(event, Missed):
        ...                 print(event.sentence)
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        device: str = "+",
        prefix: str = "lisiere",
        order: Literal["arrival", "seq"] = "arrival",
        wait_s: float = 60.0,
        settle_s: float = 60.0,
        username: str | None = None,
        password: str | None = None,
        tls: bool | ssl.SSLContext = False,
        client_id: str | None = None,
        memory: Path | None = None,
        acknowledge: bool = False,
        clock: Clock | None = None,
    ) -> None:
        context = ssl.create_default_context() if tls is True else tls or None
        broker = Broker(host, port or (8883 if context else 1883), username, password, context, client_id)
        self._base = f"{prefix}/v1/"
        kinds = [f"{kind}/#" if kind in _OF_PIPELINES else kind for kind in _KINDS]
        self._connection = Connection(broker, [f"{self._base}{device}/{kind}" for kind in kinds])
        self._clock = clock or SystemClock()
        self._book = Book(settle_s)
        self._sorter = Sorter(wait_s, _HELD_MAX, self.holes) if order == "seq" else None
        self._receipts = Receipts(self._base, self._connection.publish) if acknowledge else None
        self._memory = memory
        self._saved_at = self._clock.monotonic()
        self._pending: deque[tuple[Event, Message | None]] = deque()
        self._taken: tuple[Event, Message | None] | None = None
        self._closed = False
        self._lock = threading.RLock()  # the sorter asks `holes` from within
        self.retained = False
        self.counts = Counts()

    def __enter__(self) -> Subscriber:
        """Connect; see `open`."""
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Disconnect; what was handed out last counts as taken unless an exception says otherwise."""
        if kind is None:
            self._settle_taken()
        if self._receipts:
            self._receipts.send()
        self.close()
        self._save()

    def open(self) -> None:
        """Connect, and return once the broker has granted the subscription. From then on it connects by itself.

        Raises:
            Retryable: the broker cannot be reached or refuses.
            Rejected: the file `memory` is not a subscriber's.
        """
        if self._memory is not None:
            self._book.load(memory.load(self._memory), self._clock.monotonic())
        self._connection.open()

    def close(self) -> None:
        """Disconnect, and let an iteration end once it has handed out what came. Any thread may call it, twice too."""
        self._connection.close()
        self._closed = True
        with contextlib.suppress(queue.Full):  # then nobody waits for it
            self._connection.inbox.put_nowait(None)

    def __iter__(self) -> Iterator[Event]:
        """Yield events until the subscriber is closed."""
        while (event := self.next()) is not None:
            yield event

    def results(self) -> Iterator[ResultEnvelope]:
        """Yield results alone, until the subscriber is closed."""
        return (event for event in self if isinstance(event, ResultEnvelope))

    def listen(self, handler: Callable[[Event], object]) -> None:
        """Call `handler` with each event on this thread, until the subscriber is closed."""
        for event in self:
            handler(event)

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event; None when there is none within `timeout` seconds, or the subscriber is closed."""
        self._settle_taken()
        until = None if timeout is None else self._clock.monotonic() + timeout
        while not self._pending:
            with self._lock:
                self._look()
            if self._pending:
                break
            left = None if until is None else max(0.0, until - self._clock.monotonic())
            wait = self._patience(left)
            try:
                item = self._connection.inbox.get(timeout=wait, block=not self._closed)
            except queue.Empty:
                if self._closed and self._sorter:
                    self._pending.extend((result, None) for result in self._sorter.flush())
                if self._closed or (wait is not None and wait == left):
                    break
                continue
            with self._lock:
                if isinstance(item, Message):
                    self._receive(item)
                elif isinstance(item, Link):
                    self._relink(item)
        if not self._pending:
            return None
        self._taken = self._pending.popleft()
        event, message = self._taken
        self.retained = message is not None and message.retained
        return event

    def holes(self, key: tuple[str, str], first: int, last: int) -> list[tuple[int, int]]:
        """Return which seqs of a (device, epoch) from `first` to `last` neither came nor were explained or told.

        They are inclusive ranges. Any thread may ask.
        """
        with self._lock:
            return self._book.holes(key, first, last)

    def _patience(self, left: float | None) -> float | None:
        """How long the inbox may be waited for, before something else is due."""
        dues = [
            self._book.due_at(),
            self._sorter.due_at() if self._sorter else None,
            self._receipts.due_at if self._receipts else None,
        ]
        waits = [max(_PAUSE_S, due - self._clock.monotonic()) for due in dues if due is not None]
        return min([*waits, left] if left is not None else waits, default=None)

    def _look(self) -> None:
        """Tell what has settled, release what is in order, and confirm what was taken, as far as they are due."""
        now = self._clock.monotonic()
        for missed in self._book.settled(now):
            self._miss(missed)
        if self._sorter:
            self._pending.extend((result, None) for result in self._sorter.take(now))
        if self._receipts:
            self._receipts.send_due(now)
        if self._memory and now >= self._saved_at + _SAVE_S:
            self._save()

    def _relink(self, link: Link) -> None:
        if not link.connected:
            self._book.away()
        self._pending.append((link, None))

    def _receive(self, message: Message) -> None:
        device, _, rest = message.topic.removeprefix(self._base).partition("/")
        before = len(self._pending)
        try:
            for one in read(rest.partition("/")[0], device, message.payload):
                self._sort_in(one)
        except Rejected as error:
            self.counts.unreadable += 1
            if worth_logging(self.counts.unreadable):
                log.warning(
                    "A message on %s was left out. %s (%d so far)", message.topic, error, self.counts.unreadable
                )
            self._pending.append((Unreadable(topic=message.topic, why=str(error)), None))
        if len(self._pending) == before:
            self._connection.acknowledge(message)  # a duplicate, or held by the sorter
        else:
            self._pending[-1] = (self._pending[-1][0], message)

    def _sort_in(self, message: Typed) -> None:
        now = self._clock.monotonic()
        new = True
        if isinstance(message, Sequenced | GapEnvelope):
            new = self._book.arrive(message, now)
        elif isinstance(message, StatusMessage | HealthMessage):
            self._book.hear(message, now)
        self._announce()
        if isinstance(message, Sequenced):
            self._sort_in_result(message, new, now)
        elif not isinstance(message, GapEnvelope):
            self._pending.append((message, None))
        elif new and (missed := self._book.explain(message, now)) is not None:
            self._miss(missed)

    def _sort_in_result(self, result: Sequenced, new: bool, now: float) -> None:
        place = result.device, result.pipeline
        if not new:
            self.counts.duplicates[place] += 1
            if self._receipts:  # its acknowledgement was lost
                self._receipts.add(result, now)
            return
        self.counts.results[place] += 1
        if self._sorter:
            self._sorter.put(result, now)
        else:
            self._pending.append((result, None))

    def _announce(self) -> None:
        """Tell of epochs that began; what was held of the ones before comes first."""
        while self._book.news:
            begun = self._book.news.pop(0)
            if self._sorter:
                self._pending.extend((result, None) for result in self._sorter.flush(begun.device))
            self._pending.append((begun, None))

    def _miss(self, missed: Missed) -> None:
        self.counts.missed[missed.reason] += missed.count
        self._pending.append((missed, None))

    def _settle_taken(self) -> None:
        """The event that was handed out last has been dealt with, since the next is asked for."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        event, message = taken
        if isinstance(event, Sequenced) and self._receipts:
            self._receipts.add(event, self._clock.monotonic())
        if message is not None:
            self._connection.acknowledge(message)

    def _save(self) -> None:
        if self._memory is None:
            return
        self._saved_at = self._clock.monotonic()
        untaken = [self._taken[0]] if self._taken else []
        untaken += [event for event, _ in self._pending] + list(self._sorter.held() if self._sorter else ())
        without: dict[tuple[str, str], list[int]] = {}
        for event in untaken:
            if isinstance(event, Sequenced):
                without.setdefault((event.device, event.epoch), []).append(event.seq)
        try:
            memory.save(self._memory, self._book.to_remember(without))
        except Retryable as error:
            log.warning("%s A restart will repeat what came since.", error)
