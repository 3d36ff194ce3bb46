"""The ledger of one device's epoch: which seqs came, which a gap record named, and which are simply missing."""

from __future__ import annotations

from collections.abc import Iterable

from lisiere.subscriber.intervals import Intervals, Range

_PIECES_MAX = 10_000  # beyond so many holes the lowest are given up, so that memory has an end


class Ledger:
    """What is known of one (device, epoch). Times are monotonic seconds.

    Attributes:
        arrived: what came: results and gap records.
        known: what came, was named by a gap record, or has been told to be missing.
        first: the lowest seq that is expected; what lies below belongs to the time before this subscriber.
        highest: the highest seq that is known to exist.
    """

    def __init__(self, now: float, arrived: Iterable[Range] = (), known: Iterable[Range] = ()) -> None:
        self.arrived = Intervals(arrived)
        self.named = Intervals()  # by gap records
        self.known = Intervals([*known, *self.arrived.ranges()])
        ranges = self.known.ranges()
        self.first: int | None = ranges[0][0] if ranges else None
        self.highest = ranges[-1][1] if ranges else 0
        self._quiet_since = now
        self._away = bool(ranges)  # what was remembered is from before this connection
        self._while_away = Intervals()

    def arrive(self, seq: int, now: float) -> bool:
        """Note that a message came; return False when it came before."""
        if not self.arrived.add(seq):
            return False
        self.known.add(seq)
        if self.first is None:
            self.first = self.highest = seq
        elif seq <= self.highest:
            self.first = min(self.first, seq)
            self.stir(now)  # holes are being filled
        else:
            self.extend(seq, now)
        if self.arrived.pieces > _PIECES_MAX:
            self.arrived.close_lowest()
        return True

    def extend(self, highest: int, now: float) -> None:
        """Note that the device has given numbers up to `highest`."""
        if self.first is None or highest <= self.highest:
            return
        if opened := self.known.missing(self.highest + 1, highest):
            self.stir(now)
            if self._away:
                for first, last in opened:
                    self._while_away.add(first, last)
        self.highest = highest
        self._away = False

    def explain(self, ranges: Iterable[Range], now: float) -> list[Range]:
        """Note what a gap record names; return what of it neither came nor was named before."""
        missed: list[Range] = []
        for first, last in ranges:
            for start, end in self.named.missing(first, last):
                missed += self.arrived.missing(start, end)
            self.named.add(first, last)
            self.known.add(first, last)
        if self.named.pieces > _PIECES_MAX:
            self.named.close_lowest()
        self.stir(now)
        return missed

    def expect_all(self) -> None:
        """Note that the subscriber was there when the epoch began, so that its first results are expected, too."""
        self.first = 1

    def stir(self, now: float) -> None:
        """Note that there is news, so that what is missing may yet come."""
        self._quiet_since = now

    def away(self) -> None:
        """Note that the subscriber's connection is lost: what comes to be missing now may be its own fault."""
        self._away = True

    def holes(self, first: int, last: int) -> list[Range]:
        """Return what neither came nor was explained or told."""
        return self.known.missing(first, last)

    def settles_at(self, settle_s: float) -> float | None:
        """Return when the holes that there are will be told, or None without any."""
        if self.known.pieces > _PIECES_MAX:
            return self._quiet_since
        if self.first is None or self.known.covers(self.first, self.highest):
            return None
        return self._quiet_since + settle_s

    def take_settled(self, now: float, settle_s: float) -> list[tuple[str, list[Range]]]:
        """Return the holes that nothing has filled for `settle_s`, each once, by reason."""
        due = self.settles_at(settle_s)
        if due is None or self.first is None:
            return []
        found: list[Range] = []
        while self.known.pieces > _PIECES_MAX and (given_up := self.known.close_lowest()):
            found.append(given_up)
        if now >= self._quiet_since + settle_s:
            found += self.holes(self.first, self.highest)
        told: dict[str, list[Range]] = {}
        for first, last in found:
            self.known.add(first, last)
            away = not self._while_away.missing(first, last)
            told.setdefault("subscriber_away" if away else "unexplained", []).append((first, last))
        return list(told.items())
