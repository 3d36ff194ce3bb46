"""What the checks of a sensor's channels cost: 16 channels, each with every check."""

from __future__ import annotations

import statistics
import time

import numpy as np

from bench.outcome import Outcome
from lisiere.channels import Channels
from lisiere.settings.channels import ChannelConfig
from lisiere.values import Reading

CHANNELS = 16
AT_ONCE = 1024  # as many as wait in a pipeline's queue
BATCHES = 50


def run(rounds: int) -> list[Outcome]:
    """Measure, in CPU time of this process."""
    return [
        _outcome("channel checks, many readings at once", [_rate(AT_ONCE) for _ in range(rounds)], 200_000),
        _outcome("channel checks, readings one by one", [_rate(1) for _ in range(rounds)], 1_000),
    ]


def _rate(at_once: int) -> float:
    """Readings a second of CPU time, from readings to readings."""
    names = [f"c{at}" for at in range(CHANNELS)]
    config = ChannelConfig(min=-9, max=9, max_rate=100, stuck_s=60, gap_s=60)
    channels = Channels(names, dict.fromkeys(names, config), lambda *_: None)
    count = at_once * BATCHES if at_once > 1 else 1000
    values = np.random.default_rng(3).normal(size=(count, CHANNELS)).tolist()
    readings = [Reading(1.7e9 + at, tuple(row), "bench") for at, row in enumerate(values)]
    started = time.process_time()
    for at in range(0, count, at_once):
        channels.readings(readings[at : at + at_once])
    return count / (time.process_time() - started)


def _outcome(name: str, rates: list[float], least: float) -> Outcome:
    rate = statistics.median(rates)
    against = f"{CHANNELS} channels with every check, of a second of CPU time; the median of {len(rates)} rounds"
    return Outcome(name, against, rate, "/s", f">= {least:.0f}", rate >= least)
