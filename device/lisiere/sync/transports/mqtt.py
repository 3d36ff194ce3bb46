"""MQTT 5 by paho, and 3.1.1 where the broker speaks no other.

paho resends everything it holds when it reconnects and keeps what is published while offline, so a client here
lives for one connection and is never handed more than the drain's window. The spool does the remembering.

paho's loop runs in the drain's own thread, by `wait`: between two threads each message would change hands twice.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from lisiere.brokers import Negotiation, authenticate
from lisiere.errors import Permanent, Retryable
from lisiere.settings.links import MqttConfig
from lisiere.sync.transports.base import JSON, MESSAGE_MAX_BYTES, Acked, Denied, Listener, Lost, Received, Refused, Will
from lisiere.sync.transports.line import LineClient

_TURN_S = 1.0  # how often keeping the connection alive is seen to
_GOODBYE_S = 0.2  # how long what is left to write may take when the connection is closed
_NO_TOKEN = 0  # paho's message ids start at 1
_OVERHEAD_BYTES = 512  # of a PUBLISH beside its payload: topic, properties, header
_ALIASES_MAX = 128

# Reason codes of MQTT 5 (section 2.4) that say more than that something failed.
_UNSUPPORTED_VERSION = 0x84
_NOT_AUTHORISED = 0x87
_TAKEN_OVER = 0x8E
_NEVER = (0x90, 0x99)  # topic name invalid, payload format invalid: the message can never be taken
_NO_SUCH_BROKER = (0x9A, 0x9B)  # retain or QoS not supported: nothing here works without them


class _Packed(Properties):  # type: ignore[misc]  # paho's is untyped here
    """A message's properties in the bytes that paho asks for: it takes longer to pack them than to send the message."""

    def __init__(self, packed: bytes) -> None:
        super().__init__(PacketTypes.PUBLISH)
        object.__setattr__(self, "_packed", packed)

    def pack(self) -> bytes:
        """Return the properties with their length in front."""
        packed: bytes = object.__getattribute__(self, "_packed")
        return packed


