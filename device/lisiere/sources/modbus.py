"""Registers of Modbus devices, by TCP or RTU, asked for at regular times.

Source: MODBUS Application Protocol Specification V1.1b3. Numbers of more than 16 bits, scales and the order of words
are not in it: devices differ, and the configuration says.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import threading
from collections.abc import Iterator
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import REGISTERS, ModbusSource, ModbusValue
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import polled
from lisiere.values import Reading

_FORMATS = {"int16": ">h", "uint16": ">H", "int32": ">i", "uint32": ">I", "float32": ">f", "float64": ">d"}
_PARITY = {"none": "N", "even": "E", "odd": "O"}
_SILENCES = 3  # rounds without any answer, after which the connection is taken for dead
_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "the device failed",
    5: "acknowledged, and still working",
    6: "the device is busy",
    8: "memory parity error",
    10: "the gateway has no path",
    11: "the device behind the gateway does not answer",
}


class Modbus:
    """Asks for each channel in turn. One that has no answer, or a refusal, is NaN and counted; the others go on.

    A device that has not answered once is not asked for its other channels until the next round: it must not hold up
    the rest of the bus, and on a serial one its late answer would pass for that to the next question.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: ModbusSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._channels = channels
        self._name = name
        self._clock = clock
        self._fault = fault
        self._silences = 0
        self._where = config.device or f"{config.host}:{config.port}"

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Connect and yield until stopped; see `Source.items`."""
        absent = [channel for channel in self._channels if channel not in self._config.values]
        if absent:
            raise Permanent(f"`values` of the Modbus source has no register for {', '.join(absent)}.")
        client = self._client()
        self._silences = 0
        try:
            if not client.connect():
                raise Retryable(f"Modbus at {self._where} cannot be connected to{self._why_not()}.")
            yield from polled(
                lambda: self._ask(client, stop), self._config.interval_s, self._name, self._clock, self._fault, stop
            )
        finally:
            client.close()

    def _why_not(self) -> str:
        """What is seen of a serial port that could not be opened; the library does not say."""
        device = self._config.device
        if device is None or os.access(device, os.R_OK | os.W_OK):
            return ""
        return ": this user may not open it" if os.path.lexists(device) else ": there is no such port"

    def _client(self) -> Any:
        try:
            import pymodbus.client
        except ImportError as error:
            raise Permanent("pymodbus is not installed: `pip install lisiere[sensors]` brings it.") from error
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # every failure is reported in our own words
        config, line = self._config, self._config.line
        if config.host is not None:
            return pymodbus.client.ModbusTcpClient(config.host, port=config.port, timeout=config.timeout_s, retries=0)
        try:
            return pymodbus.client.ModbusSerialClient(
                config.device or "",
                baudrate=line.baud,
                bytesize=line.data_bits,
                parity=_PARITY[line.parity],
                stopbits=line.stop_bits,
                timeout=config.timeout_s,
                retries=0,
            )
        except RuntimeError as error:
            raise Permanent("pyserial is not installed: `pip install lisiere[sensors]` brings it.") from error

    def _ask(self, client: Any, stop: threading.Event) -> list[float]:
        """One round: a number a channel, in their order; cut short by a stop, since every answer may take long."""
        silent: set[int] = set()
        answered = False
        values: list[float] = []
        for channel in self._channels:
            if stop.is_set():
                return values
            value = self._config.values[channel]
            if value.unit in silent:
                self._fault("modbus_timeout", f"Unit {value.unit} at {self._where} is silent, so {channel} is missing.")
                values.append(math.nan)
                continue
            response = self._request(client, value)
            if response is None:
                silent.add(value.unit)
                self._fault("modbus_timeout", f"Unit {value.unit} at {self._where} gives no answer for {channel}.")
                values.append(math.nan)
                continue
            answered = True
            values.append(self._number(channel, value, response))
        self._silences = 0 if answered else self._silences + 1
        if self._silences >= _SILENCES:
            raise Retryable(f"Modbus at {self._where} gives no answer.")
        return values

    def _request(self, client: Any, value: ModbusValue) -> Any:
        """Return the response, or None when there is none in time or not a whole one.

        Raises:
            Retryable: the connection is lost.
        """
        from pymodbus.exceptions import ConnectionException, ModbusException

        ask = {
            "holding": client.read_holding_registers,
            "input": client.read_input_registers,
            "coil": client.read_coils,
            "discrete": client.read_discrete_inputs,
        }[value.kind]
        count = REGISTERS[value.number] if value.kind in ("holding", "input") else 1
        try:
            return ask(value.address, count=count, device_id=value.unit)
        except ConnectionException as error:
            raise Retryable(f"Modbus at {self._where} closed the connection.") from error
        except OSError as error:
            raise Retryable(f"The connection to Modbus at {self._where} is lost: {error}.") from error
        except ModbusException:
            return None

    def _number(self, channel: str, value: ModbusValue, response: Any) -> float:
        if response.isError():
            code = getattr(response, "exception_code", 0)
            said = f"{code}, {_EXCEPTIONS.get(code, 'of its own')}"
            self._fault("modbus_exception", f"Unit {value.unit} at {self._where} refuses {channel} (exception {said}).")
            return math.nan
        if value.kind in ("coil", "discrete"):
            number = float(bool(response.bits[0])) if response.bits else math.nan
        else:
            number = decode(response.registers, value)
        number = number * value.scale + value.offset
        if not math.isfinite(number):
            self._fault("not_a_number", f"Unit {value.unit} at {self._where} has no number for {channel}.")
            return math.nan
        return number


def decode(registers: list[int], value: ModbusValue) -> float:
    """Return the number that registers hold, before scale and offset; NaN when there are not as many as it takes."""
    if len(registers) != REGISTERS[value.number]:
        return math.nan
    words = registers if value.words == "big" else registers[::-1]
    data = b"".join(word.to_bytes(2, value.bytes) for word in words)
    return float(struct.unpack(_FORMATS[value.number], data)[0])
