"""The drain: from the spool to the broker, and out of the spool on its PUBACK.

At most `window` messages are unacknowledged, and none leaves sooner than the pace allows. Live results go first, on
`result/…`; what waited out an outage follows beside them on `backlog/…`, with a share of its own, so that neither
starves.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from lisiere import __version__
from lisiere.clock import Clock, rfc3339
from lisiere.errors import Rejected, Retryable
from lisiere.health import worth_logging
from lisiere.settings.links import LinkConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.awaited import Awaited
from lisiere.sync.connection import Connection, Inbox, Terms
from lisiere.sync.draft import Draft, Drafter
from lisiere.sync.envelope import AckAnswer, AckCommand, StatusMessage
from lisiere.sync.pace import Pace
from lisiere.sync.suspects import Suspects
from lisiere.sync.topics import Topics
from lisiere.sync.transports import Lost, Transport, Will
from lisiere.timeline import Timeline

log = logging.getLogger(__name__)

_UNBOUNDED = LinkConfig(publishes_per_s=0, kib_per_s=0)
_ASIDE_MAX = 16  # health, metrics and replies that wait to be sent; a further one is not taken
# Commands that were refused are asked for again after this: behind a classic nucleus without a cloud results can be
# delivered, but nothing can be subscribed to.
_LISTEN_S = 20.0


class Drain:
    """Delivers a spool. `run` is one connection's life; the supervisor runs it again.

    Args:
        device: the device's name.
        spool: what to deliver.
        open_reader: makes the drain's own reading end of the spool.
        open_transport: makes a fresh transport for each connection.
        settings: how fast, in which order, and until when a result is kept; without them there is no limit on speed.
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
        settings: LinkConfig = _UNBOUNDED,
        aws_topics: Mapping[str, str] | None = None,
        received: Callable[[str, bytes], None] = lambda _topic, _payload: None,
        timeline: Timeline | None = None,
    ) -> None:
        self._device = device
        self._topics = topics
        self._timeline = timeline or Timeline(clock)
        self._spool = spool
        self._clock = clock
        self._open_reader = open_reader
        self._open_transport = open_transport
        self._settings = settings
        self._aws_topics = aws_topics or {}
        self._epoch = spool.epoch
        self._suspects = Suspects()
        self._awaited = Awaited(settings.consumer_ack_s, clock) if settings.consumer_ack else None
        self._terms = Terms(
            spool,
            clock,
            settings,
            Pace(settings.publishes_per_s, settings.kib_per_s * 1024, clock),
            self._suspects,
            self._awaited,
            received,
            self._tell_denied,
        )
        self._inbox: Inbox = deque()
        self._transport: Transport | None = None
        self._aside: deque[Draft] = deque()
        self._connection: Connection | None = None
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
        self._rouse()

    def send(self, topic: str, payload: bytes, qos: int = 0) -> bool:
        """Send what is worth something only now (health, metrics, replies); return whether it will be sent.

        The drain's own thread sends it, before any result and within the pace.
        """
        if self._connection is None or len(self._aside) >= _ASIDE_MAX:
            return False
        self._aside.append(Draft(topic, payload, qos))
        self._rouse()
        return True

    def acknowledge(self, payload: bytes) -> AckAnswer:
        """Let go of what a consumer says that it has, by the command `ack`.

        Raises:
            Rejected: it is not such a command, is of another spool, or nobody waits for consumers here.
        """
        if self._awaited is None:
            raise Rejected("`consumer_ack` is not switched on.")
        try:
            command = msgspec.json.decode(payload, type=AckCommand)
        except msgspec.DecodeError as error:
            raise Rejected(
                f'An acknowledgement is JSON like {{"id": "…", "epoch": "…", "ranges": [[1, 9]]}}: {error}.'
            ) from error
        if command.epoch != self._spool.epoch:
            raise Rejected(f"The epoch is {self._spool.epoch}.")
        seqs = self._awaited.acknowledged(command.ranges)
        self._spool.acknowledge(seqs)
        self._rouse()  # there is room to send more
        return AckAnswer(acknowledged=len(seqs))

    def finish(self) -> None:
        """Deliver what the spool holds, then end."""
        self._finishing = True
        self._rouse()

    def stop(self, farewell: bool = True) -> None:
        """End now; what is not acknowledged stays in the spool. Without a farewell nobody hears of it."""
        self._farewell = farewell
        self._stopping = True
        self._rouse()

    def renew(self) -> None:
        """Give the connection up for a new one, since what it was refused may be allowed now."""
        self._inbox.append(Lost("The connection is renewed."))
        self._rouse()

    def run(self) -> None:
        """Connect and deliver until told to end.

        Raises:
            Retryable: the broker cannot be reached, went away, or does not acknowledge.
            Permanent: the transport's configuration cannot work.
        """
        if self._stopping or (self._finishing and self._delivered):
            return
        inbox: Inbox = deque()
        self._inbox = inbox
        self._aside.clear()
        transport = self._transport = self._open_transport()
        # A disk that refused at the start holds no message up: what is worth something only now goes meanwhile.
        reader = self._open_reader() if self._spool.epoch else None
        try:
            transport.connect(Will(self._topics.status, self._status("offline").payload), inbox.append)
            self._aside.append(self._status("online"))
            drafter = self._drafter(self._same_spool(reader.epoch if reader is not None else ""))
            connection = self._connection = Connection(self._terms, transport, reader, drafter, self._aside)
            try:
                self._deliver(connection, inbox)
            except Retryable:
                connection.settle(inbox)
                if connection.proven:
                    self._suspects.lost(connection.rows_under_way)
                raise
            finally:
                connection.tell_sent()
            if self._farewell:
                connection.farewell(inbox, self._status("stopped"))
        finally:
            self._connection = self._transport = None
            transport.close()
            if reader is not None:
                reader.close()

    def _same_spool(self, epoch: str) -> str:
        """Return the epoch; what is remembered of rows ends with the one that they were of."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._suspects.clear()
            if self._awaited is not None:
                self._awaited.clear()
        return epoch

    def _rouse(self) -> None:
        """Have the drain's thread look at what is new."""
        if (transport := self._transport) is not None:
            transport.wake()

    def _drafter(self, epoch: str) -> Drafter:
        return Drafter(self._device, self._topics, epoch, self._clock, self._settings, self._aws_topics, self._timeline)

    @property
    def _delivered(self) -> bool:
        """Whether nothing is left to send. What consumers have yet to acknowledge is not waited for."""
        return self._spool.waiting <= (len(self._awaited) if self._awaited is not None else 0)

    def _deliver(self, connection: Connection, inbox: Inbox) -> None:
        pause = connection.fill()  # the birth message comes first
        hears, asked = self._listen(connection.transport), self._clock.monotonic()
        while not self._stopping and not (self._finishing and self._delivered and not self._aside):
            connection.check()
            connection.take(connection.next_events(inbox, pause))
            if not hears and self._clock.monotonic() - asked > _LISTEN_S:
                hears, asked = self._listen(connection.transport), self._clock.monotonic()
            pause = connection.fill()
            if self._finishing and not connection.rows_under_way:
                self._spool.hurry()  # what is waited for is that nothing is left on disk

    def _listen(self, transport: Transport) -> bool:
        """Ask for commands, and return whether they will come; if not, results are delivered all the same."""
        try:
            transport.subscribe(self._topics.commands)
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

    def _status(self, state: Literal["online", "offline", "stopped"]) -> Draft:
        message = StatusMessage(
            device=self._device,
            state=state,
            epoch=self._spool.epoch,
            ts=rfc3339(self._clock.now()),
            version=__version__,
        )
        return Draft(self._topics.status, msgspec.json.encode(message), retain=True)