class MqttTransport:
    """One connection to an MQTT broker.

    Args:
        client_id: the client's id, where the configuration has none.
        negotiation: what is known of the broker, kept from one connection to the next.
    """

    def __init__(self, config: MqttConfig, client_id: str, negotiation: Negotiation | None = None) -> None:
        self._config = config
        self._client_id = config.client_id or client_id
        self._negotiation = negotiation or Negotiation(config.protocol)
        self._client: paho.Client | None = None
        self._listener: Listener | None = None
        self._answered = False
        self._bell: tuple[socket.socket, socket.socket] | None = None  # rung at the first, heard at the second
        self._rung = False
        self._refusal: str | None = None
        self._reason = 0
        self._refused = _NO_TOKEN
        self._aliases: dict[str, int] = {}
        self._packed: dict[tuple[str, int | None], _Packed] = {}
        self._aliases_max = 0
        self.window: int | None = None
        self.max_bytes = MESSAGE_MAX_BYTES

    def connect(self, will: Will, listener: Listener) -> None:
        """Connect; see `Transport.connect`. A broker that does not speak the version is asked in the other at once."""
        while not self._try(will, listener):
            pass

    def _try(self, will: Will, listener: Listener) -> bool:
        """Connect in one version; return False when another one is to be tried."""
        five = self._negotiation.version == 5
        client = LineClient(
            paho.CallbackAPIVersion.VERSION2,
            self._client_id,
            clean_session=None if five else True,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._config.connect_timeout_s
        client.max_inflight_messages_set(self._config.window)
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        authenticate(client, self._config)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        self._answered = False
        self._refusal, self._reason, self._listener, self._client = None, 0, listener, client
        host, port = self._config.address
        where = f"{host}:{port}"
        try:
            client.connect(host, port, self._config.keepalive_s, **({"clean_start": True} if five else {}))
        except ssl.SSLError as error:
            raise Retryable(f"TLS with the broker {where} failed: {error}") from error
        except OSError as error:
            raise Retryable(f"The broker {where} cannot be reached: {error}") from error
        self._bell = socket.socketpair()
        for end in self._bell:
            end.setblocking(False)
        left = self._config.connect_timeout_s
        while not self._answered and left > 0:
            self._turn(min(left, _TURN_S / 10))  # a turn that ends sooner has brought it nearer
            left -= _TURN_S / 10
        answered = self._answered
        if answered and self._refusal is None:
            self._negotiation.accepted()
            return True
        self.close()
        if not answered:
            self._negotiation.unanswered()
            raise Retryable(f"The broker {where} did not answer within {self._config.connect_timeout_s:g} s.")
        if self._reason == _UNSUPPORTED_VERSION and self._negotiation.refused():
            return False
        if not self._reason:
            self._negotiation.unanswered()
        if self._reason in _NO_SUCH_BROKER:
            raise Permanent(f"The broker {where} cannot do what results need: {self._refusal}.")
        raise Retryable(f"The broker {where} refuses the connection: {self._refusal}.")

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content: str = JSON,
        expiry_s: float | None = None,
    ) -> int:
        """Publish; see `Transport.publish`. Of topics that come again, MQTT 5 sends a number instead."""
        if self._client is None:
            raise Retryable("The connection is closed.")
        if len(payload) > self.max_bytes:
            return self._refuse(len(payload), qos)
        properties = None
        if self._negotiation.version == 5:
            alias = None
            if qos and not retain:
                topic, alias = self._aliased(topic)
            properties = self._properties(content, alias, expiry_s)
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise Retryable(f"The connection is gone: {paho.error_string(info.rc)}")
        return int(info.mid)

    def subscribe(self, topic: str) -> None:
        """Subscribe; see `Transport.subscribe`."""
        if self._client is None or self._client.subscribe(topic, 1)[0] != paho.MQTT_ERR_SUCCESS:
            raise Retryable("The connection is gone.")

    def wait(self, timeout: float) -> None:
        """Read and write what there is to; see `Transport.wait`. It may return sooner."""
        self._turn(min(timeout, _TURN_S))

    def wake(self) -> None:
        """End a wait; see `Transport.wake`."""
        if (bell := self._bell) is not None and not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # closed meanwhile
                bell[0].send(b"\0")

    def close(self) -> None:
        """Disconnect cleanly: the broker drops the will."""
        self._listener = None
        if (client := self._client) is not None:
            line = client.socket()
            if line is not None and line.unsent:
                self._turn(_GOODBYE_S)
            client.disconnect()  # which closes the line
        bell, self._client, self._bell = self._bell, None, None
        for end in bell or ():
            end.close()

    def _turn(self, timeout: float) -> None:
        """Wait until there is something to read, room to write or a ring, for so long at most; then do that."""
        client, bell = self._client, self._bell
        line = client.socket() if client is not None else None
        if client is None or bell is None or line is None:
            return
        line.flush()
        if line.pending():
            timeout = 0.0
        readable, writable, _ = select.select((line, bell[1]), (line,) if line.unsent else (), (), timeout)
        if bell[1] in readable:
            bell[1].recv(64)
            self._rung = False  # who rings from now on finds that its news is looked at
        if writable:
            line.flush()
        if line in readable or line.pending():
            client.loop_read()
        client.loop_misc()

    def _aliased(self, topic: str) -> tuple[str, int | None]:
        """Give a topic its number on this connection; return what to send as the topic, and the number."""
        alias = self._aliases.get(topic)
        if alias is not None:
            return "", alias
        if len(self._aliases) < self._aliases_max:
            alias = self._aliases[topic] = len(self._aliases) + 1
        return topic, alias

    def _properties(self, content: str, alias: int | None, expiry_s: float | None) -> Properties:
        """Return a message's properties; those without an expiry come again and are kept."""
        found = self._packed.get((content, alias)) if expiry_s is None else None
        if found is not None:
            return found
        properties = Properties(PacketTypes.PUBLISH)
        properties.ContentType = content
        if alias is not None:
            properties.TopicAlias = alias
        if expiry_s is not None:
            properties.MessageExpiryInterval = max(1, min(int(expiry_s), 0xFFFFFFFF))
            return properties
        packed = self._packed[content, alias] = _Packed(properties.pack())
        return packed

    def _refuse(self, size: int, qos: int) -> int:
        """Tell that a message is too large, under a token that paho gives to none."""
        self._refused -= 1
        if qos and (listener := self._listener) is not None:
            limit = "AWS IoT Core" if self.max_bytes == MESSAGE_MAX_BYTES else "this broker"
            why = f"A message has {size} bytes; {self.max_bytes} is the most that {limit} takes."
            listener(Refused(self._refused, "too_large", why))
        return self._refused

    def _on_connect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal, self._reason = str(reason), reason.value
        else:
            self.window = getattr(properties, "ReceiveMaximum", None)
            packet = getattr(properties, "MaximumPacketSize", None)
            self.max_bytes = min(MESSAGE_MAX_BYTES, max(0, packet - _OVERHEAD_BYTES) if packet else MESSAGE_MAX_BYTES)
            self._aliases_max = min(getattr(properties, "TopicAliasMaximum", 0), _ALIASES_MAX)
            if getattr(properties, "MaximumQoS", 1) == 0:
                self._refusal, self._reason = "it takes QoS 0 only", _NO_SUCH_BROKER[1]
        self._answered = True

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        if (listener := self._listener) is None:
            return
        if not reason.is_failure:
            listener(Acked(mid))
        elif reason.value == _NOT_AUTHORISED:
            listener(Denied(mid, f"The broker does not allow a topic: {reason}."))
        elif reason.value in _NEVER:
            listener(Refused(mid, "refused", f"The broker can never take it: {reason}."))
        else:
            # Such as a quota that is used up: it stays in the spool, and the wait before the next try grows.
            listener(Lost(f"The broker does not take a message: {reason}."))

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if (listener := self._listener) is not None:
            listener(Received(message.topic, bytes(message.payload)))

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._answered:
            self._refusal, self._answered = str(reason), True
        if (listener := self._listener) is not None:
            if reason.value == _TAKEN_OVER:
                listener(Lost(f"Another client calls itself {self._client_id!r} and has taken the connection over."))
            else:
                listener(Lost(f"The broker's connection ended: {reason}."))
