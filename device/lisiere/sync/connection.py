"""One connection of the drain: what goes next, what is under way, and what becomes of it."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from lisiere.clock import Clock
from lisiere.errors import Retryable
from lisiere.settings.links import LinkConfig
from lisiere.spool import Row, Spool, SpoolReader
from lisiere.sync.awaited import Awaited
from lisiere.sync.draft import Draft, Drafter
from lisiere.sync.pace import Pace
from lisiere.sync.suspects import SKIPPED_AFTER, Suspects
from lisiere.sync.transports import Acked, Denied, Event, Lost, Received, Refused, Transport

log = logging.getLogger(__name__)

Inbox = deque[Event]  # what the transport has told; the oldest first

_FETCH_ROWS = 64
_FAREWELL_S = 2.0
_STALE_S = 1e-3  # the stamp of publication has milliseconds
_DENIED_S = 60.0  # how long a connection goes on while some topics are not allowed, before they are tried again


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every connection.

    Attributes:
        awaited: what a consumer has yet to acknowledge; None where the transport's acknowledgement is enough.
        received: called with the topic and payload of each command; must return at once.
        tell_denied: called with why a message may not be sent.
    """

    spool: Spool
    clock: Clock
    settings: LinkConfig
    pace: Pace
    suspects: Suspects
    awaited: Awaited | None
    received: Callable[[str, bytes], None]
    tell_denied: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message under way, and since when."""

    draft: Draft
    at: float


class Connection:
    """What is known for the length of one connection: cursors, and what is under way.

    Args:
        reader: None where the spool could not be opened yet.
        drafter: puts the rows that `reader` gives into messages.
        aside: what goes before any row: status, health, metrics, replies. Others may append to it.
    """

    def __init__(
        self, terms: Terms, transport: Transport, reader: SpoolReader | None, drafter: Drafter, aside: deque[Draft]
    ) -> None:
        self._terms = terms
        self.transport = transport
        self._reader = reader
        self._drafter = drafter
        self._aside = aside
        window = terms.settings.window
        self._window = window if transport.window is None else min(window, transport.window)
        # Whatever is on disk by now has waited out an outage or a restart.
        self._boundary = self._live_at = terms.spool.committed
        self._late_at = 0
        self._live: deque[Row] = deque()
        self._late: deque[Row] = deque()
        self._late_done = reader is None
        self._heads: dict[bool, Draft] = {}  # late or live -> the draft that is next
        self._credit = 0.0  # of the backlog: above 1, it is its turn
        self._under_way: dict[int, _Sent] = {}  # by token; oldest first
        self._busy: set[int] = set()  # seqs under way
        self._sent: Counter[str] = Counter()  # results by pipeline, since the spool was told
        self._trial = False  # whether what is under way must be alone
        self._batching = True
        self._began = terms.clock.monotonic()
        self.proven = False
        self.denial: str | None = None  # why the last message was that may not be sent
        self.denied: set[str] = set()  # pipelines whose topics are not allowed; their rows wait for another connection

    @property
    def rows_under_way(self) -> frozenset[int]:
        """The seqs of what is sent and not acknowledged."""
        return frozenset(self._busy)

    def fill(self) -> float | None:
        """Publish as much as the window and the pace allow; return after how many seconds the pace allows more."""
        if self._terms.awaited is not None and (overdue := self._terms.awaited.overdue()):
            log.warning("No consumer has acknowledged %d messages in time; they are sent again.", len(overdue))
            self._rewind(min(overdue))
        while (draft := self._next()) is not None:
            if wait := self._terms.pace.take(draft.size):
                return wait
            # One that had to wait says when it leaves, and not when it was put together.
            waited = draft.rows and self._terms.clock.monotonic() - draft.made > _STALE_S
            self._publish(self._drafter.anew(draft) if waited else draft)
        return None

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

    def next_events(self, inbox: Inbox, most_s: float | None = None) -> list[Event]:
        """Wait for something to happen, for `most_s` seconds at most, and return all that has.

        Raises:
            Retryable: nothing has been acknowledged for too long.
        """
        clock, timeout = self._terms.clock, self._terms.settings.ack_timeout_s
        wait = min(timeout, _DENIED_S) if self.denied else timeout
        if self._under_way:
            wait = next(iter(self._under_way.values())).at + timeout - clock.monotonic()
            if wait <= 0:
                self.transport.wait(0)  # it may be there and unread
                if not inbox:
                    raise Retryable(f"The broker has not acknowledged a message for {timeout:g} s.")
        if most_s is not None:
            wait = min(wait, most_s)
        if self._terms.awaited is not None and (overdue := self._terms.awaited.next_s()) is not None:
            wait = min(wait, overdue)
        self.transport.wait(0 if inbox else max(wait, 0.0))
        return [inbox.popleft() for _ in range(len(inbox))]

    def take(self, events: list[Event]) -> None:
        """Let rows go that are acknowledged or can never be delivered, and pass commands on.

        Raises:
            Retryable: the connection was lost.
        """
        done: list[Row] = []
        lost: Lost | None = None
        for event in events:
            if isinstance(event, Acked):
                if (draft := self._settled(event.token)) is not None:
                    done.extend(draft.rows)
                if not self.proven:
                    self.proven = True
                    log.info("Connected; %d messages wait.", self._terms.spool.waiting)
            elif isinstance(event, Refused):
                self._refused(event)
            elif isinstance(event, Denied):
                draft = self._settled(event.token)
                self.denial = event.why
                if draft is not None and draft.rows:
                    self._deny(draft)
                if draft is None or not draft.rows or self.proven:  # else `check` tells it
                    self._terms.tell_denied(event.why)
            elif isinstance(event, Received):
                self._terms.received(event.topic, event.payload)
            else:
                lost = event
        if done:
            self._delivered(done)
        if lost is not None:
            raise Retryable(lost.why)

    def tell_sent(self) -> None:
        """Have the spool count what it does not know yet to be sent."""
        if self._sent:
            self._terms.spool.acknowledge((), self._sent)
            self._sent = Counter()

    def settle(self, inbox: Inbox) -> None:
        """Take what came before the connection was lost, so that what is acknowledged is not sent again."""
        self.take([event for event in tuple(inbox) if isinstance(event, Acked | Refused)])

    def farewell(self, inbox: Inbox, status: Draft) -> None:
        """Say that the device stops on purpose, and wait a moment for what is under way."""
        clock = self._terms.clock
        deadline = clock.monotonic() + _FAREWELL_S
        self._aside.append(status)
        while (self._aside or self._under_way) and (left := deadline - clock.monotonic()) > 0:
            while self._aside and not (pause := self._terms.pace.take(self._aside[0].size)):
                self._publish(self._aside[0])
            self.take(self.next_events(inbox, min(left, pause) if self._aside else left))

    def _next(self) -> Draft | None:
        """Return what is to go next, or None while nothing can."""
        room = len(self._under_way) < self._window
        if self._aside and (room or not self._aside[0].qos):
            return self._aside[0]
        awaited = self._terms.awaited
        if not room or self._trial or (awaited is not None and awaited.full):
            return None
        live, late = self._head(late=False), self._head(late=True)
        if live is not None and late is not None:
            draft: Draft | None = late if self._credit >= 1 else live
        else:
            draft = live or late
        if draft is not None and self._under_way and self._terms.suspects.alone(draft.seqs):
            return None
        return draft

    def _head(self, late: bool) -> Draft | None:
        """Return the next message of the backlog, or of what came since the connection began."""
        if late not in self._heads:
            rows = self._late if late else self._live
            self._drop_unsendable(rows)
            while not rows:
                if not (self._fetch_late() if late else self._fetch_live()):
                    return None
                self._drop_unsendable(rows)
            if late and self._batching and self._drafter.batches:
                alone = self._terms.suspects.alone
                head = self._drafter.backlog(rows, self.transport.max_bytes, lambda seq: alone([seq]))
            else:
                head = self._drafter.one(rows.popleft(), late)
            self._heads[late] = head
        return self._heads[late]

    def _drop_unsendable(self, rows: deque[Row]) -> None:
        """Leave out what cannot be sent on this connection, or is sent and not settled."""
        awaited, skipped = self._terms.awaited, self._terms.suspects.skipped
        while rows:
            seq = rows[0].seq
            if not (
                rows[0].pipeline in self.denied
                or seq == skipped
                or seq in self._busy
                or (awaited is not None and seq in awaited)
            ):
                return
            rows.popleft()

    def _fetch_live(self) -> bool:
        newest = self._terms.spool.committed
        if newest <= self._live_at:
            return False
        if self._reader is None:
            raise Retryable("The spool can be used by now: it is read from its beginning.")
        found = self._reader.after(self._live_at, _FETCH_ROWS, newest, self.denied)
        self._live_at = found[-1].seq if len(found) == _FETCH_ROWS else newest
        self._live.extend(found)
        return bool(found)

    def _fetch_late(self) -> bool:
        if self._late_done or self._reader is None:
            return False
        released = self._terms.spool.released  # what an earlier connection delivered
        found = self._reader.after(self._late_at, _FETCH_ROWS, self._boundary, self.denied)
        if found:
            self._late_at = found[-1].seq
            self._late.extend(row for row in found if row.seq not in released)
        else:
            self._late_done = True
        return bool(found)

    def _rewind(self, seq: int) -> None:
        """Read the backlog again from a row on: what is neither under way nor awaited goes once more."""
        unsent = [*self._live, *self._late, *(row for head in self._heads.values() for row in head.rows)]
        self._late_at = min([seq, self._late_at + 1, *(row.seq for row in unsent)]) - 1
        self._boundary = self._live_at
        self._live.clear()
        self._late.clear()
        self._heads.clear()
        self._late_done = False

    def _publish(self, draft: Draft) -> None:
        token = self.transport.publish(
            draft.topic,
            draft.payload,
            qos=draft.qos,
            retain=draft.retain,
            content=draft.content,
            expiry_s=draft.expires_ts and draft.expires_ts - self._terms.clock.now(),
        )
        if draft.qos:
            self._under_way[token] = _Sent(draft, self._terms.clock.monotonic())
        if not draft.rows:
            self._aside.popleft()
            return
        if len(self._heads) == 2:  # both wait, so they share
            self._credit += self._terms.settings.backlog_share - (1 if draft.late else 0)
            self._credit = max(0.0, self._credit)
        del self._heads[draft.late]
        self._busy.update(draft.seqs)
        for row in draft.rows:
            if row.pipeline:
                self._sent[row.pipeline] += 1
        self._trial = self._terms.suspects.alone(draft.seqs)

    def _settled(self, token: int) -> Draft | None:
        """Return what a token stood for; it is not under way any more."""
        sent = self._under_way.pop(token, None)
        if sent is None:
            return None
        if sent.draft.rows:
            self._busy.difference_update(sent.draft.seqs)
            self._trial = False
        return sent.draft

    def _delivered(self, rows: list[Row]) -> None:
        awaited = self._terms.awaited
        seqs = [row.seq for row in rows]
        if awaited is None:
            self._terms.spool.acknowledge(seqs, self._sent)
            self._sent = Counter()
        else:
            kept = [row.seq for row in rows if self._drafter.names_seq(row)]
            awaited.add(kept)
            self._terms.spool.acknowledge(set(seqs).difference(kept))
        convicted = self._terms.suspects.passed(seqs)
        if convicted is not None:
            log.warning(
                "The message %d is set aside: the connection was lost by it %d times, and others pass.",
                convicted,
                SKIPPED_AFTER,
            )
            self._terms.spool.set_aside([convicted], "refused")

    def _refused(self, event: Refused) -> None:
        draft = self._settled(event.token)
        if draft is None or not draft.rows:
            log.warning("A status, health, metrics or reply message was not sent. %s", event.why)
        elif len(draft.rows) > 1:
            log.warning("A batch of %d results is refused; they go one by one. %s", len(draft.rows), event.why)
            self._batching = False
            self._rewind(draft.rows[0].seq)
        else:
            log.warning("The message %d is set aside. %s", draft.rows[0].seq, event.why)
            self._terms.spool.set_aside(draft.seqs, event.reason)

    def _deny(self, draft: Draft) -> None:
        """Leave a pipeline's rows for another connection."""
        self.denied.add(draft.rows[0].pipeline)
        for late, head in list(self._heads.items()):
            if head.rows[0].pipeline in self.denied:
                del self._heads[late]
