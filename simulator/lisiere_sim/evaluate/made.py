"""A made corpus: 58 series of the kinds that monitoring sees, with faults, and with what only looks like one.

It is synthetic, and made to be hard: faults differ in strength down to what hides in the noise, every series has spikes
and stretches that nobody labelled, and of the labels some are missing and some stand where nothing happens. So no
detector comes near 100; what it shows is whether a change made things better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lisiere_sim.evaluate.anomaly import Stretch
from lisiere_sim.plant import wander

Floats = NDArray[np.float64]
Rng = np.random.Generator

_START = 1_388_534_400.0  # 2014-01-01
_FIVE_MINUTES, _HALF_HOUR, _HOUR = 300.0, 1800.0, 3600.0
_LABELLED = 0.1  # of a series lies in windows, however many there are
_UNLABELLED, _WRONG = 0.15, 0.2  # of faults have no label; for so many there is a label without a fault


@dataclass(frozen=True)
class Made:
    """One series, as `corpus.watch` takes it."""

    name: str
    times: Floats
    values: Floats
    windows: list[Stretch]


@dataclass(frozen=True)
class _Kind:
    name: str
    count: int
    rows: int
    step_s: float
    faults: int  # at most; at least one, and none where 0
    base: Callable[[Rng, Floats], Floats]  # from hours since the start to values without faults


def made(seed: int) -> Iterator[Made]:
    """Yield the corpus that a seed stands for."""
    number = 0
    for kind in _KINDS:
        for _ in range(kind.count):
            yield _series(kind, number, np.random.default_rng([seed, number]))
            number += 1


def _series(kind: _Kind, number: int, rng: Rng) -> Made:
    times: Floats = _START + np.arange(kind.rows, dtype=np.float64) * kind.step_s
    values: Floats = kind.base(rng, (times - _START) / 3600)
    spread = float(np.std(values)) or 1.0
    floor = 0.0 if values.min() >= 0 else -np.inf
    rows: list[int] = []
    if kind.faults:
        rows = _places(rng, kind.rows, int(rng.integers(1, kind.faults + 1)))
        for row in rows:
            _fault(rng, values, row, spread)
        for _ in range(rng.poisson(1.5)):
            row, length = int(rng.integers(kind.rows)), int(rng.integers(1, 80) if rng.random() < 0.3 else 1)
            values[row : row + length] += spread * rng.uniform(2, 7) * rng.choice([-1, 1])
        values = np.maximum(values, floor).astype(np.float64)
    labelled = [row for row in rows if rng.random() > _UNLABELLED]
    for _ in rows:
        row = int(rng.uniform(0.2, 0.95) * kind.rows)
        if rng.random() < _WRONG and all(abs(row - other) > 0.1 * kind.rows for other in rows):
            labelled.append(row)
    windows = _windows(times, sorted(labelled))
    return Made(f"{kind.name}-{number}", times, values, windows)


def _places(rng: Rng, rows: int, count: int) -> list[int]:
    """Rows of faults, far from each other and behind the first 30%."""
    while True:
        places = np.sort(rng.uniform(0.3, 0.97, count) * rows).astype(int)
        if count == 1 or np.diff(places).min() > 0.08 * rows:
            return [int(place) for place in places]


def _windows(times: Floats, rows: list[int]) -> list[Stretch]:
    """As NAB has them: centred, and together a tenth of the series; those that touch are one."""
    half = int(_LABELLED * len(times) / max(len(rows), 1)) // 2
    found: list[Stretch] = []
    for row in rows:
        first, last = max(0, row - half), min(len(times) - 1, row + half)
        if found and times[first] <= found[-1][1]:
            first = int(np.searchsorted(times, found.pop()[0]))
        found.append((float(times[first]), float(times[last])))
    return found


def _fault(rng: Rng, values: Floats, row: int, spread: float) -> None:
    """Change the series from a row on: a spike, a shift for good, a stretch, a slow rise, unrest or standstill."""
    strength = spread * rng.uniform(2, 12) * rng.choice([1, 1, -1])
    match int(rng.integers(6)):
        case 0:
            values[row : row + int(rng.integers(1, 6))] += 1.5 * strength
        case 1:
            values[row:] += 0.6 * strength
        case 2:
            values[row : row + int(rng.integers(10, 200))] += strength
        case 3:
            part = values[row : row + int(rng.integers(80, 300))]
            part += np.linspace(0, strength, len(part))
        case 4:
            part = values[row : row + int(rng.integers(40, 300))]
            part += rng.normal(0, 0.4 * abs(strength), len(part))
        case _:
            values[row : row + int(rng.integers(100, 400))] = values[row - 1]


def _day(hours: Floats, phase: float) -> Floats:
    wave: Floats = np.sin(2 * np.pi * (hours / 24 + phase))
    return wave


def _load(rng: Rng, hours: Floats) -> Floats:
    level = rng.uniform(5, 80)
    return np.asarray(level + wander(rng, len(hours), 0.6, 0.05 * level) + rng.uniform(0, 0.1) * level * _day(hours, 0))


def _quiet(rng: Rng, hours: Floats) -> Floats:
    level = rng.uniform(0.1, 3)
    return np.asarray(np.round(level + rng.normal(0, 0.02 * level, len(hours)), 3))


def _traffic(rng: Rng, hours: Floats) -> Floats:
    values = rng.lognormal(rng.uniform(3, 12), rng.uniform(0.1, 0.5), len(hours))
    values[:: int(rng.integers(12, 144))] *= rng.uniform(1.5, 6)
    return values


def _bursts(rng: Rng, hours: Floats) -> Floats:
    on = rng.random(len(hours)) < rng.uniform(0.02, 0.2)
    return np.where(on, rng.lognormal(15, 0.8, len(hours)), 0.0)


def _requests(rng: Rng, hours: Floats) -> Floats:
    rate = 60 * np.exp(0.6 * _day(hours, rng.random())) * rng.gamma(4, 0.25, len(hours))
    return rng.poisson(rate).astype(np.float64)


def _prices(rng: Rng, hours: Floats) -> Floats:
    values = 0.4 * np.exp(0.3 * _day(hours, 0) + wander(rng, len(hours), 0.7, 0.35))
    often = rng.random(len(hours)) < 0.01
    return np.where(often, values * rng.lognormal(0.8, 0.3, len(hours)), values)


def _machine(rng: Rng, hours: Floats) -> Floats:
    return np.asarray(85 + wander(rng, len(hours), 0.995, 5.0) + rng.normal(0, 0.8, len(hours)))


def _riders(rng: Rng, hours: Floats) -> Floats:
    weekend = (hours // 24) % 7 >= 5
    wave = 8000 * _day(hours, -0.35) + 3000 * _day(2 * hours, 0) + np.where(weekend, 2500 * _day(hours, 0), 0.0)
    return np.asarray(np.maximum(15_000 + wave + wander(rng, len(hours), 0.8, 500), 0))


def _rush(rng: Rng, hours: Floats) -> Floats:
    of_day = hours % 24
    rush = np.exp(-(((of_day - 8) / 1.2) ** 2)) + np.exp(-(((of_day - 17.5) / 1.5) ** 2))
    return np.asarray(np.round(65 - 15 * rush * rng.beta(2, 2, len(hours)) + rng.normal(0, 3, len(hours))))


def _messages(rng: Rng, hours: Floats) -> Floats:
    level = rng.lognormal(2.5, 0.8)
    mood = 0.5 * _day(hours, rng.random()) + wander(rng, len(hours), 0.97, 0.25)
    values = rng.poisson(level * np.exp(mood) * rng.gamma(6, 1 / 6, len(hours))).astype(np.float64)
    for _ in range(int(rng.integers(5, 30))):
        row = int(rng.integers(len(hours) - 50))
        values[row : row + 30] += rng.poisson(level * rng.uniform(1, 4) * np.exp(-np.arange(30) / 10))
    return values


def _working_hours(rng: Rng, hours: Floats) -> Floats:
    on = (hours % 24 > 9) & (hours % 24 < 18)
    return np.asarray(np.where(on, 80.0, 20.0) + rng.uniform(-8, 8, len(hours)))


_KINDS = (
    _Kind("noise", 1, 4032, _FIVE_MINUTES, 0, lambda rng, hours: rng.normal(50, 3, len(hours))),
    _Kind("flat", 1, 4032, _FIVE_MINUTES, 0, lambda rng, hours: np.full(len(hours), rng.uniform(1, 99))),
    _Kind(
        "sine", 1, 4032, _FIVE_MINUTES, 0, lambda rng, hours: 50 + 30 * _day(hours, 0) + rng.normal(0, 1, len(hours))
    ),
    _Kind("calm", 2, 4032, _FIVE_MINUTES, 0, _working_hours),
    _Kind("hours", 6, 4032, _FIVE_MINUTES, 1, _working_hours),
    _Kind("load", 6, 4032, _FIVE_MINUTES, 3, _load),
    _Kind("quiet", 6, 4032, _FIVE_MINUTES, 3, _quiet),
    _Kind("traffic", 4, 4032, _FIVE_MINUTES, 3, _traffic),
    _Kind("bursts", 2, 4032, _FIVE_MINUTES, 2, _bursts),
    _Kind("requests", 2, 4032, _FIVE_MINUTES, 2, _requests),
    _Kind("prices", 6, 1640, _HOUR, 3, _prices),
    _Kind("machine", 2, 22_695, _FIVE_MINUTES, 4, _machine),
    _Kind("riders", 2, 10_320, _HALF_HOUR, 5, _riders),
    _Kind("rush", 7, 2400, _FIVE_MINUTES, 3, _rush),
    _Kind("messages", 10, 15_850, _FIVE_MINUTES, 4, _messages),
)
