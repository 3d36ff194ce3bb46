"""What a manifest says of how readings are encoded: normalisation, and what is known in advance.

`lisiere.tasks.encoding` does what stands here, for the device and for training.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from lisiere.documents import Part


class Normalise(Part, frozen=True, kw_only=True):
    """What a model sees of raw readings: `(value - level) / scale`, by channel. A forecast is turned back the same way.

    Attributes:
        level: one number for all channels or one a channel, such as the mean of the training part; or of each window
            its `last` row or its `mean`.
        scale: the same, such as the standard deviation of the training part; or of each window its `std`, which is the
            root of its variance plus 1e-5.

    Sources: Zeng et al., AAAI 2023 (NLinear: `last`); Kim et al., ICLR 2022 (RevIN: `mean` and `std`).
    """

    level: tuple[float, ...] | Literal["last", "mean"] = (0.0,)
    scale: tuple[float, ...] | Literal["std"] = (1.0,)


# How many values each has; None: it is a share of the day, and is no class.
CALENDAR_SIZES: Final[dict[str, int | None]] = {
    "time_of_day": None,
    "minute_of_hour": 60,
    "hour_of_day": 24,
    "day_of_week": 7,
    "day_of_month": 31,
    "day_of_year": 366,
    "month_of_year": 12,
}


class Calendar(Part, frozen=True, kw_only=True):
    """Something of the calendar as columns of numbers, counted from 0: Monday, the first day and January are 0.

    Attributes:
        part: `time_of_day` is the share of the day that has passed; all others are whole numbers.
        encoding: `cyclic`: sine and cosine of the turn; `linear`: -0.5 … 0.5; `one_hot`: one column a value.
    """

    part: Literal[
        "time_of_day", "minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year", "month_of_year"
    ]
    encoding: Literal["cyclic", "linear", "one_hot"] = "cyclic"

    @property
    def columns(self) -> int:
        """How many columns it gives."""
        return {"cyclic": 2, "linear": 1, "one_hot": CALENDAR_SIZES[self.part] or 0}[self.encoding]


class Covariates(Part, frozen=True, kw_only=True):
    """What is known in advance: the model's second input, [1, length + horizon, columns]; horizon is 0 for anomaly.

    Attributes:
        calendar: its columns, in this order.
        utc_offset_s: of the local time that the calendar is read in, all the year round.
    """

    calendar: Annotated[tuple[Calendar, ...], Meta(min_length=1)]
    utc_offset_s: Annotated[float, Meta(ge=-50_400, le=50_400)] = 0.0

    @property
    def columns(self) -> int:
        """How many columns there are in all."""
        return sum(part.columns for part in self.calendar)
