"""A model's scores as alarms: fixed thresholds, learnt ones, and events behind the results."""

from __future__ import annotations

import numpy as np
import pytest

from lisiere.settings.anomaly import AlarmConfig
from lisiere.tasks.alarmed import AlarmedTask
from lisiere.values import AnomalyBody, EventBody, Result, ScoreBody, Window


class Scores:
    """A task that gives the scores that it is told to."""

    def __init__(self, scores: list[float | None]) -> None:
        self._scores = iter(scores)

    def __call__(self, item: Window) -> Result:  # noqa: ARG002
        score = next(self._scores)
        state = "no_data" if score is None else "normal"
        return Result(AnomalyBody(state=state, score=score, threshold=10.0), 1.0, 2.0, 3.0)  # type: ignore[arg-type]

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        return ()


def run(scores: list[float | None], alarm: AlarmConfig, step_s: float = 1.0) -> tuple[list[AnomalyBody], list[str]]:
    task = AlarmedTask(Scores(scores), alarm, step_s)
    bodies: list[AnomalyBody] = []
    phases: list[str] = []
    for at in range(len(scores)):
        end = at * step_s
        result = task(Window(np.zeros((1, 1), np.float32), end, end, step_s, 1.0, 0, "s"))
        assert result is not None
        assert isinstance(result.body, AnomalyBody)
        assert result.infer_ms == 2.0
        bodies.append(result.body)
        phases += [event.phase for event in result.messages if isinstance(event, EventBody)]
    return bodies, phases + [event.phase for event in task.end() if isinstance(event, EventBody)]


def test_the_models_threshold_holds_unless_another_is_given() -> None:
    scores: list[float | None] = [9.0, 11.0, None]
    assert [body.state for body in run(scores, AlarmConfig())[0]] == ["normal", "anomalous", "no_data"]
    bodies, phases = run(scores, AlarmConfig(threshold=12.0))
    assert [body.state for body in bodies] == ["normal", "normal", "no_data"]
    assert bodies[0].threshold == 12.0
    assert phases == []
    assert run(scores, AlarmConfig())[1] == ["new", "end"]


@pytest.mark.parametrize("alarm", [AlarmConfig(rate=0.002), AlarmConfig(false_alarms_per_day=0.002 * 1440)])
def test_a_rate_is_kept_within_a_factor_of_two_and_a_half(alarm: AlarmConfig) -> None:
    how = AlarmConfig(rate=alarm.rate, false_alarms_per_day=alarm.false_alarms_per_day, clear_after=1, hysteresis=1.0)
    normal: list[float | None] = np.random.default_rng(1).exponential(1.0, 20_000).tolist()
    bodies, phases = run(normal, how, step_s=60.0)
    assert bodies[0].threshold == 10.0  # the model's, until enough is known
    assert 0.4 < phases.count("new") / len(normal) / 0.002 < 2.5


def test_what_is_an_alarm_teaches_nothing() -> None:
    rng = np.random.default_rng(2)
    normal: list[float | None] = rng.exponential(1.0, 3000).tolist()
    faulty: list[float | None] = (50 + rng.exponential(1.0, 500)).tolist()
    bodies, _ = run(normal + faulty, AlarmConfig(rate=0.001))
    assert bodies[-1].threshold == bodies[3001].threshold
    assert all(body.state == "anomalous" for body in bodies[3000:])
