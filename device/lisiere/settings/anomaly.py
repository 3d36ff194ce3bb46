"""Settings of anomaly detection: the built-in detector, and when a score is an alarm."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta

from lisiere.documents import Part
from lisiere.errors import ConfigError


class DetectorConfig(Part, frozen=True, kw_only=True):
    """The built-in detector in place of a model: it needs no training, and watches from the first day.

    Attributes:
        channels: what it watches, each by itself and all together.
        step_s: seconds between readings; a step without one is `no_data`.
    """

    channels: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1, max_length=64)]
    step_s: Annotated[float, Meta(gt=0, le=1e9)]


class AlarmConfig(Part, frozen=True, kw_only=True):
    """When a score becomes an alarm, and when the alarm is over. An alarm is told as an event: new, update, end.

    At most one of the first three is given. Unset: what the model's manifest says, and 0.0015 alarms a result for the
    built-in detector.

    Attributes:
        threshold: scores above it are alarms.
        rate: how many alarms a result normal data shall give; the threshold follows from the scores so far.
        false_alarms_per_day: the same by the day.
        hysteresis: the alarm goes on while scores stay above this share of the threshold,
        clear_after: and is over once so many results in a row have not.
        cool_down_s: so long after an alarm only a score that is higher by a fifth than that alarm's gives another.
            Unset: 100 steps for the built-in detector, nothing for a model.
    """

    threshold: float | None = None
    rate: Annotated[float, Meta(gt=0, lt=0.04)] | None = None
    false_alarms_per_day: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    hysteresis: Annotated[float, Meta(gt=0, le=1)] = 0.8
    clear_after: Annotated[int, Meta(ge=1, le=100_000)] = 20
    cool_down_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None

    def wanted_rate(self, step_s: float) -> float | None:
        """Alarms a result, where results come every `step_s` seconds; None when no rate is wanted."""
        if self.false_alarms_per_day is not None:
            return self.false_alarms_per_day * step_s / 86_400.0
        return self.rate


def check_alarm(alarm: AlarmConfig, step_s: float, at: str) -> None:
    """Check what the types cannot say; `at` is where the configuration has it.

    Args:
        alarm: what is asked for.
        step_s: seconds between results.
        at: where it stands.

    Raises:
        ConfigError: two things are asked for, or more alarms than a tail of scores can tell.
    """
    given = [name for name in ("threshold", "rate", "false_alarms_per_day") if getattr(alarm, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"Of {' and '.join(given)} one says when there is an alarm.", at)
    if alarm.threshold is not None and not math.isfinite(alarm.threshold):
        raise ConfigError("A `threshold` is a number.", f"{at}.threshold")
    rate = alarm.wanted_rate(step_s)
    if rate is not None and rate >= 0.04:
        raise ConfigError(
            f"With a result every {step_s:g} s that is an alarm in every {1 / rate:.3g} results; at most one in 25 is "
            "possible.",
            f"{at}.{given[0]}",
        )
