"""Gap records: what left the spool undelivered, so that an eviction is more than a loss.

A record is bounded: 100 ranges, 16 pipelines by name, 32 labels. What goes beyond is told more coarsely, and not left
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from lisiere.clock import rfc3339

Reason = Literal["spool_full", "expired", "too_large", "refused", "spool_damaged"]
Range = tuple[int, int]

RECORD_MAX_BYTES = 16_384  # no record grows beyond this
OTHERS = "*"  # stands for the pipelines that have no room of their own; no pipeline is called so
_RANGES_MAX = 100
_PIPELINES_MAX = 16
_LABELS_MAX = 32
_LABEL_CHARS = 32


class Figures(Struct, frozen=True, kw_only=True):
    """What a series' numbers were like."""

    count: int
    mean: float
    min: float
    max: float


class Summary(Struct, frozen=True, kw_only=True):
    """What was in the results of one pipeline that went.

    Attributes:
        labels: how many had each label (classification), showed it (detection) or had each state (anomaly), the most
            frequent ones by name.
        other_labels: how many had a label that is not named.
        value: of the score (anomaly), or of the median of the first step (forecasting).
    """

    labels: dict[str, int]
    other_labels: int
    value: Figures | None


class Damage(Struct, frozen=True, kw_only=True):
    """What became of a file that was damaged.

    Attributes:
        epoch: its epoch, or null where that could not be read.
        ranges: seqs of that epoch that could not be saved, as far as is known; some of them may have arrived before.
        salvaged: how many rows were saved. They are delivered in the new epoch, with `formerly`.
        lost: how many were not, or null where that is not known.
    """

    epoch: str | None
    ranges: list[Range]
    salvaged: int
    lost: int | None


class GapBody(Struct, frozen=True, kw_only=True):
    """A gap record as the spool holds it: the envelope without its identity.

    Attributes:
        ranges: inclusive ranges of seq. Where they name an earlier gap record, this one has taken its place. With
            `damage`: the numbers that this epoch never gives.
        exact: whether all that the ranges name went. If not, they were too many to tell, and neighbouring ones are told
            as one: what lies in them and does not arrive is what went. The counts are exact all the same.
        counts: how many results went, by pipeline; `*` stands for further pipelines.
        summary: what was in them, by pipeline.
        first_ts, last_ts: when the first and the last of them were accepted.
        damage: of `spool_damaged`, where a whole file was damaged.
        formerly: `<epoch>:<seq>` of the record before its spool was replaced; the ranges are of that epoch.
    """

    ts: str
    reason: Reason
    ranges: list[Range]
    exact: bool
    counts: dict[str, int]
    summary: dict[str, Summary]
    first_ts: str | None
    last_ts: str | None
    damage: Damage | UnsetType = UNSET
    formerly: str | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Gone:
    """A result that left undelivered."""

    seq: int
    pipeline: str
    ts: float
    body: bytes


def gap_bodies(reason: Reason, now: float, gone: Iterable[Gone]) -> Iterator[bytes]:
    """Yield the bodies of the records that say which results went; as few as can be, and each of a bounded size.

    Args:
        reason: why they went.
        now: wall time, seconds since the epoch.
        gone: what went, in the order of seq.
    """
    tally = _Tally()
    for one in gone:
        if len(tally.ranges) == _RANGES_MAX and tally.ranges[-1][1] != one.seq - 1:
            yield tally.body(reason, rfc3339(now))
            tally = _Tally()
        tally.add(one)
    if tally.ranges:
        yield tally.body(reason, rfc3339(now))


def damage_body(now: float, first: int, damage: Damage, counts: dict[str, int]) -> bytes:
    """Return the body of the record that a new file begins with when the old one was damaged.

    Args:
        now: wall time, seconds since the epoch.
        first: the record's own seq; the numbers below it are never given in this epoch, and the record names them.
        damage: what became of the old file.
        counts: how many results were lost, by pipeline, as far as is known.
    """
    damage = msgspec.structs.replace(damage, ranges=_coarse(damage.ranges)[0])
    tally = _Tally(ranges=[(1, first - 1)] if first > 1 else [], counts=dict(counts))
    return tally.body("spool_damaged", rfc3339(now), damage)


