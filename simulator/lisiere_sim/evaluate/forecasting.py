"""Figures of forecasting runs: errors, CRPS and coverage, by channel and by how far ahead, against what came."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import parse_ts
from lisiere.errors import ConfigError, Rejected
from lisiere.models import open_package
from lisiere.models.manifest import WindowInput
from lisiere.tasks.intervals import lead_groups
from lisiere.tasks.scoring import season_rows
from lisiere_sim.evaluate.kind import Figures, Kind, Record

Array = NDArray[np.float64]
HOLDOUT = "holdout.csv"
_MOST_DRAWN = 20  # forecasts beside each other; more cannot be told apart
# What is summed up, for each channel and each step ahead.
_N, _ABSOLUTE, _SQUARE, _PINBALL, _INSIDE, _INTERVALS, _BETWEEN = range(7)


@dataclass(frozen=True)
class Truth:
    """What came.

    Attributes:
        times: float64, [rows], rising: seconds since the epoch.
        values: channel -> float64, [rows], NaN where nothing was measured.
        scale: channel -> what standardised values are divided by, where a model's manifest says it.
    """

    times: Array
    values: dict[str, Array]
    scale: dict[str, float]


def read_truth(path: Path) -> Truth:
    """Read what came: a CSV file with a column of time and one a channel, or the folder of a model with a holdout.csv.

    A folder's manifest says by what values are standardised, too.

    Raises:
        ConfigError: it is no such file.
    """
    scale: dict[str, float] = {}
    if path.is_dir():
        try:
            how = open_package(path).manifest.input
        except Rejected as error:
            raise ConfigError(str(error)) from error
        if isinstance(how, WindowInput) and how.normalise is not None and isinstance(how.normalise.scale, tuple):
            scales = how.normalise.scale * (len(how.channels) if len(how.normalise.scale) == 1 else 1)
            scale = dict(zip(how.channels, scales, strict=True))
        path = path / HOLDOUT
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header, *rows = csv.reader(stream)
        times = np.array([parse_ts(row[0]) for row in rows])
        cells = np.array([[float(cell or "nan") for cell in row[1:]] for row in rows])
    except (OSError, ValueError, IndexError, csv.Error, Rejected) as error:
        raise ConfigError(f"{path} is no series with a header, times first and numbers behind: {error}.") from error
    if cells.ndim != 2 or cells.shape[1] != len(header) - 1 or not len(header) > 1:
        raise ConfigError(f"{path} has no values under its header.")
    order = np.argsort(times, kind="stable")
    return Truth(times[order], {name.strip(): cells[order, at] for at, name in enumerate(header[1:])}, scale)


def compact(record: Record) -> Record:
    """Keep of a result what is needed here, in arrays: `forecast`, channel -> (quantiles [horizon, levels], interval).

    The interval is [2, horizon], or None. The channel of a forecast of one has the empty name.
    """
    body = record["result"]
    parts = body.get("channels") or {"": body}
    levels = tuple(float(level) for level in next(iter(parts.values()))["quantiles"])
    forecast = {}
    for name, part in parts.items():
        interval = part.get("interval")
        forecast[name] = (
            np.array(list(part["quantiles"].values()), np.float64).T,
            None if interval is None else np.array([interval["low"], interval["high"]], np.float64),
        )
    window = record["window"]
    return {
        "pipeline": record.get("pipeline", ""),
        "end": parse_ts(window["end"]),
        "step_s": float(window["step_s"]),
        "method": body.get("method", "model"),
        "levels": levels,
        "forecast": forecast,
    }


def figures(results: list[Record], truth: Truth) -> Figures:
    """Compare forecasts with what came; those whose horizon does not wholly lie within the truth are left out.

    MSE and MAE are those of the median. MASE divides the MAE by that of the seasonal-naive forecast one step ahead,
    within the truth before the first forecast (Hyndman and Koehler, Another look at measures of forecast accuracy,
    2006). CRPS is twice the mean pinball loss of the quantiles that are there. `coverage` is that of the intervals,
    `between` the share between the outermost quantiles. `standardised` is the mean over channels of values divided by
    the scale of the model's manifest, as published tables have it.
    """
    forecasts = [result if "forecast" in result else compact(result) for result in results]
    within = [one for one in forecasts if _within(one, truth)]
    found: Figures = {"forecasts": len(forecasts), "scored": len(within)}
    if not within:
        return found
    found["by_model"] = sum(one["method"] == "model" for one in within)
    names = {name: _column(name, truth) for name in within[0]["forecast"]}
    sums = {name: _sums(within, name, truth.times, truth.values[column]) for name, column in names.items()}
    first = within[0]
    before = truth.times <= first["end"]
    scales = np.array([truth.scale.get(column, math.nan) for column in names.values()])
    if np.isfinite(scales).all():
        found["standardised"] = _over_channels(np.stack([part.sum(0) for part in sums.values()]), scales)
    for name, column in names.items():
        naive = _naive_error(truth.values[column][before], first["step_s"])
        found[column] = {**_told(sums[name].sum(0), first["levels"]), "mase": _ratio(sums[name], naive)}
    groups = lead_groups(len(next(iter(sums.values()))))
    for group in range(int(groups.max()) + 1):
        leads = np.flatnonzero(groups == group) + 1
        span = f"steps {leads[0]}-{leads[-1]}" if len(leads) > 1 else f"step {leads[0]}"
        parts = np.stack([part[leads - 1].sum(0) for part in sums.values()])
        # Values of several channels add up when they are standardised, and only then.
        found[span] = _told(parts[0], first["levels"]) if len(parts) == 1 else _over_channels(parts, scales)
    return found


def _within(one: Record, truth: Truth) -> bool:
    horizon = len(next(iter(one["forecast"].values()))[0])
    slack = one["step_s"] / 2
    first, last = one["end"] + one["step_s"], one["end"] + horizon * one["step_s"]
    return bool(first >= truth.times[0] - slack and last <= truth.times[-1] + slack)


def _column(name: str, truth: Truth) -> str:
    """The truth's name of a channel; a forecast of one channel does not tell its name."""
    if name in truth.values:
        return name
    if name == "" and len(truth.values) == 1:
        return next(iter(truth.values))
    known = ", ".join(truth.values)
    raise ConfigError(
        f"The labels have the columns {known}, and the forecast is of {name!r}."
        if name
        else f"The labels have the columns {known}; give the one that is forecast alone."
    )


