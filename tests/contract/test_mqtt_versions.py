"""Two versions of MQTT: negotiated and remembered, and what only the newer one can say becomes an error of ours."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from lisiere.brokers import Negotiation
from lisiere.errors import Permanent, Retryable
from lisiere.settings.links import MqttConfig
from lisiere.sync.transports import Acked, Denied, Event, Lost, Refused, Will
from lisiere.sync.transports.mqtt import MqttTransport
from support.brokers import running_mosquitto
from support.events import Events
from support.scripted import CONNECT, Scripted

WILL = Will("t/status", b"offline")
TIMEOUT = 10
PUBLISH = 3


def config(port: int, **more: Any) -> MqttConfig:
    return MqttConfig(host="127.0.0.1", port=port, connect_timeout_s=5, **more)


def connected(port: int, negotiation: Negotiation | None = None) -> tuple[MqttTransport, Events]:
    transport = MqttTransport(config(port), "device", negotiation)
    events = Events(transport)
    transport.connect(WILL, events.put)
    return transport, events


def only_3_1_1(kind: int, body: bytes) -> bytes | None:
    if kind == CONNECT:
        return b"\x20\x02\x00\x00" if body[6] == 4 else b"\x20\x02\x00\x01"
    return b""


def test_a_broker_that_knows_3_1_1_only_is_asked_again_at_once_and_remembered() -> None:
    known = Negotiation()
    with Scripted(only_3_1_1) as broker:
        for _ in range(2):
            connected(broker.port, known)[0].close()
    assert broker.levels == [5, 4, 4]


def test_a_broker_that_just_hangs_up_on_what_it_does_not_know_is_asked_otherwise_the_next_time() -> None:
    known = Negotiation()
    with Scripted(lambda kind, body: None if body[6:7] == b"\x05" else only_3_1_1(kind, body)) as broker:
        with pytest.raises(Retryable, match="refuses the connection"):
            connected(broker.port, known)
        connected(broker.port, known)[0].close()
        connected(broker.port, known)[0].close()
    assert broker.levels == [5, 4, 4]


def test_a_fixed_protocol_is_the_only_one_tried() -> None:
    with Scripted(only_3_1_1) as broker:
        for _ in range(2):
            with pytest.raises(Retryable, match="Unsupported protocol version"):
                MqttTransport(config(broker.port, protocol=5), "device").connect(WILL, lambda _event: None)
        old = MqttTransport(config(broker.port, protocol="3.1.1"), "device")
        old.connect(WILL, lambda _event: None)
        old.close()
    assert broker.levels == [5, 5, 4]


def test_a_broker_that_knows_neither_is_not_asked_for_ever() -> None:
    with (
        Scripted(lambda _kind, _body: b"\x20\x02\x00\x01") as broker,
        pytest.raises(Retryable, match="refuses"),
    ):
        connected(broker.port)
    assert broker.levels == [5, 4]


def answering(reason: int) -> Callable[[int, bytes], bytes | None]:
    """A broker of version 5 that answers each message of QoS 1 with a reason code."""

    def answer(kind: int, body: bytes) -> bytes | None:
        if kind == CONNECT:
            return b"\x20\x03\x00\x00\x00"
        if kind == PUBLISH:
            topic = int.from_bytes(body[:2], "big")
            return b"\x40\x03" + body[2 + topic : 4 + topic] + bytes([reason])
        return b""

    return answer


@pytest.mark.parametrize(
    ("reason", "kind", "says"),
    [
        (0x00, Acked, ""),
        (0x10, Acked, ""),  # there are no subscribers
        (0x87, Denied, "Not authorized"),
        (0x90, Refused, "Topic name invalid"),
        (0x99, Refused, "Payload format invalid"),
        (0x97, Lost, "Quota exceeded"),
        (0x80, Lost, "Unspecified error"),
    ],
)
def test_reason_codes_say_what_becomes_of_a_message(reason: int, kind: type[Event], says: str) -> None:
    with Scripted(answering(reason)) as broker:
        transport, events = connected(broker.port)
        token = transport.publish("t/x", b"1")
        event = events.get(timeout=TIMEOUT)
        transport.close()
    assert isinstance(event, kind)
    assert says in getattr(event, "why", "")
    assert getattr(event, "token", token) == token


def test_a_broker_without_qos_1_is_of_no_use() -> None:
    with (
        Scripted(lambda kind, _body: b"\x20\x05\x00\x00\x02\x24\x00" if kind == CONNECT else b"") as broker,
        pytest.raises(Permanent, match="QoS 0 only"),
    ):
        connected(broker.port)


def test_what_mosquitto_says_of_itself_is_kept_to() -> None:
    with running_mosquitto("allow_anonymous true\nmax_inflight_messages 7\nmax_packet_size 3000") as port:
        transport, events = connected(port)
        assert transport.window == 7
        refused = transport.publish("t/x", b"x" * 3000)
        event = events.get(timeout=TIMEOUT)
        assert isinstance(event, Refused)
        assert (event.token, event.reason) == (refused, "too_large")
        acked = transport.publish("t/x", b"x" * transport.max_bytes)
        assert events.get(timeout=TIMEOUT) == Acked(acked)
        transport.close()


def test_a_topic_that_mosquitto_does_not_allow_is_denied_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("topic readwrite t/#\n")
    # Without a bound on its queue, Mosquitto 2.0 takes every refusal for one too many and hangs up.
    with running_mosquitto(f"allow_anonymous true\nmax_queued_messages 100\nacl_file {tmp_path / 'acl'}") as port:
        transport, events = connected(port)
        denied = transport.publish("u/x", b"1")
        event = events.get(timeout=TIMEOUT)
        assert isinstance(event, Denied)
        assert event.token == denied
        acked = transport.publish("t/x", b"1")
        assert events.get(timeout=TIMEOUT) == Acked(acked)
        transport.close()


def test_topics_that_come_again_are_numbers_and_arrive_whole_with_type_and_expiry() -> None:
    received: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
    subscribed = threading.Event()
    with running_mosquitto() as port:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.on_message = lambda _c, _d, message: received.put(message)
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect("127.0.0.1", port)
        client.loop_start()
        client.subscribe("t/#", 1)
        assert subscribed.wait(TIMEOUT)
        transport, events = connected(port)
        topics = [f"t/{at % 13}" for at in range(40)]  # more topics than Mosquitto has numbers for
        for at, topic in enumerate(topics):
            transport.publish(topic, b"%d" % at, content="application/x-test", expiry_s=100.9)
            assert isinstance(events.get(timeout=TIMEOUT), Acked)
        arrived = [received.get(timeout=TIMEOUT) for _ in topics]
        assert len(transport._aliases) == 10
        transport.close()
        client.disconnect()
        client.loop_stop()
    assert [(message.topic, message.payload) for message in arrived] == [
        (topic, b"%d" % at) for at, topic in enumerate(topics)
    ]
    assert {message.properties.ContentType for message in arrived} == {"application/x-test"}
    assert {message.properties.MessageExpiryInterval for message in arrived} <= {99, 100}


def test_a_client_of_the_same_name_is_told_apart_from_a_bad_network() -> None:
    def take_over(kind: int, _body: bytes) -> bytes:
        return b"\x20\x03\x00\x00\x00" if kind == CONNECT else b"\xe0\x01\x8e"

    with Scripted(take_over) as broker:
        transport, events = connected(broker.port)
        transport.publish("t/x", b"1")
        assert events.get(timeout=TIMEOUT) == Lost(
            "Another client calls itself 'device' and has taken the connection over."
        )
        transport.close()
