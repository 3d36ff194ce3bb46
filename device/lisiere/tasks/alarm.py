"""Alarms: from scores to a state and events, with a target rate, hysteresis and cool-down."""

from __future__ import annotations

from typing import Literal

from lisiere.clock import rfc3339
from lisiere.detector.tail import Tail
from lisiere.settings.anomaly import AlarmConfig
from lisiere.values import EventBody

State = Literal["normal", "anomalous", "no_data"]
LABEL = "anomalous"
_MEMORY = 500.0  # excesses that a threshold rests on: it should stand still where nothing changes
_HIGHER = 1.2  # times as high as what was told is worth telling


class Threshold:
    """The score that normal results exceed at a target rate, learnt from those so far.

    Results that are alarms are not learnt from. Until 150 are known, what was given at first holds.
    Source: SPOT, see `Tail`.
    """

    def __init__(self, rate: float, first: float) -> None:
        self._rate = rate
        self._tail = Tail(_MEMORY)
        self.value = first

    def learn(self, score: float) -> None:
        """Take one result that was normal. Scores are taken for errors: what is negative counts as 0."""
        self._tail(max(score, 0.0))
        level = self._tail.level(self._rate)
        if level is not None:
            self.value = level


class Alarm:
    """Keeps an alarm on while scores stay up, and tells its beginning, its heights and its end.

    Args:
        how: hysteresis and the length of calm.
        cool_down_s: how long after an alarm only a higher one is told.
    """

    def __init__(self, how: AlarmConfig, cool_down_s: float) -> None:
        self._how = how
        self._cool_down_s = cool_down_s
        self._since: float | None = None
        self._until = 0.0
        self._best = 0.0
        self._told = 0.0
        self._count = 0
        self._calm = 0

    def __call__(self, ts: float, score: float | None, threshold: float) -> tuple[State, tuple[EventBody, ...]]:
        """Take one score, and return the state and what is to be told.

        Args:
            ts: event time, seconds since 1970.
            score: None without data; so much of it as ends an alarm does.
            threshold: of this moment.
        """
        if self._since is None:
            return ("no_data", ()) if score is None else self._begin(ts, score, threshold)
        if score is not None and score > (threshold * self._how.hysteresis if threshold > 0 else threshold):
            self._calm = 0
            self._count += 1
            self._until = ts
            self._best = max(self._best, score)
            if score > _HIGHER * self._told:
                self._told = score
                return "anomalous", (self._event("update"),)
            return "anomalous", ()
        self._calm += 1
        if self._calm < self._how.clear_after:
            return ("no_data" if score is None else "anomalous"), ()
        return ("no_data" if score is None else "normal"), self.end()

    def end(self) -> tuple[EventBody, ...]:
        """End the alarm, if there is one."""
        if self._since is None:
            return ()
        event = self._event("end")
        self._since = None
        return (event,)

    def _begin(self, ts: float, score: float, threshold: float) -> tuple[State, tuple[EventBody, ...]]:
        cooling = self._count > 0 and 0 <= ts - self._until < self._cool_down_s
        if score <= threshold or (cooling and score <= _HIGHER * self._best):
            return "normal", ()
        self._since = self._until = ts
        self._best = self._told = score
        self._count, self._calm = 1, 0
        return "anomalous", (self._event("new"),)

    def _event(self, phase: Literal["new", "update", "end"]) -> EventBody:
        assert self._since is not None  # noqa: S101 - there is an alarm
        since = rfc3339(self._since)
        return EventBody(
            event=f"{LABEL}-{since}",
            phase=phase,
            label=LABEL,
            score=round(self._best, 6),
            since=since,
            until=rfc3339(self._until),
            count=self._count,
        )
