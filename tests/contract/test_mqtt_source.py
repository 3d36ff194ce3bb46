"""Topics of other devices, from a real Mosquitto: what is a reading, what is not, and a broker that goes away."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import MqttSource, MqttTopic
from lisiere.sources.mqtt import INBOX_MAX, INBOX_MAX_BYTES, Inbox, MqttTopics
from lisiere.values import Reading
from support.brokers import Mosquitto, free_port, running_mosquitto
from support.scripted import CONNECT, SUBSCRIBE, Scripted
from support.sources import Faults

PATIENCE_S = 10
NOW = 1_790_000_000.0
CHANNELS = ("level", "wind")


class Told(Faults):
    """Faults that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Semaphore(0)

    def __call__(self, name: str, sentence: str) -> None:
        super().__call__(name, sentence)
        self.told.release()


class Listening:
    """A source that listens in a thread of its own, once the broker has granted its subscriptions."""

    def __init__(self, port: int, *topics: MqttTopic, channels: tuple[str, ...] = CHANNELS, **config: Any) -> None:
        self.faults = Told()
        self.source = MqttTopics(
            MqttSource(host="127.0.0.1", port=port, topics=topics, **config),
            "mqtt",
            channels,
            ManualClock(NOW),
            self.faults,
        )
        self.readings: queue.Queue[Reading | None] = queue.Queue()
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        granted = self.source._on_subscribe

        def on_subscribe(*arguments: Any) -> None:
            granted(*arguments)
            self._ready.set()

        self.source._on_subscribe = on_subscribe  # type: ignore[method-assign,assignment]
        try:
            for reading in self.source.items(self._stop):
                self.readings.put(reading)
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.error = error
            self._ready.set()
        self.readings.put(None)

    def __enter__(self) -> Listening:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def take(self, count: int = 1) -> list[Reading]:
        taken = []
        for _ in range(count):
            reading = self.readings.get(timeout=PATIENCE_S)
            assert reading is not None, self.error
            taken.append(reading)
        return taken


class Sensor:
    """Another device: it publishes."""

    def __init__(self, port: int) -> None:
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def say(self, topic: str, payload: bytes | str, retain: bool = False) -> None:
        self._client.publish(topic, payload, 1, retain).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running_mosquitto() as made:
        yield made


@pytest.fixture
def sensor(port: int) -> Iterator[Sensor]:
    made = Sensor(port)
    yield made
    made.close()


def test_objects_and_bare_numbers_become_readings(port: int, sensor: Sensor) -> None:
    topics = (
        MqttTopic(topic="plant/+/wind", channel="wind"),
        MqttTopic(topic="plant/tank", keys={"level": "tank.level"}, time="at", time_unit="ms", qos=2),
    )
    with Listening(port, *topics) as source:
        sensor.say("plant/roof/wind", " 4.5 ")
        sensor.say("plant/tank", '{"at": 1780000000500, "tank": {"level": 7}}')
        sensor.say("plant/tank", '{"at": "2026-01-31T07:36:16Z", "tank": {"level": 8}}')
        wind, *tank = source.take(3)
    assert (wind.ts, wind.values[1], wind.source) == (NOW, 4.5, "mqtt")
    assert math.isnan(wind.values[0])
    assert [(one.ts, one.values[0]) for one in tank] == [(1_780_000_000.5, 7), (1_769_844_976, 8)]
    assert source.faults == []


def test_without_a_stamp_it_is_the_time_of_arrival_and_one_of_1970_is_told(port: int, sensor: Sensor) -> None:
    with Listening(port, MqttTopic(topic="a")) as source:
        sensor.say("a", '{"level": 1, "wind": 2}')
        sensor.say("a", '{"ts": 77, "level": 1, "wind": 2}')
        assert source.take(2) == [Reading(NOW, (1, 2), "mqtt")] * 2
    assert source.faults.names == ["stamp_of_1970"]


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        (None, b"nonsense"),
        (None, b"\xff\xfe"),
        (None, b""),
        (None, b"[1]"),
        (None, b'{"other": 1}'),
        (None, b'{"ts": "then", "level": 1}'),
        ("level", b"\xff\xfe"),
    ],
)
def test_a_message_that_is_wrong_costs_only_itself(
    port: int, sensor: Sensor, channel: str | None, payload: bytes
) -> None:
    with Listening(port, MqttTopic(topic="a", channel=channel), MqttTopic(topic="b")) as source:
        sensor.say("a", payload)
        sensor.say("b", '{"level": 1, "wind": 2}')
        assert source.take() == [Reading(NOW, (1, 2), "mqtt")]
    assert source.faults.names == ["mqtt_unusable"]


