"""A recorded series as training sees it: the rows that the device's own window builder makes of a file."""

from __future__ import annotations

import csv
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisiere.clock import ManualClock, rfc3339
from lisiere.errors import ConfigError, Retryable
from lisiere.models.manifest import WindowInput
from lisiere.settings.sensors import CsvSource
from lisiere.sources.csv_replay import CsvReplay
from lisiere.values import Reading
from lisiere.windows import WindowBuilder

MOST_VALUES = 50_000_000
TIMES = ("time", "date", "timestamp", "ts", "datetime")


@dataclass(frozen=True)
class Series:
    """A series on a grid.

    Attributes:
        channels: their names.
        start: seconds since the epoch of row 0.
        step_s: seconds between rows.
        values: float64, [rows, channels]; NaN where a gap was too long to fill.
        real: bool, [rows, channels]: which were measured.
        faults: what was left out of the file, by name.
    """

    channels: tuple[str, ...]
    start: float
    step_s: float
    values: NDArray[np.float64]
    real: NDArray[np.bool_]
    faults: Counter[str]


def read_series(
    file: Path, channels: tuple[str, ...] | None, time: str | None, step_s: float | None, max_gap: int
) -> Series:
    """Read a CSV file with a header and put it on a grid.

    Args:
        file: what to read.
        channels: which columns; None: all but that of the time.
        time: the column of time; None: the first that is called so, or else the first of all.
        step_s: seconds between rows; None: the median of what lies between the file's stamps.
        max_gap: gaps of at most so many rows are interpolated.

    Raises:
        ConfigError: the file cannot be read, or is no such series.
        Permanent: the columns are not there.
    """
    header = _header(file)
    time = time or next((name for name in header if name.lower() in TIMES), header[0])
    channels = channels or tuple(name for name in header if name != time)
    if not channels:
        raise ConfigError(f"{file} has no column but {time!r}.")
    faults: Counter[str] = Counter()
    source = CsvReplay(
        CsvSource(path=str(file), time=time), file.name, channels, ManualClock(), lambda name, _: faults.update([name])
    )
    try:
        readings = list(source.items(threading.Event()))
    except Retryable as error:
        raise ConfigError(str(error)) from error
    if len(readings) < 2:
        raise ConfigError(f"{file} has {len(readings)} usable rows, which is no series.")
    if step_s is None:
        step_s = round(float(np.median(np.diff([reading.ts for reading in readings]))), 3)
    if step_s <= 0:
        raise ConfigError(f"The times in {file} do not rise; give the step by --step.")
    rows = (readings[-1].ts - readings[0].ts) / step_s
    if not rows * len(channels) <= MOST_VALUES:
        raise ConfigError(f"{file} has {rows:,.0f} steps of {step_s:g} s, which are too many; give the step by --step.")
    start, values, real = _grid(readings, channels, step_s, max_gap, faults)
    return Series(channels, start, step_s, values, real, faults)


def write_series(series: Series, first: int, stop: int, file: Path) -> None:
    """Write what was measured in the rows `first` … `stop` - 1 as a CSV file, for replay.

    Raises:
        OSError: the file cannot be written.
    """
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["time", *series.channels])
        for row in range(first, stop):
            if series.real[row].any():
                cells = (
                    f"{value:.9g}" if real else ""
                    for value, real in zip(series.values[row], series.real[row], strict=True)
                )
                writer.writerow([rfc3339(series.start + row * series.step_s), *cells])


def _header(file: Path) -> list[str]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            header = [name.strip() for name in next(csv.reader(stream), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    if not header:
        raise ConfigError(f"{file} is empty.")
    return header


def _grid(
    readings: list[Reading], channels: tuple[str, ...], step_s: float, max_gap: int, faults: Counter[str]
) -> tuple[float, NDArray[np.float64], NDArray[np.bool_]]:
    """Return start, values and which are real, as the rows of all windows that a device would see."""
    how = WindowInput(channels=channels, length=max(2, max_gap + 1), step_s=step_s, max_gap=max_gap)
    builder = WindowBuilder(how, "training")
    windows = [*builder.add_all(readings), *builder.finish()]
    for fault, times in builder.faults.items():
        faults[fault] += times
    if not windows:
        raise ConfigError(
            f"Its rows are further apart than {how.length} steps of {step_s:g} s; give the step by --step."
        )
    if builder.faults["clock_restarted"]:
        raise ConfigError("The times go back, and then go on from there: cut the series where they do.")
    start = windows[0].start
    rows = round((windows[-1].end - start) / step_s) + 1
    values = np.full((rows, len(channels)), np.nan)
    real = np.zeros((rows, len(channels)), np.bool_)
    for window in windows:
        last = round((window.end - start) / step_s)
        cut = slice(last - how.length + 1, last + 1)
        values[cut] = window.values
        real[cut] = np.isfinite(window.values) if window.real is None else window.real
    return start, values, real
