"""Series: readings into windows, and a day of them replayed through a compiled model.

Times are those of this process's CPU: all of it runs in one thread, and other work on the machine must not count.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from bench.outcome import Outcome
from lisiere.backends import open_model
from lisiere.config import Config, PipelineConfig
from lisiere.models import open_package, write_manifest
from lisiere.models.manifest import WindowInput
from lisiere.replay.recording import replay
from lisiere.settings.sensors import CsvSource
from lisiere.values import Reading, Readings
from lisiere.windows import WindowBuilder

CHANNELS, LENGTH = 16, 64
BLOCK = 1024  # as many as a pipeline takes at once
COUNT = 100 * BLOCK
DAY_S = 86_400


def run(rounds: int, work: Path, models: Path) -> list[Outcome]:
    """Measure all of it; `models` has the compiled samples."""
    return [*windows(rounds), replayed(work, next(models.glob("pump-*/manifest.yaml")).parent)]


def windows(rounds: int) -> list[Outcome]:
    """Readings a second into windows that slide by one row, so that there is a window for each reading."""
    values: NDArray[np.float64] = np.random.default_rng(1).normal(size=(COUNT, CHANNELS))
    stamps: NDArray[np.float64] = 1.7e9 + np.arange(COUNT, dtype=np.float64)
    readings = [Reading(float(ts), tuple(row), "bench") for ts, row in zip(stamps, values.tolist(), strict=True)]
    figures: dict[str, tuple[Callable[[], float], int]] = {
        "windows, readings in blocks": (lambda: _blocks(stamps, values), 200_000),
        "windows, readings that wait together": (lambda: _together(readings), 200_000),
        "windows, readings one by one": (lambda: _singly(readings), 50_000),
    }
    bare = statistics.median(COUNT / _bare(values) for _ in range(rounds))
    outcomes = []
    for name, (work, least) in figures.items():
        rate = statistics.median(COUNT / work() for _ in range(rounds))
        against = (
            f"{CHANNELS} channels, a window of {LENGTH} rows each reading; a bare loop that puts rows into an array "
            f"and copies each window, without stamps and gaps: {bare:,.0f}/s"
        )
        outcomes.append(Outcome(name, against, rate, "/s", f">= {least:,}", rate >= least))
    return outcomes


def _builder() -> WindowBuilder:
    names = tuple(f"c{at}" for at in range(CHANNELS))
    return WindowBuilder(WindowInput(channels=names, length=LENGTH, step_s=1.0, max_gap=4), "bench")


def _blocks(stamps: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    builder = _builder()
    started = time.process_time()
    found = 0
    for at in range(0, COUNT, BLOCK):
        found += len(builder.add_block(Readings(stamps[at : at + BLOCK], values[at : at + BLOCK], "bench")))
    return _took(started, found)


def _together(readings: list[Reading]) -> float:
    builder = _builder()
    started = time.process_time()
    found = 0
    for at in range(0, COUNT, BLOCK):
        found += len(builder.add_all(readings[at : at + BLOCK]))
    return _took(started, found)


def _singly(readings: list[Reading]) -> float:
    builder = _builder()
    started = time.process_time()
    found = 0
    for reading in readings:
        found += len(builder.add(reading))
    return _took(started, found)


def _took(started: float, found: int) -> float:
    if found != COUNT - LENGTH + 1:
        raise RuntimeError(f"{found} windows were made of {COUNT} readings.")
    return time.process_time() - started


def _bare(values: NDArray[np.float64]) -> float:
    rows = np.empty((LENGTH, CHANNELS), np.float32)
    started = time.process_time()
    for row in values:
        rows[:-1] = rows[1:]
        rows[-1] = row
        rows.copy()
    return time.process_time() - started


def replayed(work: Path, artifact: Path) -> Outcome:
    """A day of readings, one a second, through windows and a DLR model that answers each second; in seconds."""
    package = open_package(shutil.copytree(artifact, work / "hourglass"))
    how = package.manifest.input
    if not isinstance(how, WindowInput):
        raise TypeError(f"{artifact} takes no windows.")
    each_second = replace(how, step_s=1.0, stride=1)
    write_manifest(replace(package.manifest, input=each_second), package.path / "manifest.yaml")
    values = np.random.default_rng(1).normal(size=DAY_S).round(4)
    recording = work / "day.csv"
    lines = [f"{1_700_000_000 + at},{value}" for at, value in enumerate(values.tolist())]
    recording.write_text("\n".join([f"time,{how.channels[0]}", *lines]) + "\n")
    source = CsvSource(path=str(recording))
    pipeline = PipelineConfig(name="day", source=source, model=str(package.path), backend="dlr")
    config = Config(device="bench", pipelines=(pipeline,))
    with (work / "day.jsonl").open("wb") as stream:
        started = time.process_time()
        counters = replay(config, 0, recording, stream, 0.0, lambda _: None)
        seconds = time.process_time() - started
    if counters["results"] != DAY_S - how.length + 1:
        raise RuntimeError(f"The replay gave {counters}.")
    opened = open_model(open_package(package.path), "dlr")
    spec = opened.model.inputs[0]
    started = time.process_time()
    for window in sliding_window_view(values.astype(np.float32), how.length):
        opened.model.run({spec.name: window.reshape(spec.shape)})
    bare = time.process_time() - started
    opened.model.close()
    against = (
        f"{DAY_S:,} rows of CSV, {counters['results']:,} inferences and results; the inferences alone, over windows "
        f"cut by NumPy's sliding_window_view: {bare:.1f} s"
    )
    return Outcome("replay of a day at 1 Hz", against, seconds, "s", "<= 10", seconds <= 10)
