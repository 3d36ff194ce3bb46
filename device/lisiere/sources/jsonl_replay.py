"""JSON-lines replay: a recorded series, an object a line, by its own time stamps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lisiere.clock import Clock
from lisiere.errors import Rejected, Retryable
from lisiere.settings.sensors import JsonlSource
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import Pacer
from lisiere.sources.records import Records
from lisiere.values import Reading

LINE_MAX_BYTES = 1 << 20


class JsonlReplay:
    """Yields a file's lines as readings. A line that is wrong costs only itself; `speed` sets how fast they pass.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: JsonlSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._clock = clock
        self._fault = fault
        keys = {channel: config.keys.get(channel, channel) for channel in channels}
        self._records = Records(channels, keys, name, config.path, fault, config.time, config.time_unit)

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Yield the readings once; see `Source.items`."""
        file = Path(self._config.path)
        try:
            with file.open("rb") as stream:
                yield from self._paced(stream, stop)
        except OSError as error:
            raise Retryable(f"{file} cannot be read: {error.strerror}.") from error

    def _paced(self, stream: BinaryIO, stop: threading.Event) -> Iterator[Reading]:
        pacer = Pacer(self._clock, stop)
        previous: float | None = None
        for reading in self._readings(stream, stop):
            speed = self._config.speed
            if speed and previous is not None and not pacer.wait(max(0.0, reading.ts - previous) / speed):
                return
            previous = reading.ts if previous is None else max(previous, reading.ts)
            yield reading

    def _readings(self, stream: BinaryIO, stop: threading.Event) -> Iterator[Reading]:
        number, whole = 0, True
        while not stop.is_set() and (line := stream.readline(LINE_MAX_BYTES + 1)):
            begins, whole = whole, line.endswith(b"\n")
            number += begins
            if len(line) > LINE_MAX_BYTES and not whole and begins:
                self._fault("line_too_long", f"Line {number} of {self._config.path} exceeds {LINE_MAX_BYTES} bytes.")
            elif begins and line.strip():
                try:
                    yield from self._records.parse(line, None)
                except Rejected as error:
                    self._fault("line_unusable", f"Line {number} of {self._config.path} cannot be used: {error}")
