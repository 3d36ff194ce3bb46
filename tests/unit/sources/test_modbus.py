"""Modbus against pymodbus's own server, by TCP and by RTU on a pseudo-terminal."""

from __future__ import annotations

import builtins
import math
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere.clock import SystemClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import REGISTERS, ModbusSource, ModbusValue
from lisiere.sources.modbus import Modbus, decode
from lisiere.values import Reading
from support.brokers import free_port
from support.modbus import SILENT, ModbusServer, device, registers
from support.sources import Faults, OtherFaults, without
from support.terminals import null_modem

QUICK = 0.01
FORMS = {"int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "float32": "f", "float64": "d"}


def opened(values: dict[str, ModbusValue], **given: Any) -> tuple[Iterator[Reading], Faults, threading.Event]:
    faults, stop = OtherFaults(), threading.Event()
    config = ModbusSource(values=values, interval_s=QUICK, **{"timeout_s": 5.0, **given})
    return Modbus(config, "modbus", tuple(values), SystemClock(), faults).items(stop), faults, stop


@pytest.fixture(scope="module")
def server() -> Iterator[ModbusServer]:
    holding = {0: [65_526, 7], 10: registers("f", 21.5), 20: registers("i", -70_000)[::-1], 30: registers("d", math.pi)}
    holding[40] = registers("f", math.nan)
    first = device(1, holding, {5: [1234]}, coils=[False, True], discrete=[True, False])
    with ModbusServer([first, device(2, {0: [3]})]) as running:
        yield running


def test_every_kind_of_value_is_read(server: ModbusServer) -> None:
    values = {
        "signed": ModbusValue(address=0, number="int16", scale=0.1, offset=5),
        "plain": ModbusValue(address=1),
        "float": ModbusValue(address=10, number="float32"),
        "swapped": ModbusValue(address=20, number="int32", words="little"),
        "double": ModbusValue(address=30, number="float64"),
        "input": ModbusValue(address=5, kind="input"),
        "coil": ModbusValue(address=1, kind="coil"),
        "discrete": ModbusValue(address=0, kind="discrete"),
        "other": ModbusValue(unit=2, address=0),
    }
    items, faults, stop = opened(values, host="127.0.0.1", port=server.port)
    one, two = next(items), next(items)
    stop.set()
    assert list(items) == []
    assert one.values == pytest.approx((4.0, 7, 21.5, -70_000, math.pi, 1234, 1, 1, 3))
    assert two.values == one.values
    assert two.ts > one.ts
    assert faults == []


def test_an_exception_is_that_channels_alone(server: ModbusServer) -> None:
    values = {"a": ModbusValue(address=1), "gone": ModbusValue(address=999), "b": ModbusValue(unit=2, address=0)}
    items, faults, _ = opened(values, host="127.0.0.1", port=server.port)
    first = next(items)
    items.close()  # type: ignore[attr-defined]  # a generator
    assert (first.values[0], first.values[2]) == (7, 3)
    assert math.isnan(first.values[1])
    assert faults.names == ["modbus_exception"]
    assert "refuses gone (exception 2, illegal data address)" in faults[0][1]


def test_a_silent_unit_is_asked_once_a_round_and_the_others_go_on(server: ModbusServer) -> None:
    values = {
        "x": ModbusValue(unit=SILENT, address=0),
        "y": ModbusValue(unit=SILENT, address=1),
        "a": ModbusValue(address=1),
    }
    items, faults, _ = opened(values, host="127.0.0.1", port=server.port, timeout_s=0.05)
    rounds = [next(items).values for _ in range(5)]
    items.close()  # type: ignore[attr-defined]
    assert [one[2] for one in rounds] == [7] * 5
    assert all(math.isnan(one[0]) and math.isnan(one[1]) for one in rounds)
    timeouts = [sentence for name, sentence in faults if name == "modbus_timeout"]
    assert len(timeouts) == 10
    assert "gives no answer for x" in timeouts[0]
    assert "is silent, so y is missing" in timeouts[1]


def test_when_nobody_answers_the_connection_is_given_up(server: ModbusServer) -> None:
    items, faults, _ = opened(
        {"x": ModbusValue(unit=SILENT, address=0)}, host="127.0.0.1", port=server.port, timeout_s=0.02
    )
    got: list[Reading] = []
    with pytest.raises(Retryable, match="gives no answer"):
        got.extend(items)
    assert faults.names.count("modbus_timeout") == 3


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_ones() -> None:
    """A server that holds its first answer back until it is asked again; each answer is the request's number."""

    def serve(server: socket.socket) -> None:
        link, _ = server.accept()
        held = b""
        for number in range(3):
            transaction = link.recv(12)[:2]
            answer = transaction + struct.pack(">HHBBBH", 0, 5, 1, 3, 2, number)
            if number:
                link.sendall(held + answer)
            held = b"" if number else answer
        link.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        port = server.getsockname()[1]
        items, faults, _ = opened({"a": ModbusValue(address=0)}, host="127.0.0.1", port=port, timeout_s=0.2)
        values = [next(items).values[0] for _ in range(3)]
        items.close()  # type: ignore[attr-defined]
        thread.join(10)
    assert math.isnan(values[0])
    assert values[1:] == [1, 2]
    assert faults.names == ["modbus_timeout"]


def test_a_stop_in_the_middle_of_a_round_ends_it(server: ModbusServer) -> None:
    """Twenty silent units, and a stop by the first of them: the others are not waited for."""
    values = {f"c{unit}": ModbusValue(unit=SILENT, address=unit) for unit in range(20)}
    items, faults, stop = opened(values, host="127.0.0.1", port=server.port, timeout_s=0.02)
    told = faults.append

    def stopping(fault: tuple[str, str]) -> None:
        told(fault)
        stop.set()

    faults.append = stopping  # type: ignore[method-assign]
    assert list(items) == []
    assert len(faults) == 1


def test_a_register_that_holds_no_number_is_missing(server: ModbusServer) -> None:
    items, faults, _ = opened(
        {"x": ModbusValue(address=40, number="float32"), "a": ModbusValue(address=1)},
        host="127.0.0.1",
        port=server.port,
    )
    assert math.isnan(next(items).values[0])
    items.close()  # type: ignore[attr-defined]
    assert faults.names == ["not_a_number"]


def test_a_lost_connection_is_retryable_and_the_next_opening_works() -> None:
    values = {"a": ModbusValue(address=0)}
    with ModbusServer([device(1, {0: [5]})]) as first:
        items, _, _ = opened(values, host="127.0.0.1", port=first.port)
        assert next(items).values == (5,)
    with pytest.raises(Retryable, match=f"127.0.0.1:{first.port}"):
        list(items)
    items, _, _ = opened(values, host="127.0.0.1", port=first.port)
    with pytest.raises(Retryable, match="cannot be connected to"):
        next(items)
    with ModbusServer([device(1, {0: [6]})], port=first.port):
        items, _, _ = opened(values, host="127.0.0.1", port=first.port)
        assert next(items).values == (6,)
        items.close()  # type: ignore[attr-defined]


def test_rtu_on_a_serial_port() -> None:
    with null_modem() as (ours, theirs), ModbusServer([device(3, {0: registers("f", 2.5)})], serial_port=theirs):
        values = {"a": ModbusValue(unit=3, address=0, number="float32"), "b": ModbusValue(unit=3, address=77)}
        items, faults, _ = opened(values, device=ours)
        got = next(items).values
        items.close()  # type: ignore[attr-defined]
    assert got[0] == 2.5
    assert math.isnan(got[1])
    assert faults.names == ["modbus_exception"]


def test_a_serial_port_that_is_not_there_is_retryable() -> None:
    with pytest.raises(Retryable, match="/dev/no-such-port cannot be connected to: there is no such port"):
        next(opened({"a": ModbusValue(address=0)}, device="/dev/no-such-port")[0])


def test_a_channel_without_a_register_can_never_be_read() -> None:
    config = ModbusSource(host="127.0.0.1", port=free_port(), values={"a": ModbusValue(address=0)})
    with pytest.raises(Permanent, match="no register for b"):
        next(Modbus(config, "modbus", ("a", "b"), SystemClock(), Faults()).items(threading.Event()))


def test_without_pymodbus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "__import__", without("pymodbus"))
    with pytest.raises(Permanent, match=r"lisiere\[sensors\]"):
        next(opened({"a": ModbusValue(address=0)}, host="127.0.0.1")[0])


def numbers(kind: str) -> st.SearchStrategy[float]:
    if kind.startswith("float"):
        return st.floats(width=64 if kind == "float64" else 32, allow_nan=False)
    bits = int(kind.removeprefix("u").removeprefix("int"))
    return st.integers(0, 2**bits - 1) if kind.startswith("u") else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@given(
    st.sampled_from(sorted(FORMS)).flatmap(lambda kind: st.tuples(st.just(kind), numbers(kind))),
    st.sampled_from(["big", "little"]),
    st.sampled_from(["big", "little"]),
)
def test_numbers_are_the_same_in_each_order(sample: tuple[Any, float], words: Any, order: Any) -> None:
    kind, number = sample
    sent = registers(FORMS[kind], number)
    assert len(sent) == REGISTERS[kind]
    if order == "little":
        sent = [int.from_bytes(word.to_bytes(2, "big"), "little") for word in sent]
    if words == "little":
        sent = sent[::-1]
    assert decode(sent, ModbusValue(address=0, number=kind, words=words, bytes=order)) == number
    assert math.isnan(decode(sent[1:], ModbusValue(address=0, number=kind)))