def merged(records: list[tuple[int, bytes]], now: float, most: int) -> tuple[list[int], list[bytes]] | None:
    """Merge waiting gap records so that at most `most` of a reason are left; None where there is nothing to merge.

    Returns:
        The seqs of the records that were merged, and the bodies that take their place. Those of a former epoch, or of a
        whole damaged file, stay as they are: their ranges are another epoch's.
    """
    by_reason: dict[Reason, list[_Tally]] = {}
    for seq, body in sorted(records):
        tally = _Tally.of(body)
        if tally is not None:
            tally.ranges = _union([*tally.ranges, (seq, seq)])
            by_reason.setdefault(tally.reason, []).append(tally)
            tally.seqs = [seq]
    went: list[int] = []
    bodies: list[bytes] = []
    for reason, tallies in by_reason.items():
        if len(tallies) <= most:
            continue
        kept = [tallies[0]]
        for tally in sorted(tallies[1:], key=lambda tally: tally.ranges[0]):
            if len(_union([*kept[-1].ranges, *tally.ranges])) <= _RANGES_MAX:
                kept[-1].absorb(tally)
            else:
                kept.append(tally)
        while len(kept) > most:  # pairs of neighbours, more coarsely
            for left, right in zip(kept[::2], kept[1::2], strict=False):
                left.absorb(right)
            kept = kept[::2]
        for tally in kept:
            went += tally.seqs
            bodies.append(tally.body(reason, rfc3339(now)))
    return (went, bodies) if went else None


