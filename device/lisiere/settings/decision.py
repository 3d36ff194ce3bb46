"""Decision: when a label counts as decided, which labels a result lists, and when frames make an event."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lisiere.documents import Part
from lisiere.errors import ConfigError
from lisiere.settings.checks import EveryTrigger, MotionTrigger, TriggerConfig

Share = Annotated[float, Meta(ge=0, le=1)]


class EventsConfig(Part, frozen=True, kw_only=True):
    """How frames become events, on `event/<pipeline>`: by scores that are smoothed, between two thresholds.

    Attributes:
        smoothing: `ewma` is a mean of each label's scores that forgets with time; `majority`, the share of the frames
            of the last `span_s` whose best label is this one and is decided (detection: that show it).
        span_s: the time constant of the mean, or the length of the window; by the frames' own time.
        enter: a label begins an event when it is at least so high for `min_s`.
        leave: and ends it when it is lower than this.
        update_s: how often an event that lasts is told again.
        gap_s: without a frame for so long, an event ends with the last one.
        labels: those that make events; all unless given.
    """

    smoothing: Literal["ewma", "majority"] = "ewma"
    span_s: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    enter: Share = 0.7
    leave: Share = 0.4
    min_s: Annotated[float, Meta(ge=0, le=3600)] = 0.5
    update_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    gap_s: Annotated[float, Meta(gt=0, le=86_400)] = 10.0
    labels: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None


class DecisionConfig(Part, frozen=True, kw_only=True):
    """What a pipeline makes of a model's scores.

    Attributes:
        threshold: a best label with a lower score is not decided; it is listed all the same. Detection: objects with a
            lower score are left out, in place of what the model's manifest says.
        top: how many labels a result lists, in place of what the model's manifest says.
        coverage: how often a result's set of labels shall hold the true one, from the calibration in the model.
        events: whether the pipeline tells of events, and how.
    """

    threshold: Share | None = None
    top: Annotated[int, Meta(ge=1, le=1000)] | None = None
    coverage: Annotated[float, Meta(gt=0, lt=1)] | None = None
    events: EventsConfig | None = None


def check_decision(decision: DecisionConfig, trigger: TriggerConfig | None, path: str) -> None:
    """Check what a struct cannot say.

    Raises:
        ConfigError: with the path of what is wrong, below `path`.
    """
    events = decision.events
    if events is None:
        return
    if events.leave > events.enter:
        raise ConfigError(
            f"`leave` is {events.leave:g} and `enter` {events.enter:g}: an event would end where it begins. Give a "
            "`leave` that is not higher.",
            f"{path}.events.leave",
        )
    name, wait_s = "", 0.0
    if isinstance(trigger, EveryTrigger):
        name, wait_s = "every_s", trigger.every_s
    elif isinstance(trigger, MotionTrigger):
        name, wait_s = "longest_s", trigger.longest_s
    if wait_s >= events.gap_s:
        raise ConfigError(
            f"The trigger may wait {wait_s:g} s for a frame, and an event ends after {events.gap_s:g} s without one. "
            f"Give a longer `gap_s`, or a shorter `{name}`.",
            f"{path}.events.gap_s",
        )
