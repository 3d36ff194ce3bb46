"""The drain: from the spool to the broker, and out of the spool on its PUBACK.

At most `window` messages are unacknowledged. Live results go first, on `result/…`; what waited out an outage follows
beside them on `backlog/…`, with a share of the window of its own, so that neither starves.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from lisiere import __version__
from lisiere.clock import Clock, rfc3339
from lisiere.errors import Retryable
from lisiere.health import worth_logging
from lisiere.spool import Row, Spool, SpoolReader
from lisiere.sync.aws_dlr import aws_dlr_message
from lisiere.sync.envelope import StatusMessage, restamp, seal
from lisiere.sync.topics import Topics
from lisiere.sync.transports import Acked, Denied, Event, Lost, Received, Refused, Transport, Will
from lisiere.timeline import Timeline

log = logging.getLogger(__name__)

_FETCH_ROWS = 64
_STATUS = -1  # stands for the status message among the seqs under way
_FAREWELL_S = 2.0
# Commands that were refused are asked for again after this: behind a classic nucleus without a cloud results can be
# delivered, but nothing can be subscribed to.
_LISTEN_S = 20.0
_DENIED_S = 60.0  # how long a connection goes on while some topics are not allowed, before they are tried again


class Drain:
    """Delivers a spool. `run` is one connection's life; the supervisor runs it again.

    Args:
        device: the device's name.
        spool: what to deliver.
        open_reader: makes the drain's own reading end of the spool.
        open_transport: makes a fresh transport for each connection.
        window: how many messages may be unacknowledged.
        ack_timeout_s: a message unacknowledged for longer means that the connection is dead.
        aws_topics: pipeline -> topic, of those whose results leave in the form of AWS's sample component.
        timeline: puts the time of what waited right.
        received: called on the drain's thread with the topic and payload of each command; must return at once.
    """

    def __init__(
        self,
        device: str,
        topics: Topics,
        spool: Spool,
        open_reader: Callable[[], SpoolReader],
        open_transport: Callable[[], Transport],
        clock: Clock,
        window: int = 16,
        ack_timeout_s: float = 20.0,
        aws_topics: Mapping[str, str] | None = None,
        received: Callable[[str, bytes], None] = lambda _topic, _payload: None,
        timeline: Timeline | None = None,
    ) -> None:
        self._terms = _Terms(
            device,
            topics,
            spool,
            clock,
            window,
            ack_timeout_s,
            aws_topics or {},
            received,
            self._tell_denied,
            timeline or Timeline(clock),
        )
        self._spool = spool
        self._open_reader = open_reader
        self._open_transport = open_transport
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._connection: _Connection | None = None
        self._finishing = False
        self._stopping = False
        self._farewell = True
        self._unheard = 0
        self._denials = 0

    @property
    def connected(self) -> bool:
        """Whether the other end takes messages: it has acknowledged the birth message."""
        connection = self._connection
        return connection is not None and connection.proven

    @property
    def denial(self) -> str | None:
        """Why some messages may not be sent on this connection, or None where all may."""
        connection = self._connection
        return connection.denial if connection is not None else None

    def committed(self, _seq: int) -> None:
        """Hear from the spool that a commit is on disk."""
        self._inbox.put(None)

    def send(self, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Send what is worth something only now (health, metrics, replies); return whether it was handed over."""
        connection = self._connection
        if connection is None:
            return False
        try:
            connection.transport.publish(topic, payload, qos=qos)
        except Retryable:
            return False
        return True

    def finish(self) -> None:
        """Deliver what the spool holds, then end."""
        self._finishing = True
        self._inbox.put(None)

    def stop(self, farewell: bool = True) -> None:
        """End now; what is not acknowledged stays in the spool. Without a farewell nobody hears of it."""
        self._farewell = farewell
        self._stopping = True
        self._inbox.put(None)

    def renew(self) -> None:
        """Give the connection up for a new one, since what it was refused may be allowed now."""
        self._inbox.put(Lost("The connection is renewed."))

    def run(self) -> None:
        """Connect and deliver until told to end.

        Raises:
            Retryable: the broker cannot be reached, went away, or does not acknowledge.
            Permanent: the transport's configuration cannot work.
        """
        if self._stopping or (self._finishing and self._spool.waiting == 0):
            return
        inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._inbox = inbox
        transport = self._open_transport()
        reader = self._open_reader()
        try:
            transport.connect(Will(self._terms.topics.status, self._status("offline")), inbox.put)
            connection = _Connection(self._terms, transport, reader)
            connection.publish_status(self._status("online"))
            self._connection = connection
            hears, asked = self._listen(transport), self._terms.clock.monotonic()
            while not self._stopping and not (self._finishing and self._spool.waiting == 0):
                connection.fill()
                connection.check()
                connection.take(connection.next_events(inbox))
                if not hears and self._terms.clock.monotonic() - asked > _LISTEN_S:
                    hears, asked = self._listen(transport), self._terms.clock.monotonic()
            if self._farewell:
                connection.farewell(inbox, self._status("stopped"))
        finally:
            self._connection = None
            transport.close()
            reader.close()

    def _listen(self, transport: Transport) -> bool:
        """Ask for commands, and return whether they will come; if not, results are delivered all the same."""
        try:
            transport.subscribe(self._terms.topics.commands)
        except Retryable as error:
            self._unheard += 1
            if worth_logging(self._unheard):
                log.warning("Commands cannot be received. %s (%d so far)", error, self._unheard)
            return False
        return True

    def _tell_denied(self, why: str) -> None:
        self._denials += 1
        if worth_logging(self._denials):
            log.warning("%s The other messages go on. (%d so far)", why, self._denials)

    def _status(self, state: Literal["online", "offline", "stopped"]) -> bytes:
        return msgspec.json.encode(
            StatusMessage(
                device=self._terms.device,
                state=state,
                epoch=self._spool.epoch,
                ts=rfc3339(self._terms.clock.now()),
                version=__version__,
            )
        )


