"""MQTT 3.1.1 by paho.

paho resends everything it holds when it reconnects and keeps what is published while offline, so a client here
lives for one connection and is never handed more than the drain's window. The spool does the remembering.
"""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho

from lisiere.config import MqttConfig
from lisiere.errors import Permanent, Retryable
from lisiere.sync.transports.base import Acked, Listener, Lost, Received, Refused, Will

_MESSAGE_MAX_BYTES = 128 * 1024  # AWS IoT Core ends the connection of who sends more, and so do other brokers
_NO_TOKEN = 0  # paho's message ids start at 1


class _ClosingSocket(ssl.SSLSocket):
    """A TLS socket that closes when its handshake fails: paho would leave it to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class MqttTransport:
    """One connection to an MQTT broker."""

    def __init__(self, config: MqttConfig, client_id: str) -> None:
        self._config = config
        self._client_id = config.client_id or client_id
        self._client: paho.Client | None = None
        self._listener: Listener | None = None
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._refused = _NO_TOKEN

    def connect(self, will: Will, listener: Listener) -> None:
        """Connect; see `Transport.connect`."""
        client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, self._client_id, clean_session=True, reconnect_on_failure=False
        )
        client.connect_timeout = self._config.connect_timeout_s
        client.max_inflight_messages_set(self._config.window)
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._configure(client)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        self._listener, self._client = listener, client
        host, port = self._config.address
        where = f"{host}:{port}"
        try:
            client.connect(host, port, self._config.keepalive_s)
        except ssl.SSLError as error:
            raise Retryable(f"TLS with the broker {where} failed: {error}") from error
        except OSError as error:
            raise Retryable(f"The broker {where} cannot be reached: {error}") from error
        client.loop_start()
        if not self._answered.wait(self._config.connect_timeout_s):
            self.close()
            raise Retryable(f"The broker {where} did not answer within {self._config.connect_timeout_s:g} s.")
        if self._refusal is not None:
            self.close()
            raise Retryable(f"The broker {where} refuses the connection: {self._refusal}.")

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Publish; see `Transport.publish`."""
        if self._client is None:
            raise Retryable("The connection is closed.")
        if qos and len(payload) > _MESSAGE_MAX_BYTES:
            return self._refuse(len(payload))
        info = self._client.publish(topic, payload, qos, retain)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise Retryable(f"The connection is gone: {paho.error_string(info.rc)}")
        return int(info.mid)

    def subscribe(self, topic: str) -> None:
        """Subscribe; see `Transport.subscribe`."""
        if self._client is None or self._client.subscribe(topic, 1)[0] != paho.MQTT_ERR_SUCCESS:
            raise Retryable("The connection is gone.")

    def close(self) -> None:
        """Disconnect cleanly (the broker drops the will) and end paho's thread."""
        client, self._client, self._listener = self._client, None, None
        if client is not None:
            client.disconnect()
            client.loop_stop()

    def _refuse(self, size: int) -> int:
        """Tell that a message is too large, under a token that paho gives to none."""
        self._refused -= 1
        if (listener := self._listener) is not None:
            why = f"A message has {size} bytes; {_MESSAGE_MAX_BYTES} is the most that AWS IoT Core takes."
            listener(Refused(self._refused, "too_large", why))
        return self._refused

    def _configure(self, client: paho.Client) -> None:
        config = self._config
        try:
            if config.username is not None:
                password = None
                if config.password_file is not None:
                    password = Path(config.password_file).read_text(encoding="utf-8").strip()
                client.username_pw_set(config.username, password)
            if config.tls is not None:
                context = ssl.create_default_context(cafile=config.tls.ca)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.sslsocket_class = _ClosingSocket
                if config.tls.certificate is not None:
                    context.load_cert_chain(config.tls.certificate, config.tls.key)
                client.tls_set_context(context)
        except (OSError, ssl.SSLError) as error:
            raise Permanent(f"The credentials of the transport cannot be used: {error}") from error

    def _on_connect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._refusal = str(reason) if reason.is_failure else None
        self._answered.set()

    def _on_publish(self, _client: paho.Client, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        if (listener := self._listener) is not None:
            listener(Acked(mid))

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if (listener := self._listener) is not None:
            listener(Received(message.topic, bytes(message.payload)))

    def _on_disconnect(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if not self._answered.is_set():
            self._refusal = str(reason)
            self._answered.set()
        if (listener := self._listener) is not None:
            listener(Lost(f"The broker's connection ended: {reason}."))