@dataclass(slots=True)
class _Tally:
    """A gap record while it is made."""

    reason: Reason = "spool_full"
    ranges: list[Range] = field(default_factory=list)
    exact: bool = True
    counts: dict[str, int] = field(default_factory=dict)
    contents: dict[str, _Contents] = field(default_factory=dict)
    span: tuple[str, str] | None = None  # as text: RFC 3339 in UTC with milliseconds sorts as time does
    seqs: list[int] = field(default_factory=list)  # of the records that it is made of

    @classmethod
    def of(cls, body: bytes) -> _Tally | None:
        """Read a record that can be merged."""
        try:
            gap = msgspec.json.decode(body, type=GapBody)
        except msgspec.DecodeError:
            return None
        if gap.damage is not UNSET or gap.formerly is not UNSET:
            return None
        contents = {pipeline: _Contents.of(summary) for pipeline, summary in gap.summary.items()}
        span = (gap.first_ts, gap.last_ts) if gap.first_ts is not None and gap.last_ts is not None else None
        return cls(gap.reason, gap.ranges, gap.exact, gap.counts, contents, span)

    def add(self, gone: Gone) -> None:
        if self.ranges and self.ranges[-1][1] == gone.seq - 1:
            self.ranges[-1] = (self.ranges[-1][0], gone.seq)
        else:
            self.ranges.append((gone.seq, gone.seq))
        self.counts[gone.pipeline] = self.counts.get(gone.pipeline, 0) + 1
        self.contents.setdefault(gone.pipeline, _Contents()).add(gone.body)
        stamp = rfc3339(gone.ts)
        self.span = (min(self.span[0], stamp), max(self.span[1], stamp)) if self.span else (stamp, stamp)

    def absorb(self, other: _Tally) -> None:
        self.ranges, exact = _coarse(_union([*self.ranges, *other.ranges]))
        self.exact = self.exact and other.exact and exact
        for pipeline, count in other.counts.items():
            self.counts[pipeline] = self.counts.get(pipeline, 0) + count
        for pipeline, contents in other.contents.items():
            self.contents.setdefault(pipeline, _Contents()).absorb(contents)
        if self.span and other.span:
            self.span = (min(self.span[0], other.span[0]), max(self.span[1], other.span[1]))
        self.span = self.span or other.span
        self.seqs += other.seqs

    def body(self, reason: Reason, now: str, damage: Damage | UnsetType = UNSET) -> bytes:
        ranges, exact = _coarse(self.ranges)
        named = sorted(self.counts, key=lambda name: (name == OTHERS, -self.counts[name], name))[:_PIPELINES_MAX]
        counts: dict[str, int] = {}
        contents: dict[str, _Contents] = {}
        for pipeline, count in self.counts.items():
            name = pipeline if pipeline in named else OTHERS
            counts[name] = counts.get(name, 0) + count
            if pipeline in self.contents:
                contents.setdefault(name, _Contents()).absorb(self.contents[pipeline])
        labels = max(1, _LABELS_MAX // max(1, len(contents)))
        summary = {name: found.summary(labels) for name, found in contents.items() if not found.empty}
        first, last = self.span or (None, None)
        return msgspec.json.encode(
            GapBody(
                ts=now,
                reason=reason,
                ranges=ranges,
                exact=self.exact and exact,
                counts=counts,
                summary=summary,
                first_ts=first,
                last_ts=last,
                damage=damage,
            )
        )


class _Object(Struct):
    label: str


class _Result(Struct):
    """What is read of a result's body; each part may be absent."""

    label: str | None = None
    state: str | None = None
    objects: list[_Object] = []
    score: float | None = None
    quantiles: dict[str, list[float]] = field(default_factory=dict)


class _Body(Struct):
    task: str = ""
    result: Any = None


@dataclass(slots=True)
class _Contents:
    """The summary of one pipeline's results while it is made."""

    labels: dict[str, int] = field(default_factory=dict)
    other_labels: int = 0
    count: int = 0
    total: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, summary: Summary) -> _Contents:
        value = summary.value
        labels = dict(summary.labels)
        if value is None:
            return cls(labels, summary.other_labels)
        return cls(labels, summary.other_labels, value.count, value.mean * value.count, value.min, value.max)

    @property
    def empty(self) -> bool:
        return not (self.labels or self.other_labels or self.count)

    def add(self, body: bytes) -> None:
        """Take one result in. A body that cannot be read is counted by its pipeline alone."""
        try:
            told = msgspec.json.decode(body, type=_Body)
            result = msgspec.convert(told.result, _Result)
        except (msgspec.MsgspecError, RecursionError):
            return
        seen = {one.label for one in result.objects}
        if (label := result.label if told.task == "classification" else result.state) is not None:
            seen = {label}
        for label in sorted(seen):
            self.labels[label[:_LABEL_CHARS]] = self.labels.get(label[:_LABEL_CHARS], 0) + 1
        value = None
        if told.task == "anomaly":
            value = result.score
        elif told.task == "forecasting" and result.quantiles:
            median = min(result.quantiles, key=_from_the_middle)
            value = result.quantiles[median][0] if result.quantiles[median] else None
        if value is not None:
            self.absorb(_Contents(count=1, total=value, low=value, high=value))

    def absorb(self, other: _Contents) -> None:
        for label, count in other.labels.items():
            self.labels[label] = self.labels.get(label, 0) + count
        self.other_labels += other.other_labels
        if other.count:
            self.low = min(self.low, other.low) if self.count else other.low
            self.high = max(self.high, other.high) if self.count else other.high
            self.count += other.count
            self.total += other.total

    def summary(self, labels: int) -> Summary:
        most = sorted(self.labels.items(), key=lambda item: (-item[1], item[0]))
        value = None
        if self.count:
            value = Figures(count=self.count, mean=self.total / self.count, min=self.low, max=self.high)
        others = self.other_labels + sum(count for _, count in most[labels:])
        return Summary(labels=dict(most[:labels]), other_labels=others, value=value)


def _from_the_middle(quantile: str) -> float:
    """How far a quantile lies from the median."""
    try:
        return abs(float(quantile) - 0.5)
    except ValueError:
        return 1.0


def _union(ranges: list[Range]) -> list[Range]:
    """Return the same seqs in as few ranges as can be, in order."""
    union: list[Range] = []
    for low, high in sorted(ranges):
        if union and low <= union[-1][1] + 1:
            union[-1] = (union[-1][0], max(union[-1][1], high))
        else:
            union.append((low, high))
    return union


def _coarse(ranges: list[Range]) -> tuple[list[Range], bool]:
    """Return at most 100 ranges that hold them all, closing the smallest holes, and whether they are the same."""
    excess = len(ranges) - _RANGES_MAX
    if excess <= 0:
        return ranges, True
    holes = sorted(range(1, len(ranges)), key=lambda at: ranges[at][0] - ranges[at - 1][1])
    closed = set(holes[:excess])
    coarse: list[Range] = []
    for at, one in enumerate(ranges):
        if at in closed:
            coarse[-1] = (coarse[-1][0], one[1])
        else:
            coarse.append(one)
    return coarse, False
