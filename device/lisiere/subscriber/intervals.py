"""Sets of whole numbers that are kept as ranges: what has been seen of a sequence takes no more room than its holes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

Range = tuple[int, int]  # both ends belong to it


class Intervals:
    """A set of whole numbers as disjoint ranges in order, which never touch each other."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and self._lasts[at] >= number

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges())

    def ranges(self) -> list[Range]:
        """Return the ranges, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def ranges_without(self, numbers: Iterable[int]) -> list[Range]:
        """Return the ranges as they would be without some numbers."""
        rest = Intervals(self.ranges())
        for number in numbers:
            rest.discard(number)
        return rest.ranges()

    @property
    def pieces(self) -> int:
        """How many ranges there are."""
        return len(self._firsts)

    def covers(self, first: int, last: int) -> bool:
        """Return whether all of `first` … `last` is in the set."""
        at = bisect_right(self._firsts, first) - 1
        return first > last or (at >= 0 and self._lasts[at] >= last)

    def add(self, first: int, last: int | None = None) -> bool:
        """Add one number, or all from `first` to `last`; return whether any of them is new."""
        last = first if last is None else last
        if last < first:
            return False
        low = bisect_left(self._lasts, first - 1)  # the first range that touches or follows
        high = bisect_right(self._firsts, last + 1)
        if high - low == 1 and self._firsts[low] <= first and last <= self._lasts[low]:
            return False
        if low < high:
            first, last = min(first, self._firsts[low]), max(last, self._lasts[high - 1])
        self._firsts[low:high], self._lasts[low:high] = [first], [last]
        return True

    def discard(self, number: int) -> None:
        """Take one number out, if it is there."""
        at = bisect_right(self._firsts, number) - 1
        if number in self:
            first, last = self._firsts[at], self._lasts[at]
            halves = [(start, end) for start, end in ((first, number - 1), (number + 1, last)) if start <= end]
            self._firsts[at : at + 1] = [start for start, _ in halves]
            self._lasts[at : at + 1] = [end for _, end in halves]

    def missing(self, first: int, last: int) -> list[Range]:
        """Return what of `first` … `last` is not in the set, as ranges in order."""
        holes: list[Range] = []
        at = bisect_left(self._lasts, first)
        while first <= last:
            if at == len(self._firsts) or self._firsts[at] > last:
                holes.append((first, last))
                break
            if self._firsts[at] > first:
                holes.append((first, self._firsts[at] - 1))
            first, at = self._lasts[at] + 1, at + 1
        return holes

    def close_lowest(self) -> Range | None:
        """Fill the lowest hole, so that there is one range less; return what was filled."""
        if len(self._firsts) < 2:
            return None
        filled = self._lasts[0] + 1, self._firsts[1] - 1
        self.add(*filled)
        return filled
