"""What the built-in detector costs: points a second, of one channel and of eight."""

from __future__ import annotations

import statistics
import time

import numpy as np

from bench.outcome import Outcome
from lisiere.detector import StreamDetector

POINTS = 50_000
ROWS = 5_000
STEP_S = 300.0


def run(rounds: int) -> list[Outcome]:
    """Measure, in CPU time of this process."""
    one = statistics.median(_rate(1, POINTS) for _ in range(rounds))
    eight = 8 * statistics.median(_rate(8, ROWS) for _ in range(rounds))
    against = f"of a second of CPU time; the median of {rounds} rounds"
    return [
        Outcome("built-in detector, one channel", f"points {against}", one, "/s", ">= 50000", one >= 50_000),
        Outcome("built-in detector, 8 channels", f"values {against}", eight, "/s", ">= 50000", eight >= 50_000),
    ]


def _rate(channels: int, rows: int) -> float:
    """Rows a second: a day's sine with noise, a step of five minutes, one row at a time."""
    rng = np.random.default_rng(0)
    day = 10 * np.sin(2 * np.pi * np.arange(rows) * STEP_S / 86_400)[:, None]
    values = (day + rng.normal(0, 1, (rows, channels))).tolist()
    detector = StreamDetector(channels)
    started = time.process_time()
    for at, row in enumerate(values):
        detector(1.7e9 + at * STEP_S, row)
    return rows / (time.process_time() - started)
