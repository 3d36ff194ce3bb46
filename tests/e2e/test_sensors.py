"""A device as a child process whose sensors are other devices on a broker, and a bad one among them."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import yaml

from support import tiny
from support.brokers import running_mosquitto

PATIENCE_S = 30
T0 = 1_780_000_000.0


class Plant:
    """A sensor on the broker, which also hears what the device makes of it."""

    def __init__(self, port: int) -> None:
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._at = 0
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda _client, _data, message: self.heard.put(json.loads(message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        for topic in ("result", "backlog"):
            self._client.subscribe(f"lisiere/v1/d/{topic}/pump", 1)

    def say(self, value: object) -> None:
        """Send the next reading, a tenth of a second after the one before."""
        payload = json.dumps({"ts": T0 + self._at * 0.1, "rms": value})
        self._client.publish("plant/pump", payload, 1).wait_for_publish(PATIENCE_S)
        self._at += 1

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def test_readings_of_another_device_become_results_that_name_what_is_wrong_with_them(tmp_path: Path) -> None:
    tiny.detector(tmp_path / "model")
    with running_mosquitto() as port:
        broker = {"type": "mqtt", "host": "127.0.0.1", "port": port}
        pipeline = {
            "name": "pump",
            "model": "model",
            "backend": "onnx",
            "source": {**broker, "topics": [{"topic": "plant/+", "keys": {"vibration": "rms"}}]},
            "channels": {"vibration": {"unit": "mm/s", "max": 45, "policy": "withhold"}},
        }
        config = {"device": "d", "pipelines": [pipeline], "transport": broker, "stop_drain_s": 5}
        (tmp_path / "device.yaml").write_text(yaml.safe_dump(config))
        device = subprocess.Popen(
            [sys.executable, "-m", "lisiere", "run", str(tmp_path / "device.yaml")], stderr=subprocess.PIPE, text=True
        )
        plant = Plant(port)
        try:
            while True:  # what comes before the device has subscribed goes to nobody
                plant.say(0.1)
                try:
                    first = plant.heard.get(timeout=0.05)
                except queue.Empty:
                    continue
                break
            assert first["result"]["state"] == "normal"
            assert first["input"]["faults"] == []
            for value in (0.1, 900, 0.1, 0.1, "ERR", 0.1, 0.1, 5, 5, 5, 5, 5, 5, 5):
                plant.say(value)
            faults: set[str] = set()
            while (result := plant.heard.get(timeout=PATIENCE_S))["result"]["state"] != "anomalous":
                faults |= set(result["input"]["faults"])
            device.send_signal(signal.SIGTERM)
            _, log = device.communicate(timeout=PATIENCE_S)
        finally:
            device.kill()
            device.communicate()
            plant.close()
    assert "out_of_range:vibration" in faults
    assert device.returncode == 0
    assert "vibration is 900 mm/s, above 45 mm/s. (out_of_range:vibration, 1 so far)" in log
    assert "'ERR' where a number belongs. (not_a_number, 1 so far)" in log
