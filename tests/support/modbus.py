"""pymodbus's own server, in a thread: the other end of a Modbus source."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from support.brokers import free_port

PATIENCE_S = 10
SILENT = 9  # a unit that never answers


def registers(form: str, number: float) -> list[int]:
    """The registers of a number, by the standard: big end first. `form` is struct's."""
    data = struct.pack(f">{form}", number)
    return list(struct.unpack(f">{len(data) // 2}H", data))


def device(
    unit: int,
    holding: Mapping[int, Sequence[int]],
    inputs: Mapping[int, Sequence[int]] | None = None,
    coils: Sequence[bool] = (False,),
    discrete: Sequence[bool] = (False,),
) -> SimDevice:
    """A device with four tables; what is not in them it refuses with the exception `illegal data address`."""
    words = [
        [
            SimData(address, values=list(values), datatype=DataType.REGISTERS)
            for address, values in sorted(table.items())
        ]
        for table in (holding, inputs or {0: [0]})
    ]
    bits = [
        [SimData(0, values=[*bits, *[False] * (-len(bits) % 16)], datatype=DataType.BITS)] for bits in (coils, discrete)
    ]
    return SimDevice(unit, simdata=(bits[0], bits[1], words[0], words[1]), use_bit_addressing=True)


class ModbusServer:
    """Serves devices on a TCP port, or on a serial port where one is given; the unit SILENT never answers."""

    def __init__(self, devices: list[SimDevice], serial_port: str | None = None, port: int | None = None) -> None:
        self.port = port or free_port()
        self._devices = devices
        self._serial_port = serial_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._server: ModbusTcpServer | ModbusSerialServer

    def __enter__(self) -> ModbusServer:
        self._thread.start()
        self._run(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _serve(self) -> None:
        if self._serial_port is None:
            self._server = ModbusTcpServer(self._devices, address=("127.0.0.1", self.port), trace_packet=_unsent)
        else:
            self._server = ModbusSerialServer(self._devices, port=self._serial_port)
        await self._server.serve_forever(background=True)

    async def _shutdown(self) -> None:
        await self._server.shutdown()  # type: ignore[no-untyped-call]  # pymodbus leaves it so
        await asyncio.sleep(0)


def _unsent(sending: bool, packet: bytes) -> bytes:
    """Let a packet through, but for what the silent unit would answer."""
    return b"" if sending and packet[6] == SILENT else packet
