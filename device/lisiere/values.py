"""The values that flow: Frame and Reading from sources, Window from readings, Result from tasks.

They are plain records without behaviour. Arrays inside them are never written to once handed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType


class InputInfo(Struct, frozen=True, kw_only=True):
    """How far the input of a result can be trusted.

    Attributes:
        faults: what is wrong with it, by name, such as `frozen` or `stuck:vibration`; none when nothing is.
        age_ms: how old it was when the model saw it, where that is known.
        measures: what the judgement rests on, by name.
        command: the `id` of the command `infer` that asked for it; absent where none did.
    """

    faults: tuple[str, ...] = ()
    age_ms: float | None = None
    measures: dict[str, float] = msgspec.field(default_factory=dict)
    command: str | UnsetType = UNSET


if TYPE_CHECKING:  # every command imports this file, and few need NumPy
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image.

    Attributes:
        image: uint8, [height, width, 3] in BGR order (OpenCV's) or [height, width] for grey.
        ts: when it was captured, seconds since the epoch.
        source: the name of the source.
        index: 0, 1, 2, … in the order of capture within one opening of the source.
        captured: the clock's monotonic seconds when it had arrived whole, which its age is counted from; None where
            nobody looked.
        input: what it was found to be; None before it has been judged.
    """

    image: NDArray[np.uint8]
    ts: float
    source: str
    index: int
    captured: float | None = None
    input: InputInfo | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor said at one moment.

    Attributes:
        ts: event time, seconds since the epoch: the sensor's own stamp where it has one.
        values: one number a channel, in the order the source was asked for; NaN where it is missing.
        source: the name of the source.
        faults: what is wrong with it, by name, such as `stuck:vibration`.
    """

    ts: float
    values: tuple[float, ...]
    source: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """Many readings at once, in the order of arrival.

    Attributes:
        ts: float64, [n]: event times, seconds since the epoch.
        values: float64, [n, channels]; NaN where one is missing.
        source: the name of the source.
        faults: what is wrong with some of them: index -> names.
    """

    ts: NDArray[np.float64]
    values: NDArray[np.float64]
    source: str
    faults: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ts)


class Window(Struct, frozen=True):
    """A stretch of readings on a regular grid, ready for a model.

    It is a struct rather than a dataclass because it is made for every reading, and so in a tenth of the time.

    Attributes:
        values: float32, [length, channels]; NaN where a gap was too long to fill.
        start: event time of the first row, seconds since the epoch.
        end: event time of the last row.
        step_s: seconds between rows.
        coverage: share of the values, 0 … 1, that come from real readings.
        imputed: how many rows were interpolated, in one channel at least.
        source: the name of the source.
        real: bool, [length, channels]: which values come from real readings; None: all that are numbers.
        faults: what was wrong with the readings in it, by name, each once; `gap` where values are missing.
    """

    values: NDArray[np.float32]
    start: float
    end: float
    step_s: float
    coverage: float
    imputed: int
    source: str
    real: NDArray[np.bool_] | None = None
    faults: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every row holds a number."""
        import numpy as np

        return bool(np.isfinite(self.values).all())


