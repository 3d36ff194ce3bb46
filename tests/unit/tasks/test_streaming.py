"""The built-in detector in a pipeline: rows to states, holes to `no_data`, alarms to events."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.settings.anomaly import AlarmConfig, DetectorConfig
from lisiere.tasks.streaming import StreamingTask, grid
from lisiere.values import AnomalyBody, EventBody, Reading
from lisiere.windows import WindowBuilder

DETECTOR = DetectorConfig(channels=("value",), step_s=60.0)
START = 1_767_225_600.0


def run(readings: list[tuple[float, float]], alarm: AlarmConfig | None = None) -> tuple[list[AnomalyBody], list[str]]:
    """Bodies of the results of `(minute, value)`, and the phases of the events."""
    task = StreamingTask(DETECTOR, alarm, SystemClock())
    builder = WindowBuilder(grid(DETECTOR), "s")
    bodies: list[AnomalyBody] = []
    phases: list[str] = []
    for minute, value in readings:
        for window in builder.add(Reading(START + 60 * minute, (value,), "s")):
            result = task(window)
            assert isinstance(result.body, AnomalyBody)
            bodies.append(result.body)
            phases += [event.phase for event in result.messages if isinstance(event, EventBody)]
    return bodies, phases + [event.phase for event in task.end() if isinstance(event, EventBody)]


def noise(rows: int) -> list[tuple[float, float]]:
    return list(enumerate(np.random.default_rng(0).normal(20, 1, rows).tolist()))


def test_each_reading_has_a_result_and_a_fault_is_an_alarm() -> None:
    readings = noise(1000)
    readings[700] = (700, 90.0)
    bodies, phases = run(readings, AlarmConfig(threshold=6.0, clear_after=5))
    assert len(bodies) == 1000
    assert bodies[699].state == "normal"
    assert bodies[700].state == "anomalous"
    assert bodies[-1].state == "normal"
    assert bodies[0].threshold == 6.0
    assert phases[0] == "new"
    assert phases[-1] == "end"


def test_a_gap_is_no_data_and_is_recovered_from() -> None:
    readings = [reading for reading in noise(1000) if not 500 <= reading[0] < 520]
    readings += [(1000 + at, math.nan) for at in range(3)] + [(1003, 20.0)]
    bodies, _ = run(readings, AlarmConfig(threshold=8.0))
    missing = [body for body in bodies if body.state == "no_data"]
    assert missing
    assert all(body.score is None for body in missing)
    assert bodies[-1].state == "normal"
    assert bodies[-1].score is not None


def test_a_rate_by_the_day_sets_the_threshold() -> None:
    often, _ = run(noise(2), AlarmConfig(false_alarms_per_day=10))
    seldom, _ = run(noise(2), AlarmConfig(false_alarms_per_day=1))
    assert seldom[0].threshold - often[0].threshold == pytest.approx(1.43)
    same, _ = run(noise(2), AlarmConfig(rate=10 / 1440))
    assert same[0].threshold == often[0].threshold
