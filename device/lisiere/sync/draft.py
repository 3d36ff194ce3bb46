"""Drafts: rows of the spool put into the messages that they leave in, one by one or many results as one."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lisiere.clock import Clock, rfc3339
from lisiere.settings.links import LinkConfig
from lisiere.spool import Row
from lisiere.sync.aws_dlr import aws_dlr_message
from lisiere.sync.envelope import BATCH_SCHEMA, restamp, seal
from lisiere.sync.topics import Topics
from lisiere.sync.transports import JSON
from lisiere.timeline import Timeline

_HEADER_BYTES = 16  # of a PUBLISH beside topic and payload, at most
_IDENTITY_BYTES = 400  # what sealing adds to a body, at most
ZSTD = "application/zstd"


@dataclass(frozen=True, slots=True)
class Draft:
    """A message that is ready to leave.

    Attributes:
        rows: of the spool, that it delivers; none for status, health, metrics and replies.
        late: whether it is of the backlog.
        made: when it was put together, in monotonic time.
        expires_ts: wall time after which nobody wants it; None: wanted for ever.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    content: str = JSON
    rows: tuple[Row, ...] = ()
    late: bool = False
    made: float = 0.0
    expires_ts: float | None = None

    @property
    def size(self) -> int:
        """How many bytes it is on the wire, or a few less."""
        return _HEADER_BYTES + len(self.topic.encode()) + len(self.payload)

    @property
    def seqs(self) -> list[int]:
        """The seqs of its rows."""
        return [row.seq for row in self.rows]


class Drafter:
    """Makes drafts of one device's rows.

    Args:
        epoch: of the rows.
        aws_topics: pipeline -> topic, of those whose results leave in the form of AWS's sample component.
        timeline: puts the time of what waited right.
    """

    def __init__(
        self,
        device: str,
        topics: Topics,
        epoch: str,
        clock: Clock,
        settings: LinkConfig,
        aws_topics: Mapping[str, str],
        timeline: Timeline,
    ) -> None:
        self._device = device
        self._topics = topics
        self._epoch = epoch
        self._clock = clock
        self._batch_bytes = int(settings.backlog_batch_kb * 1000)
        self._compress = _compressor() if settings.backlog_zstd else None
        self._aws_topics = aws_topics
        self._timeline = timeline

    @property
    def batches(self) -> bool:
        """Whether results of the backlog are put together."""
        return self._batch_bytes > 0

    def one(self, row: Row, late: bool) -> Draft:
        """Return the message of one row."""
        if row.kind == "gap":
            topic, payload = self._topics.gap, self._seal(row, late)
        elif self._as_aws(row):
            topic, payload = self._aws_topics[row.pipeline], aws_dlr_message(restamp(row, self._timeline).body)
        else:
            topic = self._topics.backlog(row.pipeline) if late else self._topics.live(row.pipeline, row.kind)
            payload = self._seal(row, late)
        return Draft(topic, payload, rows=(row,), late=late, made=self._clock.monotonic(), expires_ts=row.expires_ts)

    def anew(self, draft: Draft) -> Draft:
        """Return the message of the same rows with the stamp of now."""
        return self._batch(draft.rows) if len(draft.rows) > 1 else self.one(draft.rows[0], draft.late)

    def names_seq(self, row: Row) -> bool:
        """Whether the message of a row tells its seq, so that a consumer can acknowledge it."""
        return not self._as_aws(row)

    def backlog(self, rows: deque[Row], max_bytes: int, single: Callable[[int], bool]) -> Draft:
        """Take the first row, and with it those that follow in its pipeline and fit into one message.

        Args:
            rows: the backlog in order, at least one; what is taken is removed.
            max_bytes: the largest payload that the transport takes.
            single: whether a row with this seq must have a message of its own.
        """
        limit = min(self._batch_bytes, max_bytes)
        first = rows.popleft()
        taken, size = [first], len(first.body) + 2 * _IDENTITY_BYTES
        if limit and self._joins(first, first.pipeline, single):
            kept: list[Row] = []
            full = False
            for row in rows:
                size += len(row.body) + _IDENTITY_BYTES
                full = full or size > limit
                same = row.pipeline == first.pipeline
                if full or not same:
                    size -= len(row.body) + _IDENTITY_BYTES
                if not full and same and self._joins(row, first.pipeline, single):
                    taken.append(row)
                else:
                    kept.append(row)
                    full = full or same  # what follows it in its pipeline must not overtake it
            if len(taken) > 1:
                rows.clear()
                rows.extend(kept)
        return self._batch(taken) if len(taken) > 1 else self.one(first, late=True)

    def _joins(self, row: Row, pipeline: str, single: Callable[[int], bool]) -> bool:
        return row.kind == "result" and row.pipeline == pipeline and not self._as_aws(row) and not single(row.seq)

    def _as_aws(self, row: Row) -> bool:
        return row.kind == "result" and row.pipeline in self._aws_topics

    def _batch(self, rows: Sequence[Row]) -> Draft:
        head = (
            f'{{"schema":"{BATCH_SCHEMA}","device":"{self._device}","epoch":"{self._epoch}",'
            f'"published_ts":"{rfc3339(self._clock.now())}","results":['
        )
        payload = head.encode() + b",".join(self._seal(row, True) for row in rows) + b"]}"
        topic, content = self._topics.backlog(rows[0].pipeline), JSON
        if self._compress is not None:
            topic, payload, content = self._topics.packed(rows[0].pipeline), self._compress(payload), ZSTD
        until = [row.expires_ts for row in rows if row.expires_ts is not None]
        return Draft(
            topic,
            payload,
            content=content,
            rows=tuple(rows),
            late=True,
            made=self._clock.monotonic(),
            expires_ts=max(until) if len(until) == len(rows) else None,
        )

    def _seal(self, row: Row, replay: bool) -> bytes:
        return seal(restamp(row, self._timeline), self._device, self._epoch, self._clock.now(), replay)


@functools.cache
def _compressor() -> Callable[[bytes], bytes]:
    """Return what compresses one message; its frame says how large it was, so that a reader can bound it."""
    import zstandard

    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=3).compress
    return compress
