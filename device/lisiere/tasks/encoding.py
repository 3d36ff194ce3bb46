"""From a window to the numbers that a series model sees: normalisation and the calendar.

Training calls the same functions as the device, so a model is asked as it was taught.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lisiere.models.encoding import CALENDAR_SIZES, Covariates, Normalise

_DAY_S = 86_400
_EPSILON = 1e-5  # RevIN's, so that a window that does not move has a scale


def levels(rows: NDArray[np.floating], how: Normalise | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return level and scale, each float64 [..., 1, channels]: the model sees `(rows - level) / scale`.

    Args:
        rows: windows [..., length, channels] without holes, in raw units.
        how: as the manifest declares it; None means the readings themselves.
    """
    values = rows.astype(np.float64)
    shape = (*values.shape[:-2], 1, values.shape[-1])
    how = how or Normalise()
    if how.level == "last":
        level = values[..., -1:, :]
    elif how.level == "mean":
        level = values.mean(axis=-2, keepdims=True)
    else:
        level = np.broadcast_to(np.asarray(how.level, np.float64), shape)
    if how.scale == "std":
        scale = np.sqrt(values.var(axis=-2, keepdims=True) + _EPSILON)
    else:
        scale = np.broadcast_to(np.asarray(how.scale, np.float64), shape)
    return level, scale


def calendar(stamps: NDArray[np.float64], how: Covariates) -> NDArray[np.float32]:
    """Return the declared columns of the calendar at `stamps` [n], seconds since the epoch: float32 [n, columns].

    Stamps are rounded to milliseconds first: what a grid's arithmetic leaves behind must not fall into the day before.
    """
    local = np.round((stamps + how.utc_offset_s) * 1000).astype("datetime64[ms]")
    day, month, year = (local.astype(f"datetime64[{unit}]") for unit in "DMY")
    in_day = (local - day).astype(np.float64) / 1000
    positions = {
        "time_of_day": in_day / _DAY_S,
        "minute_of_hour": in_day // 60 % 60,
        "hour_of_day": in_day // 3600,
        "day_of_week": (day.astype(np.int64) + 3) % 7,  # 1970-01-01 was a Thursday
        "day_of_month": (day - month.astype("datetime64[D]")).astype(np.int64),
        "day_of_year": (day - year.astype("datetime64[D]")).astype(np.int64),
        "month_of_year": month.astype(np.int64) % 12,
    }
    columns = []
    for part in how.calendar:
        position, size = positions[part.part], CALENDAR_SIZES[part.part]
        if part.encoding == "cyclic":
            turn = 2 * np.pi * position / (size or 1)
            columns += [np.sin(turn), np.cos(turn)]
        elif part.encoding == "linear":
            columns.append(position / ((size - 1) if size else 1) - 0.5)
        else:
            columns += [position == value for value in range(size or 0)]
    return np.stack(columns, axis=1).astype(np.float32)
