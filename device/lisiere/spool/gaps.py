"""Gap records: what left the spool undelivered, so that an eviction is more than a loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from lisiere.clock import rfc3339

Reason = Literal["spool_full", "too_large", "refused"]

_RANGES_MAX = 100  # in one record, so that every transport can carry it


def gap_bodies(reason: Reason, now: float, rows: Iterable[tuple[int, str, float]]) -> Iterator[bytes]:
    """Yield the bodies of the records that say which results went; as few as can be, and each of a bounded size.

    Args:
        reason: why they went.
        now: wall time, seconds since the epoch.
        rows: seq, pipeline and time of acceptance of each, in the order of seq.
    """
    ranges: list[list[int]] = []
    counts: Counter[str] = Counter()
    span: list[float] = []
    for seq, pipeline, ts in rows:
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1][1] = seq
        else:
            if len(ranges) == _RANGES_MAX:
                yield _body(reason, now, ranges, counts, span)
                ranges, counts, span = [], Counter(), []
            ranges.append([seq, seq])
        counts[pipeline] += 1
        span.append(ts)
    if ranges:
        yield _body(reason, now, ranges, counts, span)


def _body(reason: Reason, now: float, ranges: list[list[int]], counts: Counter[str], span: list[float]) -> bytes:
    return msgspec.json.encode(
        {
            "ts": rfc3339(now),
            "reason": reason,
            "ranges": ranges,
            "counts": dict(counts),
            "first_ts": rfc3339(min(span)),
            "last_ts": rfc3339(max(span)),
        }
    )
