"""Forecasts and what became of them: each is held until its time has come, and told how it did.

Only real readings count: what was interpolated says nothing of a forecast. Memory is bounded when the keeper is made,
by horizon, open forecasts and channels. A restart begins anew: what was open is not told.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import rfc3339
from lisiere.tasks.intervals import AdaptiveFactors, half_widths, lead_groups
from lisiere.values import ChannelScore, LeadScore, RunningScore, ScoreBody, Window

Array = NDArray[np.float64]
Method = Literal["model", "seasonal_naive"]

MEMORY_BYTES = 16 << 20  # what open forecasts may take; where that is too little, only every n-th is held
_SPREAD_RATE = 0.05  # how fast the mean absolute error follows
_FLOOR = 0.05  # the least half-width, in mean absolute errors: a model that is sure of itself may still be wrong
# What is summed up, for each group of leads and each channel.
_N, _GIVEN, _MODEL, _NAIVE, _INSIDE, _INTERVALS, _PINBALL = range(7)


@dataclass(frozen=True)
class Asked:
    """What was forecast, and how it is judged.

    Attributes:
        horizon: steps.
        stride: rows from one forecast to the next.
        step_s: seconds between rows.
        channels: names, and `columns` where they stand in the window.
        levels: of the quantiles, rising.
        coverage: of the intervals.
        running: how many scored forecasts running figures are of.
        fallback: skill below the first for long changes to seasonal-naive, above the second back; None: never.
        patience: how many scored forecasts long is.
    """

    horizon: int
    stride: int
    step_s: float
    channels: tuple[str, ...]
    columns: tuple[int, ...]
    levels: tuple[float, ...]
    coverage: float
    running: int
    fallback: tuple[float, float] | None
    patience: int


@dataclass(frozen=True)
class Answer:
    """A forecast as it is sent: quantiles [horizon, channels, quantiles], and the interval, each [horizon, channels].

    The interval is None while nothing is known of the errors, which only a model with a single quantile leaves open.
    """

    method: Method
    quantiles: Array
    low: Array | None
    high: Array | None


class Keeper:
    """Holds open forecasts, matches them with what comes, and learns from it how wide intervals must be.

    Attributes:
        method: what is believed: the model, or the seasonal-naive forecast while the model is worse for long.
    """

    def __init__(self, asked: Asked) -> None:
        self.method: Method = "model"
        self._asked = asked
        horizon, channels, levels = asked.horizon, len(asked.channels), len(asked.levels)
        self._groups = lead_groups(horizon)
        groups = int(self._groups.max()) + 1
        each = horizon * channels * (levels + 3) * 4
        at_once = -(-horizon // asked.stride) + 1
        self._every = -(-at_once * each // MEMORY_BYTES)
        room = -(-at_once // self._every)
        self._origin = np.full(room, -1, np.int64)  # index of the last row it was made from; -1 where there is none
        self._quantiles = np.zeros((room, horizon, channels, levels), np.float32)
        self._naive, self._below, self._above = np.zeros((3, room, horizon, channels), np.float32)
        self._factors = {name: AdaptiveFactors(asked.coverage, self._groups, channels) for name in ("model", "naive")}
        self._given = {name: np.ones((room, groups, channels)) for name in self._factors}
        self._by_naive = np.zeros(room, np.bool_)
        self._sums = np.zeros((room, groups, channels, 7))
        self._spread = np.full((groups, channels), math.nan)  # mean absolute error of the model
        self._running: deque[Array] = deque(maxlen=asked.running)
        self._total = np.zeros((groups, channels, 7))  # of `_running`
        self._long = np.zeros((channels, 7))  # sums that forget a forecast within `patience` others
        self._since = 0  # scored forecasts since the method was chosen
        self._unscored = 0
        self._made = 0
        self._anchor = math.nan
        self._last = -1  # index of the newest row seen; rows count from the first window's end
        self._now = -1  # index of the last row of the window that was seen last
        self._met = np.zeros((0, channels), np.bool_)  # of a window's rows up to `_last`: which values were compared

    @property
    def open(self) -> int:
        """How many forecasts wait for their time."""
        return int((self._origin >= 0).sum())

    def see(self, window: Window) -> tuple[ScoreBody, ...]:
        """Take what is new in a window; return the scores of the forecasts whose time has come, the oldest first.

        A window that was told before may come again with values that it lacked then.
        """
        length = len(window.values)
        if self._last < 0:
            return self._begin(window)
        index = round((window.end - self._anchor) / self._asked.step_s)
        if index <= self._last - length:  # the sensor's clock was set back: what is open never meets its rows
            told = self._close(np.flatnonzero(self._origin >= 0))
            return told + self._begin(window)
        real = np.isfinite(window.values) if window.real is None else window.real
        columns = list(self._asked.columns)
        ahead = max(0, index - self._last)
        if ahead:
            self._met = np.concatenate([self._met[ahead:], np.zeros((min(ahead, length), len(columns)), np.bool_)])
            self._last = index
        behind = self._last - index
        met = self._met[: length - behind]
        new = real[behind:, columns] & ~met
        for row in np.flatnonzero(new.any(axis=1)):
            values = window.values[behind + row, columns].astype(np.float64)
            self._meet(index - len(new) + 1 + int(row), values, new[row])
        met |= new
        self._now = index
        over = (self._origin >= 0) & (self._origin + self._asked.horizon <= self._last)
        return self._close(np.flatnonzero(over)) if over.any() else ()

    def _begin(self, window: Window) -> tuple[ScoreBody, ...]:
        """Count rows from the end of this window; what is in it was never forecast."""
        self._anchor, self._last, self._now = window.end, 0, 0
        self._met = np.ones((len(window.values), len(self._asked.columns)), np.bool_)
        return ()

    def answer(self, quantiles: Array, naive: Array) -> Answer:
        """Make of what the model says what is sent, and hold it until its time comes.

        To be called after `see` of the same window.

        Args:
            quantiles: the model's, rising, float64 [horizon, channels, quantiles].
            naive: the seasonal-naive forecast, [horizon, channels].
        """
        asked = self._asked
        below, above = self._half_widths(quantiles)
        by_naive = self.method == "seasonal_naive"
        if by_naive:
            factor = self._factors["naive"].factors()[self._groups]
            centre = naive
            given = (
                naive[..., np.newaxis]
                + (quantiles - _centre(quantiles, asked.levels)[..., np.newaxis]) * (factor[..., np.newaxis])
            )
        else:
            factor = self._factors["model"].factors()[self._groups]
            centre = _centre(quantiles, asked.levels)
            given = quantiles
        known = bool(np.isfinite(below).all())
        if self._made % self._every == 0:
            self._hold(quantiles, naive, below, above, by_naive)
        self._made += 1
        return Answer(
            self.method, given, centre - factor * below if known else None, centre + factor * above if known else None
        )

    def _half_widths(self, quantiles: Array) -> tuple[Array, Array]:
        """How far below and above its centre the model puts the interval, and never nothing; NaN while unknown."""
        asked = self._asked
        spread = self._spread[self._groups]
        if len(asked.levels) == 1:
            return spread, spread
        below, above = half_widths(quantiles, asked.levels, _centre(quantiles, asked.levels), asked.coverage)
        floor = np.maximum(np.nan_to_num(spread) * _FLOOR, 1e-9)
        return np.maximum(below, floor), np.maximum(above, floor)

    def _hold(self, quantiles: Array, naive: Array, below: Array, above: Array, by_naive: bool) -> None:
        free = int(np.argmin(self._origin))  # -1 where there is room, or else the oldest
        self._unscored += bool(self._origin[free] >= 0)
        self._origin[free] = self._now
        self._quantiles[free], self._naive[free] = quantiles, naive
        self._below[free], self._above[free] = below, above
        for name, factors in self._factors.items():
            self._given[name][free] = factors.factors()
        self._by_naive[free] = by_naive
        self._sums[free] = 0

    def _meet(self, index: int, values: Array, real: NDArray[np.bool_]) -> None:
        """Compare one row of real values [channels] with all forecasts that are open for it."""
        leads = index - self._origin
        at = np.flatnonzero((self._origin >= 0) & (leads > 0) & (leads <= self._asked.horizon))
        if not len(at) or not real.any():
            return
        leads = leads[at]
        groups = self._groups[leads - 1]
        quantiles = self._quantiles[at, leads - 1].astype(np.float64)
        centre, naive = _centre(quantiles, self._asked.levels), self._naive[at, leads - 1].astype(np.float64)
        below, above = self._below[at, leads - 1], self._above[at, leads - 1]
        known = np.broadcast_to(real, centre.shape)
        judged = known & np.isfinite(below)
        values = np.where(real, values, 0.0)
        missed = {}
        for name, middle in (("model", centre), ("naive", naive)):
            error = values - middle
            sizes = np.abs(error) / np.where(error < 0, below, above)
            missed[name] = sizes > self._given[name][at, groups]
            self._factors[name].learn(leads, sizes, missed[name], judged)
        by_naive = self._by_naive[at, np.newaxis]
        scaled = (quantiles - centre[..., np.newaxis]) * self._given["naive"][at, groups][..., np.newaxis]
        given = np.where(by_naive[..., np.newaxis], naive[..., np.newaxis] + scaled, quantiles)
        under = values[..., np.newaxis] - given
        levels = np.asarray(self._asked.levels)
        model_error, naive_error = np.abs(values - centre), np.abs(values - naive)
        found = np.zeros((*centre.shape, 7))
        found[..., _N] = known
        found[..., _MODEL], found[..., _NAIVE] = model_error, naive_error
        found[..., _GIVEN] = np.where(by_naive, naive_error, model_error)
        found[..., _INTERVALS] = judged
        found[..., _INSIDE] = judged & ~np.where(by_naive, missed["naive"], missed["model"])
        found[..., _PINBALL] = np.maximum(levels * under, (levels - 1) * under).mean(-1)
        found *= known[..., np.newaxis]
        self._sums[at, groups] += found
        self._follow(groups, model_error, known)

    def _follow(self, groups: NDArray[np.int64], errors: Array, known: NDArray[np.bool_]) -> None:
        """Let the mean absolute error of each group of leads follow."""
        total, count = np.zeros_like(self._spread), np.zeros_like(self._spread)
        np.add.at(total, groups, np.where(known, errors, 0.0))
        np.add.at(count, groups, known)
        mean = total / np.maximum(count, 1)
        moved = np.where(np.isnan(self._spread), mean, self._spread + _SPREAD_RATE * (mean - self._spread))
        self._spread = np.where(count > 0, moved, self._spread)

    def _close(self, at: NDArray[np.int64]) -> tuple[ScoreBody, ...]:
        """Tell how forecasts did, the oldest first, and make room."""
        told = []
        for each in at[np.argsort(self._origin[at], kind="stable")]:
            sums = self._sums[each].copy()
            if sums[..., _N].any():
                self._running.append(sums)
                self._total = np.sum(self._running, axis=0)
                self._long += sums.sum(0) - self._long / self._asked.patience
                self._since += 1
            else:
                self._unscored += 1
            told.append(self._score(int(self._origin[each]), bool(self._by_naive[each]), sums))
            self._origin[each] = -1
            self._choose()
        return tuple(told)

    def _choose(self) -> None:
        """Fall back when skill was below zero for long, and return when it was well above for as long."""
        asked = self._asked
        if asked.fallback is None or self._since < asked.patience:
            return
        overall = float(skill(self._long))  # NaN compares as neither
        worse, better = asked.fallback
        if (self.method == "model" and overall < worse) or (self.method != "model" and overall > better):
            self.method = "seasonal_naive" if self.method == "model" else "model"
            self._since = 0

    def _score(self, origin: int, by_naive: bool, sums: Array) -> ScoreBody:
        asked = self._asked
        made = self._anchor + origin * asked.step_s
        running = self._total
        starts = np.flatnonzero(np.diff(self._groups, prepend=-1)) + 1
        ends = np.append(starts[1:] - 1, asked.horizon)
        skills = skill(running)
        inside, intervals = running[..., _INSIDE].sum(1), running[..., _INTERVALS].sum(1)
        return ScoreBody(
            made_ts=rfc3339(made),
            until_ts=rfc3339(made + asked.horizon * asked.step_s),
            method="seasonal_naive" if by_naive else "model",
            steps=asked.horizon,
            skill=_short(float(skill(sums.sum(0)))),
            channels=self._channels(sums),
            running=RunningScore(
                forecasts=len(self._running),
                every=self._every,
                unscored=self._unscored,
                skill=_short(float(skill(running.sum(0)))),
                channels=self._channels(running),
                leads=[
                    LeadScore(
                        first=int(first),
                        last=int(last),
                        skill=_short(skills[at]),
                        coverage=_ratio(inside[at], intervals[at]),
                    )
                    for at, (first, last) in enumerate(zip(starts, ends, strict=True))
                ],
            ),
        )

    def _channels(self, sums: Array) -> dict[str, ChannelScore]:
        """Figures by channel, of sums [groups, channels, 7]."""
        whole = sums.sum(0)
        skills = skill(whole[:, np.newaxis])
        return {name: _figures(whole[at], skills[at]) for at, name in enumerate(self._asked.channels)}


def skill(sums: Array) -> NDArray[np.float64]:
    """How much smaller the model's mean absolute error is than the naive one: 1 - ratio, their geometric mean.

    Source: Davydenko and Fildes, Measuring forecasting accuracy, 2013 (the average relative MAE).

    Args:
        sums: [..., channels, 7], as they are kept here.

    Returns:
        float64 [...]; NaN where nothing was measured.
    """
    seen, model, naive = sums[..., _N] > 0, sums[..., _MODEL], sums[..., _NAIVE]
    # A naive forecast that is never wrong is beaten by nothing; bounds, so that it alone does not decide.
    ratios = np.where(seen & (model != naive), model / np.maximum(naive, 1e-300), 1.0)
    logs = np.log(np.minimum(np.maximum(ratios, 1e-3), 1e3)).sum(-1)
    count = seen.sum(-1)
    found: Array = np.where(count > 0, 1.0 - np.exp(logs / np.maximum(count, 1)), math.nan)
    return found


def season_rows(step_s: float, length: int, season_s: float | None) -> int:
    """Return how many rows a season has: the given one, or a day or a week where it fits; 1 means the last value.

    Args:
        step_s: seconds between rows.
        length: rows of a window, which a season must lie in.
        season_s: the season; None: the first of a day and a week that is a whole number of rows, two or more.

    Raises:
        ValueError: the given season is no whole number of rows, or longer than a window.
    """
    for seconds in (season_s,) if season_s is not None else (86_400.0, 604_800.0):
        rows = round(seconds / step_s)
        whole = rows >= 1 and abs(rows * step_s - seconds) < 0.01 * step_s
        if season_s is not None and not (whole and rows <= length):
            raise ValueError(
                f"a season of {seconds:g} s is not a whole number of steps of {step_s:g} s"
                if not whole
                else f"a season of {rows} rows does not fit into a window of {length}"
            )
        if whole and (season_s is not None or 2 <= rows <= length):
            return rows
    return 1


def seasonal_naive(rows: Array, horizon: int, season: int) -> Array:
    """Forecast by what was a season before: the last season of `rows` [length, channels] again and again.

    Source: Hyndman and Athanasopoulos, Forecasting: Principles and Practice, 3rd edition, section 5.2.
    """
    found: Array = rows[len(rows) - season + np.arange(horizon) % season]
    return found


def _centre(quantiles: Array, levels: tuple[float, ...]) -> Array:
    """The median [...] of quantiles [..., quantiles]: as told, or in between, or the nearest."""
    above = int(np.searchsorted(levels, 0.5))
    if above == 0 or above == len(levels) or levels[above] == 0.5:
        return quantiles[..., min(above, len(levels) - 1)]
    share = (0.5 - levels[above - 1]) / (levels[above] - levels[above - 1])
    return quantiles[..., above - 1] * (1 - share) + quantiles[..., above] * share


def _figures(sums: Array, skilled: float) -> ChannelScore:
    n, intervals = sums[_N], sums[_INTERVALS]
    return ChannelScore(
        n=int(n),
        mae=_ratio(sums[_GIVEN], n),
        model_mae=_ratio(sums[_MODEL], n),
        naive_mae=_ratio(sums[_NAIVE], n),
        skill=_short(skilled),
        coverage=_ratio(sums[_INSIDE], intervals),
        pinball=_ratio(sums[_PINBALL], n),
    )


def _ratio(part: float, whole: float) -> float | None:
    return _short(part / whole) if whole else None


def _short(value: float) -> float | None:
    """Six digits, which is more than a figure of errors is worth; None for what is not defined."""
    return None if math.isnan(value) else float(f"{value:.6g}")
