"""Topics of other devices, by MQTT, from a broker of the source's own."""

from __future__ import annotations

import math
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from lisiere.brokers import Negotiation, authenticate
from lisiere.clock import Clock
from lisiere.errors import Permanent, Rejected, Retryable
from lisiere.settings.sensors import MqttSource, MqttTopic
from lisiere.sources.base import FaultReport
from lisiere.sources.records import Records
from lisiere.values import Reading

INBOX_MAX = 10_000
INBOX_MAX_BYTES = 8 << 20
_OVERHEAD_BYTES = 200  # of a message in memory, beside its payload
_HEADER_BYTES = 66_000  # a topic has up to 65,535
_FILTERS_MAX = 8  # that AWS IoT Core takes in one packet
_UNSUPPORTED_VERSION = 0x84
_POLL_S = 0.2


class Inbox:
    """Messages that wait to be read, bounded in number and bytes: the oldest make room.

    Attributes:
        dropped: how many have made room.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._messages: deque[tuple[int, float, bytes, bool]] = deque()
        self._bytes = 0
        self._changed = threading.Condition()

    def put(self, message: tuple[int, float, bytes, bool]) -> None:
        """Add a message: of which subscription it is, when it came, its payload, and whether it was retained."""
        with self._changed:
            self._messages.append(message)
            self._bytes += len(message[2]) + _OVERHEAD_BYTES
            while len(self._messages) > INBOX_MAX or self._bytes > INBOX_MAX_BYTES:
                self._bytes -= len(self._messages.popleft()[2]) + _OVERHEAD_BYTES
                self.dropped += 1
            self._changed.notify()

    def take(self, timeout: float) -> list[tuple[int, float, bytes, bool]]:
        """Return all that wait, after at most `timeout` seconds; an empty list when there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages, timeout)
            taken = list(self._messages)
            self._messages.clear()
            self._bytes = 0
        return taken


class MqttTopics:
    """Yields what comes on the topics. A message that is wrong costs only itself.

    One connection is one opening: when it ends, Retryable is raised and the supervisor opens the next. Nothing is kept
    in the broker meanwhile, since what waits has lost the time of its arrival.

    Args:
        channels: what the model's window wants, in order; what a message does not speak of is NaN.
    """

    def __init__(
        self, config: MqttSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._channels = channels
        self._name = name
        self._clock = clock
        self._fault = fault
        self._where = f"{config.host}:{config.address[1]}"
        self._records = [self._records_of(topic) for topic in config.topics]
        self._inbox = Inbox()
        self._granted = threading.Event()
        self._ungranted = 0
        self._answered = False
        self._failure: str | None = None
        self._negotiation = Negotiation()

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Connect, subscribe, and yield until stopped; see `Source.items`."""
        self._check()
        self._inbox, self._granted, self._answered, self._failure = Inbox(), threading.Event(), False, None
        client = self._connect()
        try:
            if not self._granted.wait(self._config.connect_timeout_s):
                self._negotiation.unanswered()
                raise Retryable(f"The broker {self._where} did not answer within {self._config.connect_timeout_s:g} s.")
            told = 0
            while not stop.is_set():
                messages = self._inbox.take(_POLL_S)
                for _ in range(self._inbox.dropped - told):
                    self._fault("mqtt_dropped", f"Messages from {self._where} came faster than they could be read.")
                    told += 1
                for message in messages:
                    yield from self._parse(*message)
                if not messages and self._failure is not None:
                    raise Retryable(f"The broker {self._where}: {self._failure}.")
        finally:
            client.on_disconnect = None
            client.disconnect()
            client.loop_stop()

    def _records_of(self, topic: MqttTopic) -> Records:
        keys = topic.keys or {channel: channel for channel in self._channels}
        if topic.channel is not None:
            keys = {topic.channel: topic.channel}
        given = {channel: key for channel, key in keys.items() if channel in self._channels}
        return Records(self._channels, given, self._name, topic.topic, self._fault, topic.time, topic.time_unit)

    def _check(self) -> None:
        known = set(self._channels)
        given: set[str] = set()
        for topic in self._config.topics:
            named = {topic.channel} if topic.channel is not None else set(topic.keys)
            if unknown := sorted(named - known):
                raise Permanent(f"The topic {topic.topic!r} gives {', '.join(unknown)}, which the model does not take.")
            given |= named or known
        if absent := [channel for channel in self._channels if channel not in given]:
            raise Permanent(f"No topic gives {', '.join(absent)}.")

    def _connect(self) -> paho.Client:
        config, five = self._config, self._negotiation.version == 5
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            config.client_id or "",
            clean_session=None if five else True,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = config.connect_timeout_s
        authenticate(client, config)
        for index, topic in enumerate(config.topics):
            client.message_callback_add(topic.topic, self._receiver(index))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_disconnect = self._on_disconnect
        options: dict[str, Any] = {}
        if five:
            # What is larger the broker does not even send; paho would gather up to 256 MB of a message.
            options = {"clean_start": True, "properties": Properties(PacketTypes.CONNECT)}
            options["properties"].MaximumPacketSize = config.max_payload_kb * 1000 + _HEADER_BYTES
        try:
            client.connect(*config.address, config.keepalive_s, **options)
        except ssl.SSLError as error:
            raise Retryable(f"TLS with the broker {self._where} failed: {error}") from error
        except OSError as error:
            raise Retryable(f"The broker {self._where} cannot be reached: {error}") from error
        client.loop_start()
        return client

    def _receiver(self, index: int) -> Any:
        """What takes the messages of one subscription; a topic that two of them match comes to both."""
        inbox, limit = self._inbox, self._config.max_payload_kb * 1000

        def receive(_client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
            if len(message.payload) > limit:
                self._fault("mqtt_too_large", f"A message on {message.topic[:80]!r} has {len(message.payload)} bytes.")
                return
            inbox.put((index, self._clock.now(), bytes(message.payload), bool(message.retain)))

        return receive

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._answered = True
        if reason.is_failure:
            if reason.value == _UNSUPPORTED_VERSION:
                self._negotiation.refused()
            self._fail(f"it refuses the connection ({reason})")
            return
        self._negotiation.accepted()
        topics = [(topic.topic, topic.qos) for topic in self._config.topics]
        parts = [topics[at : at + _FILTERS_MAX] for at in range(0, len(topics), _FILTERS_MAX)]
        self._ungranted = len(parts)
        for part in parts:
            client.subscribe(part)

    def _on_subscribe(self, _client: paho.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._fail("it refuses a subscription")
        self._ungranted -= 1
        if self._ungranted == 0:
            self._granted.set()

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._answered:
            self._negotiation.unanswered()
        self._fail(f"the connection ended ({reason})")

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._granted.set()

    def _parse(self, index: int, came: float, payload: bytes, retained: bool) -> list[Reading]:
        topic, records = self._config.topics[index], self._records[index]
        try:
            if topic.channel is None:
                return records.parse(payload, None if retained else came)
            ts = records.stamp(None, None if retained else came)
            value = records.number(payload.decode("utf-8"))
        except (Rejected, UnicodeDecodeError) as error:
            what = "A retained message" if retained else "A message"
            name = "mqtt_retained" if retained else "mqtt_unusable"
            self._fault(name, f"{what} on {topic.topic} cannot be used: {error}")
            return []
        values = tuple(value if channel == topic.channel else math.nan for channel in self._channels)
        return [Reading(ts, values, self._name)]
