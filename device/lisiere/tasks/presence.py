"""Presence: from the scores of frame after frame to what begins, lasts and ends.

Two thresholds and a least duration keep what flickers from being told (a Schmitt trigger). All times are the frames'
own, so that a replay tells the same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import exp
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import rfc3339
from lisiere.settings.decision import EventsConfig
from lisiere.values import EventBody

MAX_FRAMES = 10_000  # of a window: at 100 frames a second that is 100 s

Scores = NDArray[np.float64]


@dataclass(slots=True)
class Stay:
    """The presence of one label, from its beginning to now or to its end.

    Attributes:
        number: counts up with each that begins.
        label: its index.
        since, until: event time of the first frame of it, and of the last so far, seconds since the epoch.
        peak: the highest smoothed score so far.
        frames: how many frames it has seen.
    """

    number: int
    label: int
    since: float
    until: float
    peak: float
    frames: int
    told: float


@dataclass(frozen=True, slots=True)
class Change:
    """What happened: `new` at the beginning of a stay, `update` while it lasts, `end`. Each `end` has had its `new`."""

    phase: Literal["new", "update", "end"]
    stay: Stay


class Presence:
    """Follows the labels of one pipeline. Used by one thread.

    Args:
        how: smoothing, thresholds and times.
        count: how many labels there are.
        watched: the indices of those that may begin; None: all.
        exclusive: whether at most one is present at a time, so that a second one takes the place of the first.
    """

    def __init__(self, how: EventsConfig, count: int, watched: frozenset[int] | None, exclusive: bool) -> None:
        self._how = how
        self._exclusive = exclusive
        self._watched = np.asarray([watched is None or label in watched for label in range(count)])
        self._smoothed: Scores = np.zeros(count)
        self._window: deque[tuple[float, NDArray[np.int64]]] = deque()
        self._votes = np.zeros(count, np.int64)
        self._last: float | None = None
        self._rising: dict[
            int, tuple[float, int]
        ] = {}  # label -> since when, and for how many frames, it is high enough
        self._open: dict[int, Stay] = {}
        self._begun = 0

    @property
    def present(self) -> list[int]:
        """The labels that are present, in the order in which they began."""
        return list(self._open)

    def add(self, ts: float, scores: Scores) -> list[Change]:
        """Take one frame's scores and return what they changed.

        Args:
            ts: the frame's time. Where it is before the last one's or too far behind it, everything starts anew.
            scores: [labels] in 0 … 1; of the smoothing `majority`, 1 for what the frame votes for and 0 for the rest.
        """
        changes = []
        if self._last is not None and not 0 <= ts - self._last <= self._how.gap_s:
            changes = self.finish()
        self._smooth(ts, scores)
        self._last = ts
        changes += [self._end(label) for label in list(self._open) if self._smoothed[label] < self._how.leave]
        entered = self._enter(ts)
        changes += entered
        begun = {change.stay.label for change in entered if change.phase == "new"}
        for label, stay in self._open.items():
            stay.until = ts
            stay.frames += label not in begun
            stay.peak = max(stay.peak, float(self._smoothed[label]))
            if ts - stay.told >= self._how.update_s:
                stay.told = ts
                changes.append(Change("update", replace(stay)))
        return changes

    def finish(self) -> list[Change]:
        """End what is present with the last frame, and start anew."""
        changes = [self._end(label) for label in list(self._open)]
        self._window.clear()
        self._votes[:] = 0
        self._rising.clear()
        self._last = None
        return changes

    def _smooth(self, ts: float, scores: Scores) -> None:
        how = self._how
        if how.smoothing == "ewma":
            # The weight of a frame grows with the time it stands for (Eckner, Algorithms for Unevenly Spaced Time
            # Series, 2012); frames of one moment have none but the first.
            weight = 1.0 if self._last is None else 1 - exp(-(ts - self._last) / how.span_s)
            self._smoothed += weight * (scores - self._smoothed)
            return
        voted = np.flatnonzero(scores)
        self._window.append((ts, voted))
        self._votes[voted] += 1
        while len(self._window) > MAX_FRAMES or self._window[0][0] <= ts - how.span_s:
            self._votes[self._window.popleft()[1]] -= 1
        self._smoothed = self._votes / len(self._window)

    def _enter(self, ts: float) -> list[Change]:
        high = np.flatnonzero((self._smoothed >= self._how.enter) & (self._smoothed > 0) & self._watched).tolist()
        before, self._rising = self._rising, {}
        for label in high:
            if label not in self._open:
                since, frames = before.get(label, (ts, 0))
                self._rising[label] = since, frames + 1
        ready = [label for label, (since, _) in self._rising.items() if ts - since >= self._how.min_s]
        if not self._exclusive:
            return [self._begin(label, ts) for label in ready]
        if not ready:
            return []
        best = max(ready, key=lambda label: float(self._smoothed[label]))
        if any(self._smoothed[label] >= self._smoothed[best] for label in self._open):
            return []
        return [*(self._end(label) for label in list(self._open)), self._begin(best, ts)]

    def _begin(self, label: int, ts: float) -> Change:
        since, frames = self._rising.pop(label)
        self._begun += 1
        stay = Stay(self._begun, label, since, ts, float(self._smoothed[label]), frames, ts)
        self._open[label] = stay
        return Change("new", replace(stay))

    def _end(self, label: int) -> Change:
        return Change("end", self._open.pop(label))


class Events:
    """Tells of the labels of one pipeline as events.

    Args:
        how: smoothing, thresholds and times.
        labels: of the model.
        exclusive: see `Presence`.
    """

    def __init__(self, how: EventsConfig, labels: tuple[str, ...], exclusive: bool) -> None:
        watched = None if how.labels is None else frozenset(labels.index(label) for label in how.labels)
        self._presence = Presence(how, len(labels), watched, exclusive)
        self._labels = labels
        self.votes = how.smoothing == "majority"

    @property
    def present(self) -> list[str]:
        """The labels whose events are open, in the order in which they began."""
        return [self._labels[label] for label in self._presence.present]

    def add(self, ts: float, scores: Scores) -> tuple[EventBody, ...]:
        """Take one frame's scores, or its votes where `votes` is set; see `Presence.add`."""
        return tuple(self._told(change) for change in self._presence.add(ts, scores))

    def end(self) -> tuple[EventBody, ...]:
        """End what is open."""
        return tuple(self._told(change) for change in self._presence.finish())

    def _told(self, change: Change) -> EventBody:
        stay = change.stay
        since = rfc3339(stay.since)
        return EventBody(
            # The number tells apart what began at one moment, and the time what began in another run.
            event=f"{since}/{stay.number}",
            phase=change.phase,
            label=self._labels[stay.label],
            score=round(stay.peak, 6),
            since=since,
            until=rfc3339(stay.until),
            count=stay.frames,
        )
