"""Settings of windows: how a pipeline's readings become what its model takes."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lisiere.documents import Part

Aggregate = Literal["mean", "last", "min", "max"]


class WindowConfig(Part, frozen=True, kw_only=True):
    """How readings become windows; what is not given here the model's manifest says.

    Attributes:
        channels, length, step_s: what the model must take; another model is refused.
        stride: a window is made every `stride` rows; `length` makes them tumble, less makes them slide.
        max_gap: gaps of at most so many rows are interpolated; windows with longer ones are `no_data`.
        aggregate: what several readings of one channel in one step amount to.
        lateness_s: how far behind the newest reading another may be and still count. Windows come so much later.
        idle_s: after so long without a reading the clock closes windows, so that a silent sensor shows. 0: never.
            Unset: 30 s, at least 10 steps and `max_gap` + 2, and `lateness_s` more. Of live sources alone.
    """

    channels: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None
    length: Annotated[int, Meta(ge=2, le=1_000_000)] | None = None
    step_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    stride: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_gap: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    aggregate: Aggregate = "mean"
    lateness_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    idle_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None
