"""Every transport keeps the same promises: the in-process one, MQTT against a real Mosquitto, and Greengrass' IPC."""

from __future__ import annotations

import base64
import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest

from lisiere.errors import Retryable
from lisiere.ipc import MESSAGE_MAX_BYTES, Environment, Nucleus
from lisiere.settings.links import GreengrassConfig, MqttConfig
from lisiere.sync.transports import Acked, Event, Lost, Received, Refused, Transport, Will
from lisiere.sync.transports.greengrass import GreengrassTransport
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport
from lisiere.sync.transports.mqtt import MqttTransport
from lisiere_sim.nucleus.call import Call
from lisiere_sim.nucleus.flavour import FLAVOURS
from support.brokers import free_port, running_mosquitto
from support.events import Events
from support.nucleus import Ipc, ipc

WILL = Will("t/status", b"offline")
TIMEOUT = 10


@dataclass
class Peer:
    """One kind of transport, and how to look at and trouble its other end."""

    open: Callable[[], Transport]
    received: queue.SimpleQueue[tuple[str, bytes]] = field(default_factory=queue.SimpleQueue)
    cut: Callable[[], None] = lambda: None
    send: Callable[[str, bytes], None] = lambda _topic, _payload: None
    will: bool = True  # whether the other end keeps one


