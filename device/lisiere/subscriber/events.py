"""What a subscriber is told: results, what was missed and why, and how devices and the connection are."""

from __future__ import annotations

from msgspec import Struct

from lisiere.sync.envelope import GapEnvelope, HealthMessage, MetricsMessage, Sequenced, StatusMessage

# The reasons of gap records, and the two that only a subscriber can find.
_WHY = {
    "spool_full": "because the device's spool was full",
    "expired": "because they had become too old to be worth sending",
    "too_large": "because they are larger than the device's transport carries",
    "refused": "because the broker refuses them",
    "spool_damaged": "because the device's spool was damaged",
    "subscriber_away": "because this subscriber was not connected",
    "unexplained": "and no gap record says why",
}


class Missed(Struct, frozen=True, kw_only=True):
    """Results that did not come and are not expected any more. `sentence` says it to a person.

    Attributes:
        device, epoch: whose.
        reason: that of the gap record; `subscriber_away` when the connection of this subscriber was lost meanwhile;
            `unexplained` when nothing was told for the settle time.
        ranges: inclusive ranges of seq, in order.
        count: how many numbers they hold. Without a record some may be gap records that were missed themselves.
        counts: by pipeline, as far as is known.
        record: the gap record, if there is one.
    """

    device: str
    epoch: str
    reason: str
    ranges: list[tuple[int, int]]
    count: int
    counts: dict[str, int]
    record: GapEnvelope | None = None

    @property
    def sentence(self) -> str:
        """Say what was missed and why."""
        who = " and ".join(f"{number} of `{pipeline}`" for pipeline, number in sorted(self.counts.items()))
        results = f"{self.count} {'result' if self.count == 1 else 'results'}"
        if len(self.counts) == 1:
            results += f" of `{next(iter(self.counts))}`"
        elif who:
            results += f" ({who})"
        when = ""
        if self.record is not None:
            first, last = self.record.first_ts, self.record.last_ts
            when = f" between {first} and {last}" if first and last else ""
        else:
            shown = [str(first) if first == last else f"{first} to {last}" for first, last in self.ranges[:3]]
            when = f" (seq {', '.join(shown)}{' and more' if len(self.ranges) > 3 else ''})"
        why = _WHY.get(self.reason, f"for the reason {self.reason!r}")
        return f"You missed {results} from {self.device}{when}, {why}."


class NewEpoch(Struct, frozen=True, kw_only=True):
    """A device has a new spool, so its `seq` starts anew; what waited in the old one may never come."""

    device: str
    epoch: str
    before: str


class Unreadable(Struct, frozen=True, kw_only=True):
    """A message that is not what its topic promises. It was left out."""

    topic: str
    why: str


class Link(Struct, frozen=True, kw_only=True):
    """The subscriber's own connection was lost, or is back."""

    connected: bool
    why: str = ""


Event = Sequenced | Missed | NewEpoch | StatusMessage | HealthMessage | MetricsMessage | Unreadable | Link
