"""Putting results back in the order of seq: what came live waits a bounded time for what is older."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lisiere.subscriber.intervals import Range
from lisiere.sync.envelope import Sequenced

Key = tuple[str, str]  # device, epoch
_BEGIN_S = 1.0  # the first result of all waits no longer, since nobody knows whether there is an older one


@dataclass(slots=True)
class _Lane:
    """The held results of one (device, epoch)."""

    heap: list[tuple[int, Sequenced]] = field(default_factory=list)
    since: deque[tuple[float, int]] = field(default_factory=deque)  # when each came; the released are dropped in time
    released: int = 0
    begun: bool = False


class Sorter:
    """Holds results until all that is older has come, is explained, or has been waited for long enough.

    Args:
        wait_s: the longest that a result waits; the first of all waits 1 s.
        most: how many are held of one device's epoch; beyond that the lowest goes.
        holes: which seqs of a key between two are still outstanding.
    """

    def __init__(self, wait_s: float, most: int, holes: Callable[[Key, int, int], list[Range]]) -> None:
        self._wait_s = wait_s
        self._most = most
        self._holes = holes
        self._lanes: dict[Key, _Lane] = {}
        self._busy: set[Key] = set()  # those that hold something

    def put(self, result: Sequenced, now: float) -> None:
        """Hold a result; each seq comes once."""
        lane = self._lanes.setdefault((result.device, result.epoch), _Lane())
        heapq.heappush(lane.heap, (result.seq, result))
        lane.since.append((now, result.seq))
        self._busy.add((result.device, result.epoch))

    def take(self, now: float) -> list[Sequenced]:
        """Return what is in order by now, or has waited long enough."""
        return [result for key in sorted(self._busy) for result in self._ready(key, self._lanes[key], now)]

    def flush(self, device: str | None = None) -> list[Sequenced]:
        """Return all that is held (of one device), in order, and forget it."""
        gone = [key for key in self._lanes if device in (None, key[0])]
        self._busy.difference_update(gone)
        return [result for key in gone for _, result in sorted(self._lanes.pop(key).heap, key=lambda held: held[0])]

    def due_at(self) -> float | None:
        """Return when the next result will have waited long enough, or None when none is held."""
        lanes = [self._lanes[key] for key in self._busy]
        return min((lane.since[0][0] + self._patience(lane) for lane in lanes), default=None)

    def held(self) -> list[Sequenced]:
        """Return what is held, in no order."""
        return [result for key in self._busy for _, result in self._lanes[key].heap]

    def _patience(self, lane: _Lane) -> float:
        return self._wait_s if lane.begun else min(_BEGIN_S, self._wait_s)

    def _ready(self, key: Key, lane: _Lane, now: float) -> list[Sequenced]:
        ready: list[Sequenced] = []
        overdue, patience = 0, self._patience(lane)
        while lane.since and now >= lane.since[0][0] + patience:
            overdue = max(overdue, lane.since.popleft()[1])
        while lane.heap:
            seq = lane.heap[0][0]
            follows = seq == 1 or (lane.begun and not self._holes(key, lane.released + 1, seq - 1))
            if not (follows or seq <= overdue or len(lane.heap) > self._most):
                break
            ready.append(heapq.heappop(lane.heap)[1])
            lane.released, lane.begun = max(lane.released, seq), True
        while lane.since and lane.since[0][1] <= lane.released:
            lane.since.popleft()
        if not lane.heap:
            self._busy.discard(key)
        return ready
