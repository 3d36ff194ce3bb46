"""Lines of text on a serial port: JSON objects, columns, or what a regular expression finds."""

from __future__ import annotations

import math
import re
import termios
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.settings.sensors import SerialSource
from lisiere.sources.base import FaultReport
from lisiere.sources.records import Records
from lisiere.values import Reading

LINE_MAX_BYTES = 4096
_POLL_S = 0.2
_CHUNK = 4096
# pyserial's own error is an OSError; what termios says it lets out as it is.
_GONE = (OSError, termios.error)
_PARITY = {"none": "N", "even": "E", "odd": "O"}


class SerialLines:
    """Yields a reading a line. A line that is wrong costs only itself.

    What comes first after opening is left out up to the end of its line: it may be the rest of a number.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: SerialSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._channels = channels
        self._name = name
        self._clock = clock
        self._fault = fault
        self._pattern = re.compile(config.pattern) if config.pattern is not None else None
        keys = {channel: config.keys.get(channel, channel) for channel in channels}
        self._records = Records(channels, keys, name, config.device, fault, config.time, config.time_unit)

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Open the port and yield until stopped; see `Source.items`."""
        self._check()
        port = self._open()
        try:
            for line in self._lines(port, stop):
                try:
                    yield from self._parse(line)
                except Rejected as error:
                    self._fault("line_unusable", f"A line on {self._config.device} cannot be used: {error}")
        except _GONE as error:
            raise Retryable(f"The serial port {self._config.device} went away: {error}.") from error
        finally:
            port.close()

    def _check(self) -> None:
        given = self._pattern.groupindex if self._pattern else self._config.columns
        absent = [channel for channel in self._channels if given is not None and channel not in given]
        if absent:
            what = "pattern" if self._pattern else "columns"
            raise Permanent(f"`{what}` of {self._config.device} does not name {', '.join(absent)}.")

    def _open(self) -> Any:
        try:
            import serial
        except ImportError as error:
            raise Permanent("pyserial is not installed: `pip install lisiere[sensors]` brings it.") from error
        config, line = self._config, self._config.line
        try:
            return serial.Serial(
                config.device,
                line.baud,
                line.data_bits,
                _PARITY[line.parity],
                line.stop_bits,
                timeout=_POLL_S,
                exclusive=True,  # two readers would each get half of the lines
            )
        except _GONE as error:
            raise Retryable(f"The serial port {config.device} cannot be opened: {error}.") from error
        except ValueError as error:
            raise Permanent(f"The serial port {config.device} cannot be set so: {error}.") from error

    def _lines(self, port: Any, stop: threading.Event) -> Iterator[bytes]:
        """Yield whole lines; the memory for one is bounded whatever comes."""
        buffer = bytearray()
        whole = False  # whether the buffer began with a line's beginning
        first = True
        while not stop.is_set():
            buffer += port.read(min(port.in_waiting or 1, _CHUNK))
            *lines, rest = buffer.split(b"\n")
            for line in lines:
                if whole and line.strip():
                    yield bytes(line)
                elif not whole and first:
                    self._fault("line_cut_off", f"The first line on {self._config.device} may have begun earlier.")
                whole, first = True, False
            buffer = rest
            if len(buffer) > LINE_MAX_BYTES:
                if whole:
                    self._fault("line_too_long", f"A line on {self._config.device} exceeds {LINE_MAX_BYTES} bytes.")
                buffer.clear()
                whole = False

    def _parse(self, line: bytes) -> list[Reading]:
        config = self._config
        if config.columns is None and self._pattern is None:
            return self._records.parse(line, self._clock.now())
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise Rejected("it is not UTF-8.") from error
        found: Mapping[str, str | None]
        if self._pattern is not None:
            match = self._pattern.search(text)
            if match is None:
                raise Rejected(f"{text[:40]!r} does not match `pattern`.")
            found = match.groupdict()
        else:
            columns = config.columns or ()
            parts = [part.strip() for part in text.split(config.separator)]
            if len(parts) != len(columns):
                raise Rejected(f"{text[:40]!r} has {len(parts)} columns and not {len(columns)}.")
            found = {name: part for name, part in zip(columns, parts, strict=True) if name}
        ts = self._records.stamp(found.get(config.time) or None, self._clock.now())
        values = tuple(self._records.number(found[channel] or "") for channel in self._channels)
        if all(map(math.isnan, values)):
            raise Rejected(f"{text[:40]!r} has no number.")
        return [Reading(ts, values, self._name)]
