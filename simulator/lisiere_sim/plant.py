"""A pump in a circuit with eight sensors, and faults that come and go: recordings for the built-in detector.

Synthetic: vibration twice, current, pressure, two temperatures that drift, voltage, and a flow that jumps between two
readings, once a second. Faults shift some of them or make them restless, some so little that it hides in the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHANNELS = (
    "vibration_1", "vibration_2", "current", "pressure", "temperature", "bearing_temperature", "voltage", "flow",
)  # fmt: skip
_DRIFTING, _STEPPING = (4, 5), 7
_NORMAL_ROWS = 400  # at least, before the fault
_RECOVERY_ROWS = 60  # which count as normal


@dataclass(frozen=True)
class Recording:
    """About 20 minutes with one fault.

    Attributes:
        values: [rows, 8], a row a second.
        first, last: rows of the fault.
    """

    values: NDArray[np.float64]
    first: int
    last: int


def record(seed: int) -> Recording:
    """Return the recording that a seed stands for."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1000, 1250))
    values = _healthy(rng, rows)
    spread = values[:_NORMAL_ROWS].std(0)
    first = int(rng.integers(_NORMAL_ROWS + 20, 660))
    length = min(int(rng.integers(280, 430)), rows - first - _RECOVERY_ROWS)
    strength = np.zeros(rows)
    strength[first : first + length] = np.minimum(1, np.arange(1, length + 1) / rng.integers(1, 60))
    strength[first + length : first + length + _RECOVERY_ROWS] = np.linspace(0.6, 0, _RECOVERY_ROWS)
    shifts, unrest = [(True, False), (False, True), (True, True)][int(rng.choice(3, p=[0.5, 0.15, 0.35]))]
    for channel in rng.choice(len(CHANNELS), int(rng.integers(1, 5)), replace=False):
        scale = strength * spread[channel]
        if shifts:
            values[:, channel] += scale * rng.uniform(0.3, 3.5) * rng.choice([-1, 1])
        if unrest:
            values[:, channel] += scale * rng.normal(0, rng.uniform(0.3, 1.8), rows)
    units = rng.lognormal(0, 2, len(CHANNELS)), rng.normal(0, 50, len(CHANNELS))
    return Recording(values * units[0] + units[1], first, first + length - 1)


def _healthy(rng: np.random.Generator, rows: int) -> NDArray[np.float64]:
    load = wander(rng, rows, 0.98, 0.6)
    values = np.empty((rows, len(CHANNELS)))
    for channel in range(len(CHANNELS)):
        noise = wander(rng, rows, rng.choice([0.0, 0.3, 0.8, 0.95]), 1.0)
        if channel in _DRIFTING:
            values[:, channel] = 0.15 * noise + np.cumsum(rng.normal(rng.normal(0, 0.002), 0.02, rows))
        elif channel == _STEPPING:
            values[:, channel] = (rng.random(rows) < 0.25) + 0.2 * noise
        else:
            values[:, channel] = noise + rng.uniform(0, 1.2) * (channel % 2) * load
    return values


def wander(rng: np.random.Generator, rows: int, memory: float, spread: float) -> NDArray[np.float64]:
    """An autoregressive wander: [rows], with this standard deviation in the long run."""
    steps = rng.normal(0, spread * np.sqrt(1 - memory * memory), rows)
    found, level = np.empty(rows), 0.0
    for at, step in enumerate(steps.tolist()):
        level = memory * level + step
        found[at] = level
    return found
