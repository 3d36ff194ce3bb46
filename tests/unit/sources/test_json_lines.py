"""Lines of JSON on a socket: many clients, and a line that is wrong costs only itself."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import selectors
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.clock import ManualClock
from lisiere.errors import LisiereError, Rejected, Retryable
from lisiere.settings.sensors import SocketSource
from lisiere.sources.json_lines import CLIENTS_MAX, LINE_MAX_BYTES, JsonLines
from lisiere.sources.records import ROWS_MAX
from lisiere.values import Reading

CHANNELS = ("level", "wind")
PATIENCE_S = 10


class Listening(JsonLines):
    """A source that runs in a thread of its own, and says when it listens."""

    def __init__(self, listen: str, channels: tuple[str, ...] = CHANNELS) -> None:
        super().__init__(SocketSource(listen=listen), "sensor", channels, ManualClock(500.0), self._told)
        self.ready = threading.Event()
        self.readings: queue.Queue[Reading] = queue.Queue()
        self.faults: queue.Queue[tuple[str, str]] = queue.Queue()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _told(self, name: str, sentence: str) -> None:
        self.faults.put((name, sentence))

    def _bind(self, stack: contextlib.ExitStack) -> socket.socket:
        server = super()._bind(stack)
        self.ready.set()
        return server

    def _run(self) -> None:
        try:
            for reading in self.items(self._stop):
                self.readings.put(reading)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error
            self.ready.set()

    def __enter__(self) -> Listening:
        self._thread.start()
        assert self.ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self.error is None

    def client(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        made.settimeout(PATIENCE_S)
        made.connect(self.address)
        return made

    def take(self, count: int = 1) -> list[Reading]:
        return [self.readings.get(timeout=PATIENCE_S) for _ in range(count)]

    def fault(self) -> tuple[str, str]:
        return self.faults.get(timeout=PATIENCE_S)


@pytest.fixture
def tcp() -> Iterator[Listening]:
    with Listening("tcp:127.0.0.1:0") as source:
        yield source


def closed(client: socket.socket) -> bool:
    """Whether the other end has hung up."""
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


def parse(line: bytes, channels: tuple[str, ...] = CHANNELS) -> tuple[list[Reading], list[str]]:
    """What one line gives, without a socket."""
    faults: list[str] = []
    source = JsonLines(
        SocketSource(listen="tcp:127.0.0.1:0"),
        "sensor",
        channels,
        ManualClock(500.0),
        lambda name, _: faults.append(name),
    )
    return source._records.parse(line, 500.0), faults


def test_lines_become_readings_in_the_order_of_the_channels(tcp: Listening) -> None:
    with tcp.client() as client:
        client.sendall(b'{"ts": 10, "wind": 2, "level": 1.5}\n{"ts": "1970-01-01T00:00:20Z", "level": 3, "wind": 4}\n')
        assert tcp.take(2) == [Reading(10, (1.5, 2), "sensor"), Reading(20, (3, 4), "sensor")]
    assert tcp.faults.empty()


def test_a_line_may_come_in_pieces(tcp: Listening) -> None:
    with tcp.client() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b'\n  \r\n{"ts": 10, "level": 1, "wind": 2}\r\n':
            client.sendall(bytes([byte]))
        assert tcp.take() == [Reading(10, (1, 2), "sensor")]
    assert tcp.faults.empty()


def test_many_lines_may_come_in_one_piece(tcp: Listening) -> None:
    with tcp.client() as client:
        client.sendall(b"".join(b'{"ts": %d, "level": 0, "wind": 0}\n' % at for at in range(5000)))
        assert [one.ts for one in tcp.take(5000)] == list(range(5000))


def test_many_clients_at_once_do_not_mix_their_lines(tcp: Listening) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tcp.client()) for _ in range(20)]
        for client in clients:
            client.sendall(b'{"ts": 1, "le')
        for at, client in enumerate(clients):
            client.sendall(b'vel": %d, "wind": 0}\n' % at)
        assert {one.values[0] for one in tcp.take(20)} == set(range(20))
    assert tcp.faults.empty()


def test_a_machine_that_can_let_nobody_in_says_so_and_is_not_asked_in_haste() -> None:
    class Server(socket.socket):
        number = errno.EMFILE

        def accept(self) -> tuple[socket.socket, Any]:
            raise OSError(self.number, os.strerror(self.number))

    source = Listening("tcp:127.0.0.1:0")
    with Server() as server, selectors.DefaultSelector() as selector:
        assert not source._accept(server, selector, {})
        server.number = errno.ECONNABORTED
        assert source._accept(server, selector, {})
    assert source.fault() == ("client_not_accepted", "tcp:127.0.0.1:0 cannot let a client in: Too many open files.")
    assert source.faults.empty()


def test_beyond_the_most_clients_the_next_is_turned_away(tcp: Listening) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tcp.client()) for _ in range(CLIENTS_MAX)]
        for client in clients:
            client.sendall(b'{"level": 0}\n')
        tcp.take(CLIENTS_MAX)
        with tcp.client() as more:
            assert closed(more)
        assert tcp.fault()[0] == "channel_missing"  # of the first client
        names = {tcp.fault()[0] for _ in range(CLIENTS_MAX)}
        assert names == {"channel_missing", "too_many_clients"}
        clients[0].close()
        clients[1].sendall(b'{"level": 7, "wind": 1}\n')
        assert tcp.take()[0].values == (7, 1)
    # With room again, a new one is let in.
    with tcp.client() as client:
        client.sendall(b'{"level": 8, "wind": 1}\n')
        assert tcp.take()[0].values == (8, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"{",
        b"[1, 2]",
        b"5",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"level": "\xff"}',
        b'{"level": NaN}',
        b'{"level": 1}}',
        b"{}",
        b'{"ts": 10}',
        b'{"ts": 10, "other": 1}',
        b'{"ts": true, "level": 1, "wind": 1}',
        b'{"ts": [10], "level": 1, "wind": 1}',
        b'{"ts": {}, "level": 1, "wind": 1}',
        b'{"ts": "yesterday", "level": 1, "wind": 1}',
        b'{"ts": "nan", "level": 1, "wind": 1}',
        b'{"ts": 1e300, "level": 1, "wind": 1}',
        b'{"ts": 1700000000000, "level": 1, "wind": 1}',
        b'{"ts": 1' + b"0" * 400 + b', "level": 1, "wind": 1}',
        b"[" * 100_000,
        b'{"level":' * 10_000,
        b"\0" * 100,
        b'{"ts": 0, "step_s": 1, "level": [1, 2], "wind": [1]}',
        b'{"ts": 0, "step_s": 1, "level": [1, 2], "wind": 1}',
        b'{"ts": 0, "level": [1], "wind": [1]}',
        b'{"ts": 0, "step_s": 0, "level": [1], "wind": [1]}',
        b'{"ts": 0, "step_s": -1, "level": [1], "wind": [1]}',
        b'{"ts": 0, "step_s": true, "level": [1], "wind": [1]}',
        b'{"ts": 0, "step_s": "1", "level": [1], "wind": [1]}',
        b'{"ts": 0, "step_s": 1e300, "level": [1], "wind": [1]}',
        b'{"ts": 253402300799, "step_s": 1, "level": [1, 2], "wind": [1, 2]}',
        b'{"ts": 0, "step_s": 1' + b"0" * 400 + b', "level": [1], "wind": [1]}',
    ],
)
def test_a_line_that_is_wrong_costs_only_itself(tcp: Listening, line: bytes) -> None:
    with tcp.client() as client:
        client.sendall(line + b'\n{"ts": 11, "level": 3, "wind": 4}\n')
        assert tcp.take() == [Reading(11, (3, 4), "sensor")]
    name, sentence = tcp.fault()
    assert name == "line_unusable"
    assert len(sentence) < 400
    assert tcp.faults.empty()


@pytest.mark.parametrize("value", [b'"5"', b"true", b"null", b"{}", b"1" + b"0" * 400, b'"' + b"x" * 1000 + b'"'])
def test_a_value_that_is_no_number_is_missing_and_told(value: bytes) -> None:
    readings, faults = parse(b'{"ts": 10, "level": ' + value + b', "wind": 4}')
    assert repr(readings) == repr([Reading(10.0, (math.nan, 4.0), "sensor")])
    assert faults == ["not_a_number"]


def test_a_channel_left_out_is_missing_and_told() -> None:
    readings, faults = parse(b'{"ts": 10, "wind": 4}')
    assert math.isnan(readings[0].values[0])
    assert faults == ["channel_missing"]


@pytest.mark.parametrize("line", [b'{"level": 1, "wind": 2}', b'{"ts": null, "level": 1, "wind": 2}'])
def test_without_a_stamp_the_clock_gives_one(line: bytes) -> None:
    assert parse(line)[0] == [Reading(500.0, (1, 2), "sensor")]


def test_whole_numbers_of_any_size_that_a_float_holds_are_taken() -> None:
    assert (
        parse(b'{"ts": 10, "level": 123456789012345678901234567890, "wind": -0}')[0][0].values[0]
        == 1.2345678901234568e29
    )


def test_lists_are_rows_step_s_apart() -> None:
    readings, faults = parse(b'{"ts": 100, "step_s": 0.5, "level": [1, 2, 3], "wind": [4, 5, 6]}')
    assert readings == [
        Reading(100.0, (1, 4), "sensor"),
        Reading(100.5, (2, 5), "sensor"),
        Reading(101.0, (3, 6), "sensor"),
    ]
    assert faults == []


def test_a_list_with_holes_gives_rows_with_holes() -> None:
    readings, faults = parse(b'{"ts": 0, "step_s": 1, "level": [1, null, "3", true, [4]]}', ("level",))
    assert [math.isnan(one.values[0]) for one in readings] == [False, True, True, True, True]
    assert faults == ["not_a_number"] * 4


def test_a_channel_left_out_of_lists_is_missing_in_each_row_and_told_once() -> None:
    readings, faults = parse(b'{"ts": 0, "step_s": 1, "level": [1, 2]}')
    assert [one.values[0] for one in readings] == [1, 2]
    assert all(math.isnan(one.values[1]) for one in readings)
    assert faults == ["channel_missing"]


def test_an_empty_list_gives_nothing() -> None:
    assert parse(b'{"ts": 0, "step_s": 1, "level": []}', ("level",)) == ([], [])


def test_rows_in_one_line_are_bounded() -> None:
    numbers = [0] * ROWS_MAX
    assert len(parse(msgspec.json.encode({"ts": 0, "step_s": 1, "level": numbers}), ("level",))[0]) == ROWS_MAX
    with pytest.raises(Rejected, match=str(ROWS_MAX)):
        parse(msgspec.json.encode({"ts": 0, "step_s": 1, "level": [*numbers, 0]}), ("level",))


def test_a_line_without_end_costs_its_client_the_connection(tcp: Listening) -> None:
    with tcp.client() as client, tcp.client() as other:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"x" * (LINE_MAX_BYTES + 200_000))
        assert closed(client)
        assert tcp.fault()[0] == "line_too_long"
        other.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
        assert tcp.take()[0].ts == 1


def test_a_client_that_leaves_in_the_middle_of_a_line_is_told(tcp: Listening) -> None:
    with tcp.client() as client:
        client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n{"ts": 2, "lev')
    assert tcp.take()[0].ts == 1
    assert tcp.fault()[0] == "line_cut_off"
    assert tcp.readings.empty()


def test_a_client_that_leaves_after_a_line_is_not(tcp: Listening) -> None:
    with tcp.client() as client:
        client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
    assert tcp.take()[0].ts == 1
    with tcp.client() as client:
        client.sendall(b'{"ts": 2, "level": 1, "wind": 1}\n')
        assert tcp.take()[0].ts == 2
    assert tcp.faults.empty()


def test_a_client_that_breaks_off_hurts_nobody(tcp: Listening) -> None:
    client = tcp.client()
    # Closing with linger 0 sends RST, which the reader meets as an error.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
    assert tcp.take()[0].ts == 1
    client.close()
    with tcp.client() as other:
        other.sendall(b'{"ts": 2, "level": 1, "wind": 1}\n')
        assert tcp.take()[0].ts == 2


def test_a_unix_socket_works_and_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a short path: those of sockets are bounded
    with Listening("unix:run/s") as source:
        assert stat.S_IMODE(Path("run/s").stat().st_mode) == 0o660
        with source.client() as client:
            client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
            assert source.take()[0].ts == 1
    assert list(Path("run").iterdir()) == []


def test_a_socket_left_behind_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind("s")
    assert Path("s").exists()
    with Listening("unix:s") as source, source.client() as client:
        client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
        assert source.take()[0].ts == 1


def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Listening("unix:s") as source:
        refused("unix:s")
        with source.client() as client:
            client.sendall(b'{"ts": 1, "level": 2, "wind": 3}\n')
            assert source.take()[0].values == (2.0, 3.0)


def test_the_same_source_can_be_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with Listening("unix:s") as source, source.client() as client:
            client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
            source.take()


def refused(listen: str) -> Retryable:
    source = JsonLines(SocketSource(listen=listen), "sensor", CHANNELS, ManualClock(), lambda *_: None)
    with pytest.raises(Retryable) as caught:
        next(source.items(threading.Event()))
    assert "None" not in str(caught.value)
    return caught.value


def test_a_file_of_somebody_is_never_deleted(tmp_path: Path) -> None:
    file = tmp_path / "s"
    file.write_text("precious")
    refused(f"unix:{file}")
    assert file.read_text() == "precious"


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.parent / "nowhere")])
def test_nor_is_a_folder_or_a_link(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "s")
    refused(f"unix:{tmp_path / 's'}")
    assert (tmp_path / "s").is_symlink() or (tmp_path / "s").is_dir()


@pytest.mark.parametrize("where", ["x" * 200, "file/s"])
def test_a_path_that_cannot_be_is_retryable(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    refused(f"unix:{tmp_path / where}")


def test_a_port_that_is_taken_is_retryable(tcp: Listening) -> None:
    refused(f"tcp:127.0.0.1:{tcp.address[1]}")


def test_a_host_that_is_not_ours_is_retryable() -> None:
    refused("tcp:192.0.2.1:0")  # TEST-NET-1


def test_clients_are_let_go_at_the_end() -> None:
    with Listening("tcp:127.0.0.1:0") as source:
        client = source.client()
        client.sendall(b'{"ts": 1, "level": 1, "wind": 1}\n')
        source.take()
    with client:
        assert closed(client)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["ts", "step_s", "level", "wind", "x"]), VALUES))
def test_any_object_gives_readings_or_is_rejected(document: dict[str, Any]) -> None:
    try:
        readings, _ = parse(msgspec.json.encode(document))
    except Rejected:
        return
    assert all(math.isfinite(one.ts) and len(one.values) == 2 for one in readings)
    assert not any(math.isinf(value) for one in readings for value in one.values)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_readings_or_are_rejected(line: bytes) -> None:
    with contextlib.suppress(LisiereError):
        parse(line)
