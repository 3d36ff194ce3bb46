"""A device as its subscribers see it: it publishes, and hears commands."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import paho.mqtt.client as paho

from lisiere_sim.broker import Address
from support.wire import Envelopes


class Device:
    """Publishes what a device would."""

    def __init__(self, address: Address, device: str = "sim") -> None:
        self.make = Envelopes(device)
        self._base = f"lisiere/v1/{device}"
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.heard: list[tuple[str, bytes]] = []
        self._heard = threading.Condition()
        self._client.on_message = self._hear
        self._client.connect(*address)
        self._client.loop_start()
        self._client.subscribe(f"{self._base}/cmd/#", 1)

    def results(self, *seqs: int, pipeline: str = "dock", kind: str = "result") -> None:
        for seq in seqs:
            self.send(f"{kind}/{pipeline}", self.make.result(seq, pipeline, replay=kind == "backlog"))

    def send(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(f"{self._base}/{topic}", payload, qos=1, retain=retain).wait_for_publish(10)

    def wait_for_commands(self, number: int) -> list[Any]:
        with self._heard:
            assert self._heard.wait_for(lambda: len(self.heard) >= number, 10)
        return [msgspec.json.decode(payload) for _, payload in self.heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _hear(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with self._heard:
            self.heard.append((message.topic, message.payload))
            self._heard.notify_all()