@pytest.mark.parametrize("payload", ["NaN", "inf", "on", "5 °C"])
def test_a_bare_payload_that_is_no_number_is_missing_and_told(port: int, sensor: Sensor, payload: str) -> None:
    with Listening(port, MqttTopic(topic="a", channel="level"), channels=("level",)) as source:
        sensor.say("a", payload)
        assert math.isnan(source.take()[0].values[0])
    assert source.faults.names == ["not_a_number"]


def test_a_channel_that_vanishes_is_missing_and_told(port: int, sensor: Sensor) -> None:
    with Listening(port, MqttTopic(topic="a")) as source:
        sensor.say("a", '{"level": 1}')
        assert math.isnan(source.take()[0].values[1])
    assert source.faults == [("channel_missing", "a gave a record without 'wind'.")]


def test_a_retained_message_needs_a_stamp(port: int, sensor: Sensor) -> None:
    sensor.say("kept/number", "5", retain=True)
    sensor.say("kept/plain", '{"level": 1, "wind": 2}', retain=True)
    sensor.say("kept/stamped", '{"ts": 1780000000, "level": 3, "wind": 4}', retain=True)
    topics = (MqttTopic(topic="kept/number", channel="level"), *map(kept, ("plain", "stamped")))
    with Listening(port, *topics) as source:
        assert source.take() == [Reading(1_780_000_000, (3, 4), "mqtt")]
        sensor.say("kept/number", "6", retain=True)  # live now: it is not retained for who listens already
        assert source.take()[0].values[0] == 6
    assert source.faults.names == ["mqtt_retained"] * 2


def kept(name: str) -> MqttTopic:
    return MqttTopic(topic=f"kept/{name}")


def test_a_payload_that_is_too_large_is_not_even_sent_and_otherwise_told(port: int, sensor: Sensor) -> None:
    big = '{"level": 1, "wind": 2, "x": "' + "y" * 2000 + '"}'
    with Listening(port, MqttTopic(topic="a"), max_payload_kb=1) as source:
        sensor.say("a", big)  # within what the broker was told, which leaves room for the longest topic
        sensor.say("a", big + " " * 100_000)
        sensor.say("a", '{"level": 1, "wind": 2}')
        assert source.take() == [Reading(NOW, (1, 2), "mqtt")]
    assert source.faults.names == ["mqtt_too_large"]


def test_more_topics_than_fit_into_one_packet(port: int, sensor: Sensor) -> None:
    names = [f"many/{at}" for at in range(20)]
    topics = [MqttTopic(topic=name, channel="level") for name in names]
    with Listening(port, *topics, channels=("level",)) as source:
        assert source.source._granted.wait(PATIENCE_S)
        for at, name in enumerate(names):
            sensor.say(name, str(at))
        assert [one.values[0] for one in source.take(20)] == list(range(20))


