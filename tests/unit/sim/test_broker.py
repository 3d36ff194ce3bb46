from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from lisiere.errors import ConfigError, Permanent
from lisiere_sim.broker import (
    Address,
    EmbeddedBroker,
    ExternalBroker,
    MosquittoBroker,
    choose_broker,
    find_mosquitto,
    free_port,
)
from support import require, wire

Message = tuple[str, bytes, bool]


@contextlib.contextmanager
def client(address: Address, topic: str | None = None) -> Iterator[tuple[paho.Client, queue.Queue[Message]]]:
    """A connected client, and what arrives on its topic."""
    ready = threading.Event()
    arrived: queue.Queue[Message] = queue.Queue()
    made = paho.Client(paho.CallbackAPIVersion.VERSION2)
    made.on_message = lambda _c, _d, message: arrived.put((message.topic, bytes(message.payload), bool(message.retain)))
    made.on_subscribe = lambda *_: ready.set()

    def on_connect(*_: object) -> None:
        if topic is None:
            ready.set()
        else:
            made.subscribe(topic, qos=1)

    made.on_connect = on_connect
    made.connect(*address)
    made.loop_start()
    assert ready.wait(10)
    yield made, arrived
    made.disconnect()
    made.loop_stop()


def test_qos_1_arrives_in_order_and_large(broker: Address) -> None:
    with client(broker, "x/#") as (_, arrived), client(broker) as (publisher, _):
        for number in range(200):
            publisher.publish("x/n", str(number), qos=1)
        publisher.publish("x/n", b"z" * 128 * 1024, qos=1)
        got = [arrived.get(timeout=10)[1] for _ in range(201)]
    assert got[:200] == [str(number).encode() for number in range(200)]
    assert len(got[200]) == 128 * 1024


def test_a_retained_message_is_kept_for_who_comes_later(broker: Address) -> None:
    with client(broker) as (publisher, _):
        publisher.publish("x/status", b"online", qos=1, retain=True).wait_for_publish(10)
    with client(broker, "x/#") as (_, arrived):
        assert arrived.get(timeout=10) == ("x/status", b"online", True)


def test_the_will_follows_an_abrupt_end(broker: Address) -> None:
    with client(broker, "x/#") as (_, arrived):
        wire.open_connection(broker, "device", ("x/status", b"offline")).close()
        assert arrived.get(timeout=10)[:2] == ("x/status", b"offline")


@pytest.mark.parametrize("burst", [16, 100])
def test_what_is_acknowledged_is_passed_on_even_when_the_connection_breaks(broker: Address, burst: int) -> None:
    """amqtt as it comes throws away what it has acknowledged and not yet passed on."""
    acknowledged: set[bytes] = set()
    got: list[bytes] = []
    with client(broker, "x/#") as (_, arrived):
        for number in range(20):
            link = wire.open_connection(broker, "device")
            names = {packet: f"{number}-{packet}".encode() for packet in range(1, burst + 1)}
            link.sendall(b"".join(wire.publish("x/n", packet, name) for packet, name in names.items()))
            data = b""
            while not data:  # the first acknowledgements are enough; the rest may or may not come
                data = link.recv(4 * burst)
            link.close()
            acknowledged |= {names[packet] for packet in wire.acknowledged(data)}
        while not acknowledged <= set(got):
            got.append(arrived.get(timeout=10)[1])
    assert acknowledged
    order = [tuple(map(int, name.split(b"-"))) for name in got]
    assert order == sorted(order)


def test_a_new_connection_closes_the_old_one_of_the_same_client_before_it_is_accepted(broker: Address) -> None:
    with client(broker, "x/#") as (_, arrived):
        old = wire.open_connection(broker, "device", ("x/status", b"offline"))
        old.sendall(wire.publish("x/n", 1, b"last words"))
        new = wire.open_connection(broker, "device", ("x/status", b"offline"))
        new.sendall(wire.publish("x/status", 1, b"online"))
        got = [arrived.get(timeout=10)[1] for _ in range(3)]
        while old.recv(100):
            pass  # the broker has closed it
        old.close()
        new.close()
    assert got[-1] == b"online"
    assert set(got) == {b"last words", b"offline", b"online"}


def test_stopping_leaves_no_thread_and_may_be_repeated() -> None:
    before = set(threading.enumerate())
    embedded = EmbeddedBroker()
    address = embedded.start()
    link = wire.open_connection(address, "device")
    embedded.stop()
    embedded.stop()
    assert set(threading.enumerate()) == before
    with pytest.raises(Permanent, match="No broker answers"):
        ExternalBroker(*address).start()
    link.close()


def test_mosquitto_starts_where_it_is_told_and_stops(tmp_path: Path) -> None:
    require(find_mosquitto(), "mosquitto")
    mosquitto = MosquittoBroker(tmp_path)
    address = mosquitto.start()
    with client(address, "x/#") as (publisher, arrived):
        publisher.publish("x/n", b"1", qos=1)
        assert arrived.get(timeout=10)[1] == b"1"
    assert ExternalBroker(*address).start() == address
    mosquitto.stop()
    mosquitto.stop()
    with pytest.raises(Permanent):
        ExternalBroker(*address).start()


def test_a_mosquitto_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(find_mosquitto(), "mosquitto")
    taken = EmbeddedBroker()
    port = taken.start()[1]
    monkeypatch.setattr("lisiere_sim.broker.free_port", lambda: port)
    monkeypatch.setattr("lisiere_sim.broker._listens", lambda _address: False)
    with pytest.raises(Permanent, match=r"(?s)Mosquitto did not start: .*Address already in use"):
        MosquittoBroker(tmp_path).start()
    taken.stop()


def test_no_mosquitto_is_a_wrong_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisiere_sim.broker.find_mosquitto", lambda: None)
    with pytest.raises(ConfigError, match="not installed"):
        MosquittoBroker(tmp_path).start()


def test_choosing(tmp_path: Path) -> None:
    assert choose_broker("embedded", tmp_path).name == "embedded"
    assert choose_broker("mosquitto", tmp_path).name == "mosquitto"
    assert choose_broker("localhost:1883", tmp_path).name == "localhost:1883"


@pytest.mark.parametrize("text", ["", "rabbit", ":1883", "host:", "host:0", "host:65536", "host:mqtt"])
def test_a_wrong_broker_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT") as caught:
        choose_broker(text, tmp_path)
    assert caught.value.path == "--broker"


def test_a_broker_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(Permanent, match="No broker answers"):
        ExternalBroker("127.0.0.1", free_port()).start()
