"""The book: the ledgers of all devices, and what is concluded from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import UNSET

from lisiere.subscriber.events import Missed, NewEpoch
from lisiere.subscriber.intervals import Range
from lisiere.subscriber.ledger import Ledger
from lisiere.subscriber.memory import Seen
from lisiere.sync.envelope import GapEnvelope, HealthMessage, Sequenced, StatusMessage

_LEDGERS_MAX = 10_000  # device epochs that are remembered; those that were heard of longest ago go

Key = tuple[str, str]  # device, epoch


class Book:
    """Keeps a ledger for each (device, epoch). Times are monotonic seconds.

    Args:
        settle_s: after so long without news a hole is taken for a loss.

    Attributes:
        news: epochs that began since the caller looked here.
    """

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._ledgers: OrderedDict[Key, Ledger] = OrderedDict()
        self._epochs: dict[str, str] = {}  # device -> the epoch that began last
        self._offline: set[str] = set()
        self._holed: set[Key] = set()  # those that may have holes
        self.news: list[NewEpoch] = []

    def load(self, remembered: Iterable[Seen], now: float) -> None:
        """Go on from what was remembered; of a device's epochs the last one is its newest."""
        for seen in remembered:
            self._ledgers[seen.device, seen.epoch] = Ledger(now, seen.arrived, seen.known)
            self._epochs[seen.device] = seen.epoch
            self._holed.add((seen.device, seen.epoch))

    def to_remember(self, untaken: Mapping[Key, Sequence[int]]) -> list[Seen]:
        """Return what is to be remembered: all but what nobody has taken."""
        return [
            Seen(
                device=device,
                epoch=epoch,
                arrived=ledger.arrived.ranges_without(untaken.get((device, epoch), ())),
                known=ledger.known.ranges_without(untaken.get((device, epoch), ())),
            )
            for (device, epoch), ledger in self._ledgers.items()
        ]

    def arrive(self, message: Sequenced | GapEnvelope, now: float) -> bool:
        """Note that a message came; return False when it came before, by this name or by its former one."""
        new = self._ledger(message.device, message.epoch, now).arrive(message.seq, now)
        former = _former(message)
        if former is not None and (old := self._ledgers.get((message.device, former[0]))) is not None:
            return old.arrive(former[1], now) and new
        return new

    def explain(self, gap: GapEnvelope, now: float) -> Missed | None:
        """Note what a gap record that has just come names; return what was missed, if anything was."""
        former, damage = _former(gap), gap.damage
        epoch, named = former[0] if former else gap.epoch, gap.ranges
        if damage is not UNSET:
            self._ledger(gap.device, gap.epoch, now).explain(gap.ranges, now)  # the numbers that it never gives
            epoch, named = damage.epoch or gap.epoch, damage.ranges if damage.epoch else []
        ledger = self._ledgers.get((gap.device, epoch))
        ranges = ledger.explain(named, now) if ledger is not None else list(named)
        count, whole = _size(ranges), _size(named)
        counts: dict[str, int] = {}
        if damage is not UNSET:
            count = count if damage.lost is None else damage.lost
            counts = gap.counts if count == sum(gap.counts.values()) else {}
        elif count == whole:
            # Else some came, their PUBACK lost, or were told before: of which pipeline the rest is cannot be said.
            count, counts = sum(gap.counts.values()), gap.counts
        elif not gap.exact:
            count = min(count, sum(gap.counts.values()))
        if not count:
            return None
        return Missed(
            device=gap.device, epoch=epoch, reason=gap.reason, ranges=ranges, count=count, counts=counts, record=gap
        )

    def hear(self, message: StatusMessage | HealthMessage, now: float) -> None:
        """Take in how a device is."""
        if isinstance(message, HealthMessage):
            key = message.device, self._epochs.get(message.device, "")
            if key in self._ledgers and message.spool.get("rows") == 0:
                # All that it has made has left: a hole at the end shows, too.
                self._ledgers[key].extend(message.spool.get("highest_seq", 0), now)
                self._holed.add(key)
        elif message.state == "online":
            self._offline.discard(message.device)
            if message.epoch:  # else its spool could not be opened yet
                self._ledger(message.device, message.epoch, now).stir(now)  # its backlog comes now
        elif message.device in self._epochs:
            self._offline.add(message.device)

    def away(self) -> None:
        """Note that the subscriber's own connection is lost."""
        for ledger in self._ledgers.values():
            ledger.away()

    def settled(self, now: float) -> list[Missed]:
        """Return what is missing for so long that it will not come, each once."""
        return [
            Missed(device=device, epoch=epoch, reason=reason, ranges=ranges, count=_size(ranges), counts={})
            for (device, epoch), ledger in self._unsettled()
            for reason, ranges in ledger.take_settled(now, self._settle_s)
        ]

    def due_at(self) -> float | None:
        """Return when `settled` will have something to tell, if nothing else happens."""
        dues = [ledger.settles_at(self._settle_s) for _, ledger in self._unsettled()]
        return min((due for due in dues if due is not None), default=None)

    def holes(self, key: Key, first: int, last: int) -> list[Range]:
        """Return which seqs from `first` to `last` neither came nor were explained or told."""
        ledger = self._ledgers.get(key)
        return ledger.holes(first, last) if ledger is not None else [(first, last)] if first <= last else []

    def _unsettled(self) -> list[tuple[Key, Ledger]]:
        """The ledgers with holes; not those of devices that are away, since their holes may be in their backlogs."""
        self._holed = {key for key in self._holed if self._ledgers[key].settles_at(0.0) is not None}
        return [(key, self._ledgers[key]) for key in sorted(self._holed) if key[0] not in self._offline]

    def _ledger(self, device: str, epoch: str, now: float) -> Ledger:
        """Return the ledger of an epoch, the latest heard of by now; a new one is news."""
        key = device, epoch
        if key not in self._ledgers:
            self._ledgers[key] = Ledger(now)
            before = self._epochs.get(device)
            self._epochs[device] = epoch
            if before is not None:
                self._ledgers[key].expect_all()
                self.news.append(NewEpoch(device=device, epoch=epoch, before=before))
            if len(self._ledgers) > _LEDGERS_MAX:
                self._forget(self._ledgers.popitem(last=False)[0])
        self._ledgers.move_to_end(key)
        self._holed.add(key)
        return self._ledgers[key]

    def _forget(self, key: Key) -> None:
        device, epoch = key
        self._holed.discard(key)
        if self._epochs.get(device) == epoch:
            del self._epochs[device]
            self._offline.discard(device)


def _former(message: Sequenced | GapEnvelope) -> tuple[str, int] | None:
    """The epoch and seq that a message had before its spool was replaced; what makes no sense counts for none."""
    if message.formerly is UNSET:
        return None
    epoch, _, seq = message.formerly.rpartition(":")
    return (epoch, int(seq)) if seq.isdecimal() and len(seq) < 19 and int(seq) > 0 else None


def _size(ranges: Iterable[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges)
