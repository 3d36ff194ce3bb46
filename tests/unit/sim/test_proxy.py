from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lisiere_sim.proxy import Proxy


class Echo:
    """A server that sends back what it gets, and says who connects."""

    def __init__(self) -> None:
        self.connections: queue.Queue[socket.socket] = queue.Queue()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._server.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            self.connections.put(link)
            thread = threading.Thread(target=self._echo, args=(link,))
            self._threads.append(thread)
            thread.start()

    def _echo(self, link: socket.socket) -> None:
        with link:
            try:
                while data := link.recv(65536):
                    link.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        if self._server.fileno() != -1:
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._server.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    made = Proxy(echo.address)
    yield made
    made.stop()


@pytest.fixture
def link(proxy: Proxy) -> Iterator[socket.socket]:
    made = socket.create_connection(proxy.start(), timeout=10)
    yield made
    made.close()


def take(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = link.recv(count - len(data))
        assert chunk
        data += chunk
    return data


def ended(link: socket.socket) -> bool:
    try:
        return link.recv(1) == b""
    except ConnectionError:
        return True


def another(link: socket.socket) -> socket.socket:
    return socket.create_connection(link.getpeername(), timeout=10)


def test_bytes_pass_unchanged_both_ways(proxy: Proxy, link: socket.socket) -> None:
    data = os.urandom(1_000_000)
    sender = threading.Thread(target=link.sendall, args=(data,))
    sender.start()
    assert take(link, len(data)) == data
    sender.join()
    assert proxy.traffic.up == len(data)
    assert proxy.traffic.accepted == 1
    assert proxy.link == "up"


def test_an_end_is_passed_on_once_everything_before_it_has_been(link: socket.socket) -> None:
    link.sendall(b"last words")
    link.shutdown(socket.SHUT_WR)
    assert take(link, 10) == b"last words"
    assert ended(link)


def test_a_cut_ends_what_is_open_and_refuses_what_is_new_until_healed(proxy: Proxy, link: socket.socket) -> None:
    link.sendall(b"a")
    assert take(link, 1) == b"a"
    proxy.cut()
    assert proxy.link == "cut"
    assert ended(link)
    with another(link) as refused:
        assert ended(refused)
    assert (proxy.traffic.dropped, proxy.traffic.refused) == (1, 1)
    assert proxy.open_connections == 0
    address = proxy._server.sockets[0].getsockname()  # type: ignore[union-attr]
    proxy.heal()
    with socket.create_connection(address, timeout=10) as fresh:
        fresh.sendall(b"b")
        assert take(fresh, 1) == b"b"


def test_a_delay_holds_back_each_way_and_does_not_add_up(proxy: Proxy, link: socket.socket) -> None:
    proxy.delay(100)
    begun = time.monotonic()
    for number in range(10):
        link.sendall(bytes([number]))
    assert take(link, 10) == bytes(range(10))
    took = time.monotonic() - begun
    assert 0.2 <= took < 1.0  # ten times two ways in a row would be 2 s
    proxy.heal()
    link.sendall(b"x")
    assert take(link, 1) == b"x"


def test_a_stall_keeps_connections_and_accepts_new_ones_but_forwards_nothing(
    proxy: Proxy, link: socket.socket, echo: Echo
) -> None:
    link.sendall(b"a")
    assert take(link, 1) == b"a"
    proxy.stall()
    up = proxy.traffic.up
    link.sendall(b"b")
    with another(link) as fresh:
        fresh.sendall(b"c")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(1)
        assert proxy.traffic.up == up
        link.settimeout(10)
        proxy.heal()
        assert take(link, 1) == b"b"
        assert take(fresh, 1) == b"c"
    assert proxy.traffic.dropped == 0


def test_who_gives_up_during_a_stall_never_reaches_the_other_end(proxy: Proxy, link: socket.socket, echo: Echo) -> None:
    link.sendall(b"a")
    assert take(link, 1) == b"a"
    far = echo.connections.get(timeout=10)
    proxy.stall()
    gone = another(link)
    gone.sendall(b"never")
    gone.close()
    link.sendall(b"never")
    link.close()
    wait_until(lambda: sum(pair.half_gone for pair in list(proxy._pairs)) == 2)
    proxy.heal()
    wait_until(lambda: far.fileno() == -1)  # the far end has been closed
    assert echo.connections.empty()
    assert proxy.traffic.up == 1


def test_memory_stays_bounded_because_the_sender_is_held_up(proxy: Proxy, link: socket.socket) -> None:
    proxy.stall()
    link.settimeout(0.5)
    sent, held_up = 0, False
    while not held_up and sent < 1 << 30:
        try:
            sent += link.send(b"x" * 65536)
        except TimeoutError:
            held_up = True
    assert held_up
    assert sent < 64 << 20


def test_a_broker_that_is_away_ends_the_connection(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    with socket.create_connection(proxy.start(), timeout=10) as link:
        assert ended(link)


def test_stopping_leaves_no_thread_and_may_be_repeated(echo: Echo) -> None:
    before = set(threading.enumerate())
    proxy = Proxy(echo.address)
    with socket.create_connection(proxy.start(), timeout=10) as link:
        link.sendall(b"a")
        assert take(link, 1) == b"a"
        proxy.stop()
        proxy.stop()
        assert ended(link)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "network"]


def wait_until(holds: Any, timeout: float = 10.0) -> None:
    until = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
