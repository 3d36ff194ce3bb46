"""A drain, the proxy and a real Mosquitto: whatever the network does, nothing is lost and the window is kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.errors import Retryable
from lisiere.settings.links import MqttConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.supervisor import Unit
from lisiere.sync.drain import Drain
from lisiere.sync.topics import Topics
from lisiere.sync.transports.mqtt import MqttTransport
from lisiere_sim.discard import Discard
from lisiere_sim.proxy import Proxy
from support.brokers import running_mosquitto
from support.wire import open_connection

TOPICS = Topics("lisiere", "pi-1")
WINDOW = 8
TIMEOUT = 30


class Counting(MqttTransport):
    """A transport that says how many messages were unacknowledged at most."""

    most = 0

    def publish(self, topic: str, payload: bytes, **more: Any) -> int:
        token = super().publish(topic, payload, **more)
        assert self._client is not None
        Counting.most = max(Counting.most, len(self._client._out_messages))
        return token


class Line:
    """A spool, a drain, a faulty network, a broker, and somebody who listens behind it."""

    def __init__(self, folder: Path, port: int, proxy: Proxy, **settings: Any) -> None:
        self.proxy = proxy
        host, through = proxy.start()
        self.config = MqttConfig(
            **{
                "host": host, "port": through, "window": WINDOW, "ack_timeout_s": 0.4, "connect_timeout_s": 0.4,
                "publishes_per_s": 0, "kib_per_s": 0, **settings,
            }
        )  # fmt: skip
        self.spool = Spool(
            SpoolConfig(path=str(folder), linger_ms=0), SystemClock(), lambda seq: self.drain.committed(seq)
        )
        self.connected = 0
        self.drain = Drain(
            "pi-1", TOPICS, self.spool, lambda: SpoolReader(folder), self._transport, SystemClock(), self.config
        )
        self._stop = threading.Event()
        self.failures: list[str] = []
        self.changed = threading.Condition()
        self.arrived: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._work)
        self.ear = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.ear.on_message = self._hear
        subscribed = threading.Event()
        self.ear.on_subscribe = lambda *_: subscribed.set()
        self.ear.connect("127.0.0.1", port)
        self.ear.loop_start()
        self.ear.subscribe(f"{TOPICS.base}/#", 1)
        assert subscribed.wait(TIMEOUT)
        Counting.most = 0

    def _transport(self) -> MqttTransport:
        self.connected += 1
        return Counting(self.config, "pi-1")

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        with self.changed:
            if "/result/" in message.topic or "/backlog/" in message.topic:
                self.arrived.append((message.topic, json.loads(message.payload)["seq"]))
            self.changed.notify_all()

    def _work(self) -> None:
        """What the supervisor does, with a shorter wait."""
        while not self._stop.is_set():
            try:
                self.drain.run()
            except Retryable as error:
                with self.changed:
                    self.failures.append(str(error))
                    self.changed.notify_all()
                self._stop.wait(0.02)
            else:
                return

    def start(self) -> None:
        self._thread.start()

    def append(self, count: int) -> None:
        for _ in range(count):
            self.spool.append("dock", b'{"x":"%s"}' % (b"y" * 200))
        assert self.spool.flush(TIMEOUT)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, TIMEOUT)

    def finish(self, total: int) -> None:
        """Let the rest arrive; then everything has, first deliveries in order, and the window was kept."""
        self.drain.finish()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self.wait(lambda: {seq for _, seq in self.arrived} >= set(range(1, total + 1)))
        assert self.spool.waiting == 0
        for topic in (TOPICS.live("dock"), TOPICS.backlog("dock")):
            first = list(dict.fromkeys(seq for at, seq in self.arrived if at == topic))
            assert first == sorted(first)
        assert 0 < Counting.most <= WINDOW

    def close(self) -> None:
        self._stop.set()
        self.drain.stop(farewell=False)
        if self._thread.is_alive():
            self._thread.join(TIMEOUT)
        self.spool.close()
        self.proxy.stop()
        self.ear.disconnect()
        self.ear.loop_stop()


@pytest.fixture(scope="module")
def broker() -> Iterator[int]:
    with running_mosquitto() as port:
        yield port


@pytest.fixture
def line(tmp_path: Path, broker: int) -> Iterator[Line]:
    line = Line(tmp_path, broker, Proxy(("127.0.0.1", broker)))
    yield line
    line.close()


def test_lost_acknowledgements_cost_duplicates_and_nothing_else(line: Line) -> None:
    line.append(5)
    line.start()
    line.wait(lambda: len(line.arrived) == 5)
    line.proxy.deafen()
    line.append(40)
    line.wait(lambda: any("not acknowledged" in failure for failure in line.failures))
    assert line.spool.waiting >= 40
    line.proxy.heal()
    line.finish(45)
    assert len(line.arrived) > 45


def test_a_half_open_connection_is_given_up(line: Line) -> None:
    line.start()
    line.append(5)
    line.wait(lambda: len(line.arrived) >= 5)
    line.proxy.stall()
    line.append(30)
    line.wait(lambda: len(line.failures) >= 2)
    line.proxy.heal()
    line.finish(35)


@pytest.mark.parametrize("size", [100, 600, 1500, 4001])
def test_resets_in_the_middle_of_packets_lose_nothing(line: Line, size: int) -> None:
    line.append(40)
    line.proxy.reset_after(size)
    line.start()
    line.wait(lambda: len(line.failures) >= 3)
    line.proxy.reset_after(None)
    line.finish(40)
    assert not [topic for topic, _ in line.arrived if topic == TOPICS.gap]


def test_a_link_of_a_few_bytes_a_second_is_survived(line: Line) -> None:
    line.append(10)
    line.proxy.slow(50)  # a CONNECT alone takes seconds, so every try times out
    line.start()
    line.wait(lambda: len(line.failures) >= 2)
    assert line.spool.waiting == 10
    line.proxy.heal()
    line.finish(10)


def test_a_client_of_the_same_name_costs_connections_and_nothing_else(line: Line, broker: int) -> None:
    line.append(10)
    line.start()
    line.wait(lambda: len(line.arrived) >= 10)
    for times in range(3):
        seen = len(line.failures)
        with open_connection(("127.0.0.1", broker), "pi-1"):
            line.wait(lambda seen=seen: len(line.failures) > seen)  # type: ignore[misc]
        line.append(10)
        line.wait(lambda times=times: len({seq for _, seq in line.arrived}) >= 20 + 10 * times)  # type: ignore[misc]
    line.finish(40)


def test_a_broker_that_discards_what_comes_too_fast_is_never_given_cause(tmp_path: Path, broker: int) -> None:
    filters: list[Discard] = []

    def upward() -> Callable[[bytes], bytes]:
        filters.append(Discard(per_s=50))
        return filters[-1].feed

    line = Line(tmp_path, broker, Proxy(("127.0.0.1", broker), upward), publishes_per_s=40, ack_timeout_s=10)
    line.append(100)
    line.start()
    line.finish(100)
    line.close()
    assert [one.discarded for one in filters] == [0]
    assert len(line.arrived) == 100


def test_without_a_pace_the_same_broker_discards_and_nothing_is_lost_all_the_same(tmp_path: Path, broker: int) -> None:
    filters: list[Discard] = []

    def upward() -> Callable[[bytes], bytes]:
        filters.append(Discard(per_s=20))
        return filters[-1].feed

    line = Line(tmp_path, broker, Proxy(("127.0.0.1", broker), upward), ack_timeout_s=0.3)
    line.append(60)
    line.start()
    line.finish(60)
    line.close()
    assert sum(one.discarded for one in filters) > 0


def test_the_supervisor_waits_a_second_at_least_between_connections(tmp_path: Path) -> None:
    """One CONNECT a second is what AWS IoT Core takes of a client id."""
    times: list[float] = []
    clock = SystemClock()
    stop = threading.Event()

    def body() -> None:
        times.append(clock.monotonic())
        if len(times) == 2:
            stop.set()
        raise Retryable("The broker is away.")

    unit = Unit("drain", body, stop, clock, lambda _state, _why: None)
    unit.start()
    assert unit.join(TIMEOUT)
    assert times[1] - times[0] >= 1