def test_a_burst_takes_no_more_than_the_bounds_and_what_makes_room_is_counted() -> None:
    inbox = Inbox()
    for at in range(1_000_000):
        inbox.put((0, float(at), b"5", False))
    taken = inbox.take(0)
    assert len(taken) == INBOX_MAX
    assert (taken[-1][1], inbox.dropped) == (999_999, 1_000_000 - INBOX_MAX)
    for at in range(20):
        inbox.put((0, float(at), b"x" * (INBOX_MAX_BYTES // 10), False))
    assert sum(len(payload) for _, _, payload, _ in inbox.take(0)) <= INBOX_MAX_BYTES
    assert inbox.take(0) == []


def test_what_makes_room_is_named(port: int, sensor: Sensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisiere.sources.mqtt.INBOX_MAX", 0)
    with Listening(port, MqttTopic(topic="a")) as source:
        sensor.say("a", '{"level": 1, "wind": 2}')
        sensor.say("a", '{"level": 1, "wind": 2}')
        assert source.faults.told.acquire(timeout=PATIENCE_S)
        assert source.faults.told.acquire(timeout=PATIENCE_S)
    assert source.faults.names == ["mqtt_dropped"] * 2


def test_a_broker_that_goes_away_is_retryable_and_the_next_opening_works(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    topic = MqttTopic(topic="a", channel="level")
    try:
        with Listening(broker.port, topic, channels=("level",)) as source:
            sensor = Sensor(broker.port)
            sensor.say("a", "1")
            source.take()
            sensor.close()
            broker.kill()
            assert source.readings.get(timeout=PATIENCE_S) is None
        assert isinstance(source.error, Retryable)
        assert f"127.0.0.1:{broker.port}" in str(source.error)
        items = source.source.items(threading.Event())
        with pytest.raises(Retryable, match="cannot be reached"):
            next(items)
        broker.start()
        with Listening(broker.port, topic, channels=("level",)) as source:
            sensor = Sensor(broker.port)
            sensor.say("a", "2")
            assert source.take()[0].values == (2,)
            sensor.close()
    finally:
        broker.stop()


def test_a_broker_that_refuses_is_retryable(tmp_path: Path) -> None:
    with running_mosquitto("allow_anonymous false") as port, Listening(port, MqttTopic(topic="a")) as source:
        assert source.readings.get(timeout=PATIENCE_S) is None
    assert isinstance(source.error, Retryable)
    assert "refuses the connection" in str(source.error)


def opened(port: int) -> tuple[MqttTopics, Iterator[Reading]]:
    config = MqttSource(host="127.0.0.1", port=port, topics=(MqttTopic(topic="a"),), connect_timeout_s=5)
    source = MqttTopics(config, "mqtt", CHANNELS, ManualClock(NOW), Faults())
    return source, source.items(threading.Event())


def test_a_broker_that_refuses_the_subscription_is_retryable() -> None:
    def answer(kind: int, body: bytes) -> bytes | None:
        if kind == CONNECT:
            return b"\x20\x03\x00\x00\x00"
        return b"\x90\x04" + body[:2] + b"\x00\x87" if kind == SUBSCRIBE else b""

    with Scripted(answer) as broker, pytest.raises(Retryable, match="refuses a subscription"):
        next(opened(broker.port)[1])


@pytest.mark.parametrize("refusal", [b"\x20\x02\x00\x01", None], ids=["refuses", "hangs up"])
def test_a_broker_that_knows_3_1_1_only_is_asked_so_the_next_time(refusal: bytes | None) -> None:
    """It answers in the older version, with a message at once."""

    def answer(kind: int, body: bytes) -> bytes | None:
        if kind == CONNECT:
            return b"\x20\x02\x00\x00" if body[6] == 4 else refusal
        if kind == SUBSCRIBE:
            payload = b'{"level": 1, "wind": 2}'
            return b"\x90\x03" + body[:2] + b"\x01" + bytes([0x30, 3 + len(payload)]) + b"\x00\x01a" + payload
        return b""

    with Scripted(answer) as broker:
        source, items = opened(broker.port)
        with pytest.raises(Retryable):
            next(items)
        items = source.items(threading.Event())
        assert next(items) == Reading(NOW, (1, 2), "mqtt")
        items.close()  # type: ignore[attr-defined]  # a generator
    assert broker.levels == [5, 4]


def test_a_broker_that_says_nothing_is_retryable() -> None:
    with Scripted(lambda _kind, _body: b"") as broker:
        config = MqttSource(host="127.0.0.1", port=broker.port, topics=(MqttTopic(topic="a"),), connect_timeout_s=0.1)
        source = MqttTopics(config, "mqtt", CHANNELS, ManualClock(NOW), Faults())
        with pytest.raises(Retryable, match=r"did not answer within 0\.1 s"):
            next(source.items(threading.Event()))


@pytest.mark.parametrize(
    ("topic", "says"),
    [
        (MqttTopic(topic="a", channel="other"), "gives other, which the model does not take"),
        (MqttTopic(topic="a", keys={"level": "x", "heat": "y"}), "gives heat"),
        (MqttTopic(topic="a", keys={"level": "x"}), "No topic gives wind"),
    ],
)
def test_topics_must_give_what_the_model_takes(topic: MqttTopic, says: str) -> None:
    source = MqttTopics(
        MqttSource(host="127.0.0.1", port=free_port(), topics=(topic,)), "mqtt", CHANNELS, ManualClock(), Faults()
    )
    with pytest.raises(Permanent, match=says):
        next(source.items(threading.Event()))
