"""Hourly series of several channels, made up: seasons, noise, drift, changed regimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import rfc3339

T0 = 1_700_006_400.0


def seasons(rows: int, channels: int, seed: int = 0) -> NDArray[np.float64]:
    """A day with harmonics and a week, of changing amplitude; autocorrelated noise; drift; three breaks."""
    rng, t, found = np.random.default_rng(seed), np.arange(rows), []
    for _ in range(channels):
        amplitude = 1 + 0.3 * np.sin(2 * np.pi * t / 2190 + rng.uniform(0, 6))
        day = sum(rng.normal(0, 1 / k) * np.cos(2 * np.pi * k * t / 24 + rng.uniform(0, 6)) for k in (1, 2, 3))
        week = 0.6 * np.cos(2 * np.pi * t / 168 + rng.uniform(0, 6))
        shocks = rng.normal(0, 0.35, rows) * (1 + 0.8 * (rng.random(rows) < 0.02))
        noise = np.zeros(rows)
        for at in range(1, rows):
            noise[at] = 0.95 * noise[at - 1] + shocks[at]
        drift = np.cumsum(rng.normal(0, 0.015, rows))
        for start in rng.integers(0, rows, 3):
            drift[start:] += rng.normal(0, 1.0)
        found.append(rng.uniform(1, 10) * (amplitude * day + week + noise + drift) + rng.uniform(-20, 50))
    return np.stack(found, axis=1)


def write_csv(file: Path, values: NDArray[np.float64], step_s: float = 3600.0, time: str = "date") -> Path:
    """Write a series with the columns c0, c1, …; NaN becomes an empty cell."""
    lines = [",".join([time, *(f"c{at}" for at in range(values.shape[1]))])]
    for at, row in enumerate(values):
        lines.append(",".join([rfc3339(T0 + at * step_s), *("" if np.isnan(one) else f"{one:.6f}" for one in row)]))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