class LabelScore(Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class ClassificationBody(Struct, frozen=True, kw_only=True):
    """The best label, and the best few in order.

    Attributes:
        decided: whether the best label's score reaches the pipeline's `decision.threshold`. Where it does not, nothing
            is known but the scores.
        set: with `decision.coverage`, the labels of which one is the true one as often as was asked for; the likeliest
            first, and `label` always among them.
        steady: with `decision.events`, the label of the event that is open, or null.
    """

    label: str
    score: float
    top: list[LabelScore]
    decided: bool = True
    set: list[str] | UnsetType = UNSET
    steady: str | UnsetType | None = UNSET


class DetectedObject(Struct, frozen=True, kw_only=True):
    """One object: `box` is left, top, width and height in pixels of the frame, within it."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class DetectionBody(Struct, frozen=True, kw_only=True):
    """The objects in a frame of `width` times `height` pixels, the surest first.

    Attributes:
        steady: with `decision.events`, the labels of the events that are open.
    """

    objects: list[DetectedObject]
    width: int
    height: int
    steady: list[str] | UnsetType = UNSET


class Interval(Struct, frozen=True, kw_only=True):
    """Where a share `coverage` of the values to come should lie, one number an element of `horizon`."""

    coverage: float
    low: list[float]
    high: list[float]


class ChannelForecast(Struct, frozen=True, kw_only=True):
    """Quantiles of one channel, and its interval as in `ForecastingBody`."""

    quantiles: dict[str, list[float]]
    interval: Interval | None


class ForecastingBody(Struct, frozen=True, kw_only=True):
    """Quantiles of the values to come, one number an element of `horizon`.

    Attributes:
        method: `seasonal_naive` while the model was worse than that for long.
        interval: as wide as it must be to cover its share, by what earlier forecasts met; null while nothing is known.
        channels: by channel, of a model that forecasts several; `quantiles` is empty and `interval` null then.
    """

    horizon: list[str]
    method: Literal["model", "seasonal_naive"] = "model"
    quantiles: dict[str, list[float]] = msgspec.field(default_factory=dict)
    interval: Interval | None = None
    channels: dict[str, ChannelForecast] | UnsetType = UNSET


class AnomalyBody(Struct, frozen=True, kw_only=True):
    """Whether the window is like what the model has learnt; `score` is null when there was no data."""

    state: Literal["normal", "anomalous", "no_data"]
    score: float | None
    threshold: float


class ChannelScore(Struct, frozen=True, kw_only=True):
    """How forecasts of a channel did; null where there was nothing to compare with.

    Attributes:
        n: how many values were measured.
        mae: mean absolute error of the median that was sent, in the unit of the channel.
        model_mae: the same of the model's median, whether it was sent or not.
        naive_mae: the same of the seasonal-naive forecast.
        skill: 1 - model_mae / naive_mae.
        coverage: share of the values within the interval that was sent.
        pinball: mean pinball loss of the quantiles that were sent; twice that approximates the CRPS.
    """

    n: int
    mae: float | None
    model_mae: float | None
    naive_mae: float | None
    skill: float | None
    coverage: float | None
    pinball: float | None


class LeadScore(Struct, frozen=True, kw_only=True):
    """Running figures of the steps `first` to `last`, counted from 1, over all channels."""

    first: int
    last: int
    skill: float | None
    coverage: float | None


class RunningScore(Struct, frozen=True, kw_only=True):
    """Figures over the last `forecasts` scored ones; `unscored` counts those that met no reading, since the start.

    `skill` is that of all channels, by the geometric mean of their ratios. `every` is above 1 where memory holds only
    every so many-th forecast until its time: the others are not scored.
    """

    forecasts: int
    every: int
    unscored: int
    skill: float | None
    channels: dict[str, ChannelScore]
    leads: list[LeadScore]


class ScoreBody(Struct, frozen=True, kw_only=True):
    """How a forecast did, told when its time has come. It is unscored when no channel's `n` is above zero.

    Attributes:
        made_ts: the end of the window that it was made from (RFC 3339), and `until_ts` its last step.
        method: what was sent.
        steps: its horizon.
        skill: of the model, over all channels as in `RunningScore`.
    """

    made_ts: str
    until_ts: str
    method: Literal["model", "seasonal_naive"]
    steps: int
    skill: float | None
    channels: dict[str, ChannelScore]
    running: RunningScore


Body = ClassificationBody | DetectionBody | ForecastingBody | AnomalyBody


class EventBody(Struct, frozen=True, kw_only=True):
    """Something that lasts: a label that is seen, an alarm that is on. One `new`, some `update`, one `end`.

    Attributes:
        event: the same in all messages of one event, and another in each of the pipeline.
        label: what it is: the class, or `anomalous`.
        score: the highest so far, where there are scores.
        since: when it began, and `until` when it was seen last (RFC 3339).
        count: how many results it rests on so far.
    """

    event: str
    phase: Literal["new", "update", "end"]
    label: str
    score: float | None
    since: str
    until: str
    count: int


# What a pipeline may send: results, and what comes of several of them.
MessageKind = Literal["result", "event", "score"]


@dataclass(frozen=True, slots=True)
class Result:
    """What a task made of one frame or window.

    Attributes:
        body: the `result` object of the envelope, as docs/contract has it for the task; None when there is none.
        preprocess_ms, infer_ms, postprocess_ms: where the time went.
        messages: what else is to be told, in order, behind the result.
    """

    body: Body | None
    preprocess_ms: float = 0.0
    infer_ms: float = 0.0
    postprocess_ms: float = 0.0
    messages: tuple[EventBody | ScoreBody, ...] = ()
