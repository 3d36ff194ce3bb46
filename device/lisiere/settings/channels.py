"""Settings of a sensor's channels: their units, and what they can and cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from lisiere.documents import Part
from lisiere.errors import ConfigError

_Span = Annotated[float, Meta(gt=0, le=1e9)]


class ChannelConfig(Part, frozen=True, kw_only=True):
    """What is known of a channel. Each part that is given is watched; what it says is told as a fault of the reading.

    Attributes:
        unit: of its values; for messages, and held against the unit of a forecasting model.
        min, max: values below and above are `out_of_range`.
        max_rate: units a second: a value is a fault of `rate` when it differs by more from the one before.
        stuck_s: a value that has been the same for so long, in seconds, is `stuck`.
        stuck_tolerance: what still counts as the same.
        gap_s: without a value for longer, in seconds, there is a `gap`.
        policy: `mark` keeps the values of a fault, `withhold` makes them missing, so that no model sees them.
    """

    unit: Annotated[str, Meta(max_length=32)] = ""
    min: float | None = None
    max: float | None = None
    max_rate: _Span | None = None
    stuck_s: _Span | None = None
    stuck_tolerance: Annotated[float, Meta(ge=0)] = 0.0
    gap_s: _Span | None = None
    policy: Literal["mark", "withhold"] = "mark"


def check_channels(channels: Mapping[str, ChannelConfig], at: str) -> None:
    """Check what the types cannot say; `at` is where the configuration has them.

    Raises:
        ConfigError: a range is empty or no number, or a tolerance has nothing to be about.
    """
    for name, channel in channels.items():
        low = -math.inf if channel.min is None else channel.min
        high = math.inf if channel.max is None else channel.max
        if not low <= high:
            raise ConfigError(f"No value is at least {low:g} and at most {high:g}.", f"{at}.{name}")
        if channel.stuck_tolerance and channel.stuck_s is None:
            raise ConfigError("A `stuck_tolerance` needs `stuck_s`.", f"{at}.{name}.stuck_tolerance")
