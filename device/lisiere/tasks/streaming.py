"""The built-in detector as a task: readings on a grid to states and events, without a model."""

from __future__ import annotations

import math

from lisiere.clock import Clock
from lisiere.detector import DEFAULT_RATE, StreamDetector, threshold
from lisiere.models.manifest import WindowInput
from lisiere.settings.anomaly import AlarmConfig, DetectorConfig
from lisiere.tasks.alarm import Alarm
from lisiere.values import AnomalyBody, EventBody, Result, ScoreBody, Window

_COOL_DOWN_STEPS = 100
_GAP_STEPS = 10  # after a longer gap, what comes is no jump against what was before it


def grid(detector: DetectorConfig) -> WindowInput:
    """Return how readings become what the detector takes: one row at a time, and a hole for each that is missing."""
    return WindowInput(channels=detector.channels, length=1, step_s=detector.step_s, stride=1, max_gap=0)


class StreamingTask:
    """Scores the newest row of each window. What it has learnt ends with the process: a start begins anew."""

    def __init__(self, detector: DetectorConfig, alarm: AlarmConfig | None, clock: Clock) -> None:
        alarm = alarm or AlarmConfig()
        cool_down_s = _COOL_DOWN_STEPS * detector.step_s if alarm.cool_down_s is None else alarm.cool_down_s
        self._detector = StreamDetector(len(detector.channels))
        self._alarm = Alarm(alarm, cool_down_s)
        rate = alarm.wanted_rate(detector.step_s) or DEFAULT_RATE
        self._threshold = threshold(rate) if alarm.threshold is None else alarm.threshold
        self._clock = clock
        self._last = math.inf  # when there was a score last

    def __call__(self, item: Window) -> Result:
        """Score one row; see `Task`."""
        started = self._clock.monotonic()
        if item.end - self._last > _GAP_STEPS * item.step_s:
            self._detector.resume()
        score = self._detector(item.end, item.values[-1].tolist())
        if score is not None:
            self._last = item.end
        inferred = self._clock.monotonic()
        state, events = self._alarm(item.end, score, self._threshold)
        body = AnomalyBody(
            state=state, score=None if score is None else round(score, 4), threshold=round(self._threshold, 4)
        )
        return Result(body, 0.0, (inferred - started) * 1e3, (self._clock.monotonic() - inferred) * 1e3, events)

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """End an alarm that is on; see `Task`."""
        return self._alarm.end()