@dataclass(frozen=True, slots=True)
class _Terms:
    """What holds for every connection."""

    device: str
    topics: Topics
    spool: Spool
    clock: Clock
    window: int
    ack_timeout_s: float
    aws_topics: Mapping[str, str]
    received: Callable[[str, bytes], None]
    tell_denied: Callable[[str], None]
    timeline: Timeline


class _Connection:
    """What is known for the length of one connection: cursors, and what is under way."""

    def __init__(self, terms: _Terms, transport: Transport, reader: SpoolReader) -> None:
        self._terms = terms
        self.transport = transport
        self._reader = reader
        # Whatever is on disk by now has waited out an outage or a restart.
        self._boundary = self._live = terms.spool.committed
        self._backlog_at = 0
        self._backlog: deque[Row] = deque()
        self._backlog_done = False
        self._under_way: dict[int, tuple[int, float, str]] = {}  # token -> seq, when sent, pipeline; oldest first
        self._backlog_under_way = 0
        self._began = terms.clock.monotonic()
        self.proven = False
        self.denial: str | None = None  # why the last message was that may not be sent
        self.denied: set[str] = set()  # pipelines whose topics are not allowed; their rows wait for another connection

    def fill(self) -> None:
        """Publish as much as the window allows: live first, but always some backlog."""
        window = self._terms.window - self._terms.spool.releasing
        reserve = 0 if self._backlog_done else max(1, window // 4) - self._backlog_under_way
        room = window - len(self._under_way) - max(0, reserve)
        newest = self._terms.spool.committed
        if room > 0 and newest > self._live:
            rows = self._reader.after(self._live, room, newest, self.denied)
            for row in rows:
                self._publish(row, replay=False)
            self._live = rows[-1].seq if len(rows) == room else newest
        while not self._backlog_done and len(self._under_way) < window:
            row_or_none = self._next_backlog()
            if row_or_none is None:
                break
            self._publish(row_or_none, replay=True)

    def check(self) -> None:
        """Ask whether the connection is still worth keeping, although some topics are not allowed.

        Raises:
            Retryable: nothing can be delivered, or what was denied is to be tried again.
        """
        if not self.denied:
            return
        # What gets something through says more by its health than a new connection each second would deliver.
        idle = not self._under_way and not self.proven
        if idle or self._terms.clock.monotonic() - self._began > _DENIED_S:
            raise Retryable(self.denial or "It is not allowed.")

    def next_events(self, inbox: queue.SimpleQueue[Event | None]) -> list[Event]:
        """Wait for something to happen, and return all that has.

        Raises:
            Retryable: nothing has been acknowledged for too long.
        """
        clock, timeout = self._terms.clock, self._terms.ack_timeout_s
        events: list[Event | None] = []
        wait = min(timeout, _DENIED_S) if self.denied else timeout
        if self._under_way:
            _, sent, _ = next(iter(self._under_way.values()))
            wait = sent + timeout - clock.monotonic()
            if wait <= 0 and inbox.empty():
                raise Retryable(f"The broker has not acknowledged a message for {timeout:g} s.")
        try:
            events.append(inbox.get(timeout=max(wait, 0.0)))
            while True:
                events.append(inbox.get_nowait())
        except queue.Empty:
            pass
        return [event for event in events if event is not None]

    def take(self, events: list[Event]) -> None:
        """Let rows go that are acknowledged or can never be delivered, and pass commands on.

        Raises:
            Retryable: the connection was lost.
        """
        done: list[int] = []
        lost: Lost | None = None
        for event in events:
            if isinstance(event, Acked):
                seq, _ = self._settled(event.token)
                if seq != _STATUS:
                    done.append(seq)
                if not self.proven:
                    self.proven = True
                    log.info("Connected; %d messages wait.", self._terms.spool.waiting)
            elif isinstance(event, Refused):
                seq, _ = self._settled(event.token)
                if seq == _STATUS:
                    log.warning("A status or reply message was not sent. %s", event.why)
                else:
                    log.warning("The message %d is set aside. %s", seq, event.why)
                    self._terms.spool.set_aside([seq], event.reason)
            elif isinstance(event, Denied):
                seq, pipeline = self._settled(event.token)
                self.denial = event.why
                if seq != _STATUS:
                    self.denied.add(pipeline)
                if seq == _STATUS or self.proven:  # else `check` tells it
                    self._terms.tell_denied(event.why)
            elif isinstance(event, Received):
                self._terms.received(event.topic, event.payload)
            else:
                lost = event
        if done:
            self._terms.spool.acknowledge(done)
        if lost is not None:
            raise Retryable(lost.why)

    def _settled(self, token: int) -> tuple[int, str]:
        """Return which row a token stood for, and of which pipeline; it is not under way any more."""
        seq, _, pipeline = self._under_way.pop(token, (_STATUS, 0.0, ""))
        if seq != _STATUS:
            self._backlog_under_way -= seq <= self._boundary
        return seq, pipeline

    def publish_status(self, payload: bytes) -> None:
        """Publish the retained status."""
        token = self.transport.publish(self._terms.topics.status, payload, qos=1, retain=True)
        self._under_way[token] = (_STATUS, self._terms.clock.monotonic(), "")

    def farewell(self, inbox: queue.SimpleQueue[Event | None], payload: bytes) -> None:
        """Say that the device stops on purpose, and wait a moment for what is under way."""
        self.publish_status(payload)
        clock = self._terms.clock
        deadline = clock.monotonic() + _FAREWELL_S
        while self._under_way and (left := deadline - clock.monotonic()) > 0:
            try:
                event = inbox.get(timeout=left)
            except queue.Empty:
                break
            if event is not None:
                self.take([event])

    def _next_backlog(self) -> Row | None:
        while self._backlog and self._backlog[0].pipeline in self.denied:
            self._backlog.popleft()
        if not self._backlog:
            rows = self._reader.after(self._backlog_at, _FETCH_ROWS, self._boundary, self.denied)
            if not rows:
                self._backlog_done = True
                return None
            self._backlog_at = rows[-1].seq
            self._backlog.extend(rows)
        return self._backlog.popleft()

    def _publish(self, row: Row, replay: bool) -> None:
        terms = self._terms
        row = restamp(row, terms.timeline)
        if row.kind == "gap":
            topic = terms.topics.gap
        else:
            topic = terms.topics.backlog(row.pipeline) if replay else terms.topics.result(row.pipeline)
        payload = seal(row, terms.device, terms.spool.epoch, terms.clock.now(), replay)
        if row.kind == "result" and row.pipeline in terms.aws_topics:
            topic, payload = terms.aws_topics[row.pipeline], aws_dlr_message(row.body)
        token = self.transport.publish(topic, payload)
        self._under_way[token] = (row.seq, terms.clock.monotonic(), row.pipeline)
        self._backlog_under_way += replay
