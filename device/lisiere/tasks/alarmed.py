"""A model's scores as alarms: another threshold than its own, hysteresis, cool-down, and events."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from lisiere.settings.anomaly import AlarmConfig
from lisiere.tasks.alarm import Alarm, Threshold
from lisiere.tasks.base import Task
from lisiere.values import AnomalyBody, EventBody, Result, ScoreBody


class AlarmedTask:
    """An anomaly task whose states and events follow the pipeline's `alarm`.

    Args:
        task: gives the scores.
        alarm: when they are alarms.
        step_s: seconds between results.
    """

    def __init__(self, task: Task, alarm: AlarmConfig, step_s: float) -> None:
        self._task = task
        self._alarm = Alarm(alarm, alarm.cool_down_s or 0.0)
        self._fixed = alarm.threshold
        self._rate = alarm.wanted_rate(step_s)
        self._learnt: Threshold | None = None

    def __call__(self, item: Any) -> Result | None:
        """Score a window and say whether there is an alarm; see `Task`."""
        result = self._task(item)
        if result is None or not isinstance(result.body, AnomalyBody):
            return result
        body = result.body
        threshold = body.threshold if self._fixed is None else self._fixed
        if self._rate is not None:
            self._learnt = self._learnt or Threshold(self._rate, threshold)
            threshold = self._learnt.value
        state, events = self._alarm(item.end, body.score, threshold)
        if self._learnt is not None and body.score is not None and state == "normal":
            self._learnt.learn(body.score)
        body = msgspec.structs.replace(body, state=state, threshold=round(threshold, 6))
        return replace(result, body=body, messages=(*result.messages, *events))

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """End an alarm that is on; see `Task`."""
        return (*self._task.end(), *self._alarm.end())