@pytest.fixture(params=["memory", "mosquitto-5", "mosquitto-3.1.1", "greengrass-classic", "greengrass-lite"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    if request.param == "memory":
        yield from memory_peer()
    elif request.param.startswith("greengrass"):
        with ipc(FLAVOURS[request.param.removeprefix("greengrass-")]) as nucleus:
            yield from greengrass_peer(nucleus)
    else:
        with running_mosquitto() as port:
            yield from mosquitto_peer(port, request.param.removeprefix("mosquitto-"))


def memory_peer() -> Iterator[Peer]:
    broker = MemoryBroker(max_bytes=MESSAGE_MAX_BYTES)

    def send(topic: str, payload: bytes) -> None:
        for connection in broker.connections:
            connection.receive(topic, payload)

    peer = Peer(lambda: MemoryTransport(broker), cut=broker.cut, send=send)
    done = threading.Event()

    def forward() -> None:
        seen = 0
        while True:
            with broker.changed:
                if seen == len(broker.messages) and not done.is_set():
                    broker.changed.wait()
                for message in broker.messages[seen:]:
                    peer.received.put((message.topic, message.payload))
                seen = len(broker.messages)
                if done.is_set():
                    return

    thread = threading.Thread(target=forward)
    thread.start()
    yield peer
    with broker.changed:
        done.set()
        broker.changed.notify_all()
    thread.join(TIMEOUT)


def mosquitto_peer(port: int, protocol: str) -> Iterator[Peer]:
    transports: list[MqttTransport] = []

    def make() -> Transport:
        config = msgspec.convert({"host": "127.0.0.1", "port": port, "protocol": protocol}, MqttConfig, strict=False)
        transports.append(MqttTransport(config, "device"))
        return transports[-1]

    def cut() -> None:
        # What a network does: the socket is dead, and no DISCONNECT was sent.
        for transport in transports:
            assert transport._client is not None
            transport._client.socket()._link.shutdown(socket.SHUT_RDWR)

    peer = Peer(make, cut=cut, send=lambda topic, payload: send(topic, payload))
    subscribed = threading.Event()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _c, _d, message: peer.received.put((message.topic, message.payload))
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()

    def send(topic: str, payload: bytes) -> None:
        client.publish(topic, payload, 1)

    client.subscribe("#", 1)
    assert subscribed.wait(TIMEOUT)
    yield peer
    for transport in transports:
        transport.close()
    client.disconnect()
    client.loop_stop()


def greengrass_peer(nucleus: Ipc) -> Iterator[Peer]:
    connections: list[Nucleus] = []

    def make() -> Transport:
        connections.append(Nucleus(Environment.read(nucleus.environment("device")), TIMEOUT))
        connections[-1].connect()
        return GreengrassTransport(GreengrassConfig(), connections[-1])

    def cut() -> None:
        nucleus.run(lambda: nucleus.server.disconnect("device"))

    def send(topic: str, payload: bytes) -> None:
        nucleus.run(lambda: nucleus.cloud.deliver(topic, payload))

    there = Peer(make, cut=cut, send=send, will=False)

    async def publish(call: Call) -> dict[str, Any]:
        there.received.put((call.request["topicName"], base64.b64decode(call.request["payload"])))
        return {}

    nucleus.operations["PublishToIoTCore"] = publish
    yield there
    for connection in connections:
        connection.close()


def connect(peer: Peer) -> tuple[Transport, Events]:
    transport = peer.open()
    events = Events(transport)
    transport.connect(WILL, events.put)
    return transport, events


def test_a_published_message_arrives_and_is_acknowledged_by_its_token(peer: Peer) -> None:
    transport, events = connect(peer)
    tokens = [transport.publish(f"t/{at}", b"%d" % at) for at in range(5)]
    assert {events.get(timeout=TIMEOUT) for _ in range(5)} == {Acked(token) for token in tokens}
    assert [peer.received.get(timeout=TIMEOUT) for _ in range(5)] == [(f"t/{at}", b"%d" % at) for at in range(5)]
    assert len(set(tokens)) == 5
    transport.close()


def test_a_clean_close_sends_no_will_and_no_event(peer: Peer) -> None:
    transport, events = connect(peer)
    transport.publish("t/x", b"1")
    assert isinstance(events.get(timeout=TIMEOUT), Acked)
    transport.close()
    transport.close()
    again, _ = connect(peer)
    again.publish("t/y", b"2")
    again.wait(0)
    assert [peer.received.get(timeout=TIMEOUT) for _ in range(2)] == [("t/x", b"1"), ("t/y", b"2")]
    again.close()
    assert events.empty()


def test_a_cut_connection_is_told_and_its_will_goes_out(peer: Peer) -> None:
    transport, events = connect(peer)
    peer.cut()
    assert isinstance(events.get(timeout=TIMEOUT), Lost)
    if peer.will:
        assert peer.received.get(timeout=TIMEOUT) == (WILL.topic, WILL.payload)
    with pytest.raises(Retryable):
        transport.publish("t/x", b"1")
    transport.close()


def test_what_is_subscribed_to_is_received(peer: Peer) -> None:
    transport, events = connect(peer)
    transport.subscribe("c/cmd/#")
    received: Event | None = None
    for _ in range(50):  # MQTT's subscription may take a moment
        peer.send("c/cmd/ping", b"{}")
        with contextlib.suppress(queue.Empty):
            received = events.get(timeout=0.2)
            break
    assert received == Received("c/cmd/ping", b"{}")
    transport.close()
    with pytest.raises(Retryable):
        transport.subscribe("c/cmd/#")


def test_a_message_that_is_too_large_is_refused_and_the_connection_goes_on(peer: Peer) -> None:
    transport, events = connect(peer)
    refused = transport.publish("t/x", b"x" * (MESSAGE_MAX_BYTES + 1))
    event = events.get(timeout=TIMEOUT)
    assert isinstance(event, Refused)
    assert (event.token, event.reason) == (refused, "too_large")
    acked = transport.publish("t/y", b"2")
    assert events.get(timeout=TIMEOUT) == Acked(acked)
    assert peer.received.get(timeout=TIMEOUT) == ("t/y", b"2")
    transport.close()


def test_a_wait_ends_when_another_thread_wakes_it(peer: Peer) -> None:
    transport, _ = connect(peer)
    transport.wait(0)  # what connecting has left
    waker = threading.Timer(0.05, transport.wake)
    waker.start()
    started = time.monotonic()
    while waker.is_alive():
        transport.wait(TIMEOUT)
    assert time.monotonic() - started < TIMEOUT
    transport.wake()
    transport.wait(TIMEOUT)  # it was woken before it began
    assert time.monotonic() - started < TIMEOUT
    transport.close()
    transport.wake()
    waker.join()


def test_publishing_on_a_closed_transport_is_refused(peer: Peer) -> None:
    transport, _ = connect(peer)
    transport.close()
    with pytest.raises(Retryable):
        transport.publish("t/x", b"1")


def test_a_broker_that_is_not_there_is_retryable() -> None:
    transport = MqttTransport(MqttConfig(host="127.0.0.1", port=free_port()), "device")
    with pytest.raises(Retryable, match="cannot be reached"):
        transport.connect(WILL, lambda _event: None)


def test_a_host_that_accepts_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = MqttConfig(host="127.0.0.1", port=server.getsockname()[1], connect_timeout_s=0.3)
        with pytest.raises(Retryable, match=r"did not answer within 0\.3 s"):
            MqttTransport(config, "device").connect(WILL, lambda _event: None)


def test_a_broker_that_refuses_is_retryable_and_says_why() -> None:
    with running_mosquitto("allow_anonymous false") as port:
        transport: Any = MqttTransport(MqttConfig(host="127.0.0.1", port=port), "device")
        with pytest.raises(Retryable, match="refuses the connection: Not authorized"):
            transport.connect(WILL, lambda _event: None)