def _came(one: Record, horizon: int, times: Array, values: Array) -> Array:
    """What came at each step of a forecast, [horizon]: the nearest row within half a step, or NaN."""
    wanted = one["end"] + one["step_s"] * np.arange(1, horizon + 1)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearest = np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
    return np.where(np.abs(times[nearest] - wanted) <= one["step_s"] / 2, values[nearest], math.nan)


def _sums(forecasts: list[Record], name: str, times: Array, values: Array) -> Array:
    """Sums over all forecasts of one channel: float64 [horizon, 7]."""
    levels = np.asarray(forecasts[0]["levels"])
    middle = int(np.argmin(np.abs(levels - 0.5)))
    sums = np.zeros((len(forecasts[0]["forecast"][name][0]), 7))
    for one in forecasts:
        quantiles, interval = one["forecast"][name]
        came = _came(one, len(quantiles), times, values)
        known = np.isfinite(came)
        under = np.where(known, came, 0.0)[:, np.newaxis] - quantiles
        error = under[:, middle]
        found = np.zeros_like(sums)
        found[:, _N] = 1
        found[:, _ABSOLUTE], found[:, _SQUARE] = np.abs(error), error**2
        found[:, _PINBALL] = np.maximum(levels * under, (levels - 1) * under).mean(1)
        found[:, _BETWEEN] = (under[:, 0] >= 0) & (under[:, -1] <= 0)
        if interval is not None:
            found[:, _INTERVALS] = 1
            found[:, _INSIDE] = (interval[0] <= came) & (came <= interval[1])
        sums[known] += found[known]
    return sums


def _told(sums: Array, levels: tuple[float, ...]) -> Figures:
    n = sums[_N]
    found = {"n": int(n), "mse": _share(sums[_SQUARE], n), "mae": _share(sums[_ABSOLUTE], n)}
    if len(levels) > 1:
        found |= {"crps": _share(2 * sums[_PINBALL], n), "between": _share(sums[_BETWEEN], n)}
    return found | {"coverage": _share(sums[_INSIDE], sums[_INTERVALS])}


def _over_channels(sums: Array, scales: Array) -> Figures:
    """Figures over channels, of sums [channels, 7]; errors where all scales are known."""
    found: Figures = {"coverage": _share(sums[:, _INSIDE].sum(), sums[:, _INTERVALS].sum())}
    if np.isfinite(scales).all():
        found = {
            "mse": _share((sums[:, _SQUARE] / scales**2).sum(), sums[:, _N].sum()),
            "mae": _share((sums[:, _ABSOLUTE] / scales).sum(), sums[:, _N].sum()),
            **found,
        }
    return found


def _naive_error(values: Array, step_s: float) -> float:
    """Mean absolute error of the seasonal-naive forecast one step ahead, over a stretch [rows]; NaN without one."""
    season = season_rows(step_s, len(values) // 2, None)
    errors = np.abs(values[season:] - values[:-season])
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if len(known) else math.nan


def _ratio(sums: Array, naive: float) -> float | None:
    whole = sums.sum(0)
    return _round(whole[_ABSOLUTE] / whole[_N] / naive) if whole[_N] and naive > 0 else None


def _share(part: float, whole: float) -> float | None:
    return _round(part / whole) if whole else None


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def plot(results: list[Record], truth: Truth, file: Path) -> None:
    """Draw what came, and the last forecasts that follow one another, with their intervals; up to four channels."""
    from lisiere_sim.evaluate import plots

    forecasts = [result if "forecast" in result else compact(result) for result in results]
    shown: list[Record] = []
    since = -math.inf
    for one in reversed(forecasts):
        ahead_s = len(next(iter(one["forecast"].values()))[0]) * one["step_s"]
        if len(shown) < _MOST_DRAWN and (not shown or one["end"] + ahead_s * 0.999 <= shown[-1]["end"]):
            shown.append(one)
            since = one["end"] - ahead_s
    names = list(shown[0]["forecast"])[:4] if shown else []
    seen = truth.times >= since
    plots.forecasts(
        file,
        title=file.stem,
        times=truth.times[seen],
        series={_column(name, truth): truth.values[_column(name, truth)][seen] for name in names},
        fans={_column(name, truth): [_fan(one, name) for one in shown] for name in names},
    )


def _fan(one: Record, name: str) -> dict[str, Any]:
    quantiles, interval = one["forecast"][name]
    middle = int(np.argmin(np.abs(np.asarray(one["levels"]) - 0.5)))
    low, high = (quantiles[:, 0], quantiles[:, -1]) if interval is None else interval
    times = one["end"] + one["step_s"] * np.arange(1, len(quantiles) + 1)
    return {"times": times, "middle": quantiles[:, middle], "low": low, "high": high}


KIND = Kind(read_truth, figures, plot, compact)
