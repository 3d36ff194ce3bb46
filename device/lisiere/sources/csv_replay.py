"""CSV replay: a recorded series by its own time stamps."""

from __future__ import annotations

import csv
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lisiere.clock import Clock, parse_ts
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.settings.sensors import CsvSource
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import Pacer
from lisiere.values import Reading

LINE_MAX = 1 << 20  # characters
_HEADER_SHOWN = 400  # of them, in a message


class CsvReplay:
    """Yields a CSV file's rows as readings. Event time is the file's; `speed` sets how fast it passes.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: CsvSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._name = name
        self._channels = channels
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Yield the rows once; see `Source.items`."""
        file = Path(self._config.path)
        try:
            # A byte that is not UTF-8 costs its cell.
            with file.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
                # A line without end comes in pieces: rows that are ragged, or a field that is too long.
                lines = iter(lambda: stream.readline(LINE_MAX), "")
                yield from self._readings(self._rows(csv.reader(lines)), stop)
        except OSError as error:
            raise Retryable(f"{file} cannot be read: {error.strerror}.") from error

    def _rows(self, reader: Any) -> Iterator[tuple[int, list[str]]]:
        """Each row with the number of its last line; one that is none is told and left out."""
        while True:
            try:
                for row in reader:
                    yield reader.line_num, row
            except csv.Error as error:
                self._fault("csv_bad_row", f"Line {reader.line_num} of {self._config.path} is no row: {error}.")
            else:
                return

    def _readings(self, rows: Iterator[tuple[int, list[str]]], stop: threading.Event) -> Iterator[Reading]:
        header = [name.strip() for name in next(rows, (1, []))[1]]
        wanted = [self._config.time, *(self._config.columns.get(channel, channel) for channel in self._channels)]
        absent = [name for name in wanted if name not in header]
        if absent:
            # A file's own text goes into logs, and so to terminals.
            shown = "".join(letter if letter.isprintable() else "?" for letter in ", ".join(header))
            shown = shown if len(shown) <= _HEADER_SHOWN else f"{shown[:_HEADER_SHOWN]}…"
            raise Permanent(
                f"{self._config.path} has the columns {shown or '(none)'}, but not {', '.join(absent)}. Name them with "
                "`time` and `columns`; the file is CSV in UTF-8, with commas between."
            )
        at, *columns = (header.index(name) for name in wanted)
        pacer = Pacer(self._clock, stop)
        previous: float | None = None
        for number, row in rows:
            if stop.is_set():
                return
            if len(row) != len(header):
                if row:
                    self._fault("csv_ragged_row", f"Line {number} of {self._config.path} has {len(row)} columns.")
                continue
            try:
                ts = parse_ts(row[at])
            except Rejected as error:
                self._fault("csv_bad_time", f"Line {number} of {self._config.path}: {error}")
                continue
            values = tuple(self._number(row[column], number) for column in columns)
            if self._config.speed and previous is not None:
                interval = max(0.0, ts - previous) / self._config.speed
                if not pacer.wait(interval):
                    return
            previous = ts if previous is None else max(previous, ts)
            yield Reading(ts, values, self._name)

    def _number(self, text: str, line: int) -> float:
        """Return the cell's number; an empty one is a missing value, and text is a fault. Both become NaN."""
        text = text.strip()
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            self._fault(
                "csv_not_a_number", f"Line {line} of {self._config.path} has {text[:40]!r} where a number belongs."
            )
            return math.nan
        if not math.isfinite(value):
            self._fault("csv_not_a_number", f"Line {line} of {self._config.path} has {text[:40]!r}.")
            return math.nan
        return value
