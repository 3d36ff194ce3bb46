"""`lisiere run` as a real child process against a real Mosquitto."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paho.mqtt.client as paho
import pytest
import yaml

from lisiere.backends.dlr import find_library
from lisiere.models.manifest import YoloHead
from lisiere.spool import SpoolReader
from support import require
from support.artifacts import compiled
from support.brokers import running_mosquitto
from support.detectors import detector

TIMEOUT = 30


class Subscriber:
    """Everything that one broker passes on about a device."""

    def __init__(self, port: int) -> None:
        self.messages: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.seen: list[tuple[str, dict[str, Any]]] = []
        subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_message = lambda _c, _d, message: self.messages.put(
            (message.topic.removeprefix("lisiere/v1/pi-1/"), json.loads(message.payload))
        )
        self._client.on_subscribe = lambda *_: subscribed.put(None)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("lisiere/v1/pi-1/#", 1)
        subscribed.get(timeout=TIMEOUT)

    def wait(self, topic: str, **fields: Any) -> dict[str, Any]:
        """Return the next message on a topic with these fields, keeping what came before."""
        while True:
            found = self.messages.get(timeout=TIMEOUT)
            self.seen.append(found)
            if found[0] == topic and all(found[1].get(key) == value for key, value in fields.items()):
                return found[1]

    def ids(self) -> set[str]:
        while not self.messages.empty():
            self.seen.append(self.messages.get())
        return {message["id"] for topic, message in self.seen if topic.startswith(("result/", "backlog/"))}

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def broker() -> Iterator[int]:
    with running_mosquitto() as port:
        yield port


@pytest.fixture
def subscriber(broker: int) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker)
    yield subscriber
    subscriber.close()


@pytest.fixture
def config(tmp_path: Path, broker: int) -> Path:
    require(find_library(), "libdlr")
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for at in range(4):
        cv2.imwrite(str(photos / f"{at}.png"), rng.integers(0, 255, (480, 640, 3), np.uint8))
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff not the whole of it")
    file = tmp_path / "device.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "device": "pi-1",
                "transport": {"type": "mqtt", "host": "127.0.0.1", "port": broker},
                "health_interval_s": 0.2,
                "metrics_interval_s": 0.5,
                "pipelines": [
                    {
                        "name": "dock",
                        "source": {"type": "images", "path": "photos", "loop": True, "fps": 100},
                        "model": str(compiled("classifier")),
                    }
                ],
            }
        )
    )
    return file


@contextlib.contextmanager
def device(config: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "lisiere", "run", str(config)], stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT)
        assert process.stderr is not None
        process.stderr.close()


def spool_counts(config: Path) -> tuple[int, int, int]:
    reader = SpoolReader(config.parent / "spool")
    counts, waiting = reader.counts()["dock"], reader.waiting().get("dock", 0)
    reader.close()
    return counts.accepted, counts.acknowledged, waiting


def test_it_runs_by_dlr_within_120_mb_and_stops_cleanly(config: Path, subscriber: Subscriber) -> None:
    with device(config) as process:
        subscriber.wait("status", state="online")
        for _ in range(100):
            result = subscriber.wait("result/dock")
        metrics = subscriber.wait("metrics")
        health = subscriber.wait("health")
        process.send_signal(signal.SIGTERM)
        subscriber.wait("status", state="stopped")
        assert process.wait(TIMEOUT) == 0
    assert result["model"]["backend"] == "dlr"
    assert metrics["rss_mb"] < 120
    assert health["pipelines"]["dock"]["counters"]["image_unreadable"] > 0
    accepted, acknowledged, waiting = spool_counts(config)
    assert accepted == acknowledged == len(subscriber.ids())
    assert waiting == 0


def test_objects_and_their_events_arrive_and_a_clean_stop_ends_them(
    config: Path, subscriber: Subscriber, tmp_path: Path
) -> None:
    rows = np.asarray([[[16, 16, 8, 4, 0.9, 0, 1, 0]]], np.float32)
    eyes = detector(tmp_path / "eyes", YoloHead(output="rows", layout="rows", objectness=True), {"rows": rows})
    document = yaml.safe_load(config.read_text())
    decision = {"threshold": 0.5, "events": {"span_s": 0.1, "min_s": 0.05}}
    document["pipelines"][0] |= {"model": str(eyes), "decision": decision}
    config.write_text(yaml.safe_dump(document))
    with device(config) as process:
        new = subscriber.wait("event/dock")
        later = subscriber.wait("result/dock")
        process.send_signal(signal.SIGTERM)
        end = subscriber.wait("event/dock")
        subscriber.wait("status", state="stopped")
        assert process.wait(TIMEOUT) == 0
    assert later["task"] == "detection"
    # 640x480 in a letterbox of 32x32: a pixel of the input is 20 of the frame, from row 4 on.
    found = [{"label": "dog", "score": 0.9, "box": [240.0, 200.0, 160.0, 80.0]}]
    assert later["result"] == {"objects": found, "width": 640, "height": 480, "steady": ["dog"]}
    assert (new["schema"], new["event"]["phase"], end["event"]["phase"]) == ("lisiere.event/1", "new", "end")
    assert (new["event"]["event"], new["event"]["label"]) == (end["event"]["event"], "dog")
    assert end["event"]["count"] > new["event"]["count"] > 1
    accepted, acknowledged, waiting = spool_counts(config)
    assert (accepted, waiting) == (acknowledged, 0)


def test_a_killed_device_loses_nothing_it_accepted(config: Path, subscriber: Subscriber) -> None:
    for _ in range(3):
        with device(config) as process:
            subscriber.wait("status", state="online")
            for _ in range(20):
                subscriber.wait("result/dock")
            process.kill()
            assert process.wait(TIMEOUT) == -signal.SIGKILL
    with device(config) as process:
        subscriber.wait("status", state="online")
        process.send_signal(signal.SIGTERM)
        subscriber.wait("status", state="stopped")
        assert process.wait(TIMEOUT) == 0
    accepted, _, waiting = spool_counts(config)
    assert waiting == 0
    assert len(subscriber.ids()) == accepted


def test_a_broker_that_is_away_fills_the_spool_and_a_later_one_gets_it_all(config: Path, broker: int) -> None:
    document = yaml.safe_load(config.read_text())
    with running_mosquitto() as later:
        pass  # a port that was free a moment ago, and answers nobody
    document |= {"stop_drain_s": 0.5, "transport": {"type": "mqtt", "host": "127.0.0.1", "port": later}}
    document["pipelines"][0]["source"] |= {"loop": False}
    config.write_text(yaml.safe_dump(document))
    with device(config) as process:
        assert process.wait(TIMEOUT) == 0
    assert spool_counts(config) == (4, 0, 4)
    with running_mosquitto(port=later) as port:
        subscriber = Subscriber(port)
        with device(config) as process:
            subscriber.wait("status", state="stopped")
            assert process.wait(TIMEOUT) == 0
        assert len(subscriber.ids()) == 8
        assert sum(topic == "backlog/dock" for topic, _ in subscriber.seen) >= 4
        subscriber.close()
    assert spool_counts(config) == (8, 8, 0)


def test_a_second_signal_ends_it_at_once(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        document = yaml.safe_load(config.read_text())
        transport = {"type": "mqtt", "host": "127.0.0.1", "port": silent.getsockname()[1]}
        config.write_text(yaml.safe_dump(document | {"stop_drain_s": 600, "transport": transport}))
        with device(config) as process:
            read_until(process, "is running")
            process.send_signal(signal.SIGTERM)
            read_until(process, "has ended")
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == -signal.SIGTERM


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    assert any(words in line for line in process.stderr)
