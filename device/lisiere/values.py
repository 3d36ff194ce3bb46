"""The values that flow: Frame and Reading from sources, Window from readings, Result from tasks.

They are plain records without behaviour. Arrays inside them are never written to once handed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct
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
    """

    image: NDArray[np.uint8]
    ts: float
    source: str
    index: int
    captured: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sensor said at one moment.

    Attributes:
        ts: event time, seconds since the epoch: the sensor's own stamp where it has one.
        values: one number a channel, in the order the source was asked for; NaN where it is missing.
        source: the name of the source.
    """

    ts: float
    values: tuple[float, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of readings on a regular grid, ready for a model.

    Attributes:
        values: float32, [length, channels]; NaN where a gap was too long to fill.
        start: event time of the first row, seconds since the epoch.
        end: event time of the last row.
        step_s: seconds between rows.
        coverage: share of the rows, 0 … 1, that come from real readings.
        imputed: how many rows were interpolated.
        source: the name of the source.
        real: bool, [length, channels]: which values come from real readings; None: all that are numbers.
    """

    values: NDArray[np.float32]
    start: float
    end: float
    step_s: float
    coverage: float
    imputed: int
    source: str
    real: NDArray[np.bool_] | None = None

    @property
    def complete(self) -> bool:
        """Whether every row holds a number."""
        return bool(np.isfinite(self.values).all())


class LabelScore(Struct, frozen=True):
    """A label and its probability."""

    label: str
    score: float


class ClassificationBody(Struct, frozen=True, kw_only=True):
    """The best label, and the best few in order."""

    label: str
    score: float
    top: list[LabelScore]


class ForecastingBody(Struct, frozen=True, kw_only=True):
    """Quantiles of the values to come, one number an element of `horizon`."""

    horizon: list[str]
    quantiles: dict[str, list[float]]


class AnomalyBody(Struct, frozen=True, kw_only=True):
    """Whether the window is like what the model has learnt; `score` is null when there was no data."""

    state: Literal["normal", "anomalous", "no_data"]
    score: float | None
    threshold: float


Body = ClassificationBody | ForecastingBody | AnomalyBody


@dataclass(frozen=True, slots=True)
class Result:
    """What a task made of one frame or window.

    Attributes:
        body: the `result` object of the envelope, as docs/contract has it for the task.
        preprocess_ms, infer_ms, postprocess_ms: where the time went.
    """

    body: Body
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
