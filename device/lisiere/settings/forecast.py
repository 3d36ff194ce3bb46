"""Settings of forecasts: their intervals, how they are judged, and when the model is not believed."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from lisiere.documents import Part


class Fallback(Part, frozen=True, kw_only=True):
    """When the seasonal-naive forecast is sent in place of the model's: by the model's skill over a long time.

    That is as many forecasts as are made in five horizons, and at least `running`; recent ones count for more.

    Attributes:
        below: the model is left when its skill is below this.
        above: and taken again when it is above this, after as long a time again at least.
    """

    below: Annotated[float, Meta(ge=-10, le=1)] = 0.0
    above: Annotated[float, Meta(ge=-10, le=1)] = 0.05


class ForecastConfig(Part, frozen=True, kw_only=True):
    """How forecasts are sent and judged.

    Attributes:
        coverage: the share of values that intervals should cover.
        season_s: the season of the naive forecast; unset: a day, a week, or else the last value, by the model's step.
        running: how many scored forecasts running figures are of.
        fallback: null: the model is always believed.
    """

    coverage: Annotated[float, Meta(ge=0.5, le=0.99)] = 0.9
    season_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    running: Annotated[int, Meta(ge=10, le=10_000)] = 100
    fallback: Fallback | None = field(default_factory=Fallback)
