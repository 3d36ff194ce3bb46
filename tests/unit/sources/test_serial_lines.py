"""Serial lines on a pseudo-terminal: JSON, columns, patterns; what is wrong costs only itself."""

from __future__ import annotations

import builtins
import math
import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import SerialLine, SerialSource
from lisiere.sources.serial_lines import LINE_MAX_BYTES, SerialLines
from lisiere.values import Reading
from support.sources import Faults, without
from support.terminals import Terminal

PATIENCE_S = 10
NOW = 1_790_000_000.0


class Listening:
    """A source that reads in a thread of its own what the device at the other end of a terminal writes."""

    def __init__(self, **config: Any) -> None:
        self.terminal = Terminal()
        self.faults = Faults()
        self.source = SerialLines(
            SerialSource(device=self.terminal.path, **config),
            "serial",
            ("level", "wind"),
            ManualClock(NOW),
            self.faults,
        )
        self.readings: queue.Queue[Reading | None] = queue.Queue()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        opening = self.source._open

        def opened() -> Any:
            made = opening()
            self._open.set()
            return made

        self.source._open = opened  # type: ignore[method-assign]
        try:
            for reading in self.source.items(self._stop):
                self.readings.put(reading)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error
        self.readings.put(None)

    def __enter__(self) -> Listening:
        self._thread.start()
        assert self._open.wait(PATIENCE_S)
        self.terminal.write(b"5, 6\n")  # may have begun earlier
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.terminal.close()

    def take(self, count: int = 1) -> list[Reading]:
        taken = []
        for _ in range(count):
            reading = self.readings.get(timeout=PATIENCE_S)
            assert reading is not None, self.error
            taken.append(reading)
        return taken


def test_json_lines_become_readings_and_what_may_have_begun_earlier_does_not() -> None:
    with Listening() as line:
        line.terminal.write(b'{"level": 1, "wind": 2}\n{"ts": 1780000000, "wi')
        line.terminal.write(b'nd": 4, "level": 3}\r\n')
        assert line.take(2) == [Reading(NOW, (1, 2), "serial"), Reading(1_780_000_000, (3, 4), "serial")]
    assert line.faults.names == ["line_cut_off"]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"columns": ("level", "", "wind")}, b" 1.5   x 2e1 \r\n"),
        ({"columns": ("level", "", "wind"), "separator": ";"}, b"1.5; x;20\n"),
        ({"columns": ("ts", "wind", "level"), "separator": ","}, b",20,1.5\n"),
        ({"pattern": r"L=(?P<level>[-0-9.]+).*W=(?P<wind>\S+)"}, b"$X L=1.5 ok W=20\n"),
    ],
)
def test_columns_and_patterns(config: dict[str, Any], text: bytes) -> None:
    with Listening(**config) as line:
        line.terminal.write(text)
        assert line.take() == [Reading(NOW, (1.5, 20), "serial")]


def test_a_column_or_a_group_may_be_the_time() -> None:
    with Listening(columns=("at", "level", "wind"), separator=",", time="at", time_unit="ms") as line:
        line.terminal.write(b"1780000000500,1,2\n2026-01-31T07:36:16Z,3,4\n")
        assert [one.ts for one in line.take(2)] == [1_780_000_000.5, 1_769_844_976]


@pytest.mark.parametrize("text", [b"1,2,3\n", b"x,y\n", b",\n", b"nan,inf\n", b"\xff\xfe,1\n", b"only one\n"])
def test_a_line_that_is_wrong_costs_only_itself(text: bytes) -> None:
    with Listening(columns=("level", "wind"), separator=",") as line:
        line.terminal.write(text + b"3,4\n")
        assert line.take() == [Reading(NOW, (3, 4), "serial")]
    assert line.faults.names[-1] == "line_unusable"


def test_what_is_no_number_is_missing_and_told() -> None:
    with Listening(columns=("level", "wind"), separator=",") as line:
        line.terminal.write(b"1,ERR\n2,\n")
        one, two = line.take(2)
    assert (one.values[0], two.values[0]) == (1, 2)
    assert math.isnan(one.values[1])
    assert math.isnan(two.values[1])
    assert line.faults.names == ["line_cut_off", "not_a_number"]


def test_a_stamp_of_1970_is_told_and_the_devices_time_taken() -> None:
    with Listening() as line:
        line.terminal.write(b'{"ts": 12, "level": 1, "wind": 2}\n')
        assert line.take() == [Reading(NOW, (1, 2), "serial")]
    assert line.faults.names == ["line_cut_off", "stamp_of_1970"]


def test_a_line_without_end_takes_no_memory() -> None:
    with Listening() as line:
        for _ in range(5):
            line.terminal.write(b"x" * LINE_MAX_BYTES)
        line.terminal.write(b'\n{"level": 1, "wind": 2}\n')
        assert line.take()[0].values == (1, 2)
    assert line.faults.names == ["line_cut_off", "line_too_long"]


def test_a_device_that_is_unplugged_is_retryable() -> None:
    with Listening() as line:
        line.terminal.write(b'{"level": 1, "wind": 2}\n')
        line.take()
        line.terminal.hang_up()
        assert line.readings.get(timeout=PATIENCE_S) is None
    assert isinstance(line.error, Retryable)
    assert line.terminal.path in str(line.error)


def items(config: SerialSource, *channels: str) -> Iterator[Reading]:
    return SerialLines(config, "serial", channels, ManualClock(), Faults()).items(threading.Event())


def test_a_port_that_is_not_there_is_retryable() -> None:
    with pytest.raises(Retryable, match="/dev/no-such-port cannot be opened"):
        next(items(SerialSource(device="/dev/no-such-port"), "level"))


def test_a_speed_that_the_port_does_not_have_is_an_error_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise ValueError("Invalid baud rate")

    monkeypatch.setattr("serial.Serial", refuses)
    with pytest.raises(Permanent, match="cannot be set so: Invalid baud rate"):
        next(items(SerialSource(device="/dev/null"), "level"))


def test_a_file_that_is_no_port_is_retryable() -> None:
    with pytest.raises(Retryable, match="/dev/null cannot be opened"):
        next(items(SerialSource(device="/dev/null"), "level"))


def test_a_port_that_somebody_else_reads_is_not_shared() -> None:
    with Listening() as line, pytest.raises(Retryable, match="cannot be opened"):
        next(items(SerialSource(device=line.terminal.path), "level"))


@pytest.mark.parametrize("given", [{"columns": ("level", "x")}, {"pattern": "(?P<level>.)"}])
def test_a_channel_that_no_line_can_have_is_an_error_of_the_configuration(given: dict[str, Any]) -> None:
    with pytest.raises(Permanent, match="does not name wind"):
        next(items(SerialSource(device="/dev/null", **given), "level", "wind"))


def test_without_pyserial_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", without("serial"))
    with pytest.raises(Permanent, match=r"lisiere\[sensors\]"):
        next(items(SerialSource(device="/dev/null"), "level"))


def test_the_line_is_set_as_configured() -> None:
    terminal = Terminal()
    config = SerialSource(device=terminal.path, line=SerialLine(baud=19200, data_bits=7, parity="even", stop_bits=2))
    port = SerialLines(config, "serial", (), ManualClock(), Faults())._open()
    try:
        assert (port.baudrate, port.bytesize, port.parity, port.stopbits) == (19200, 7, "E", 2)
    finally:
        port.close()
        terminal.close()
