"""The AsyncAPI document: it is what the code has, and every message of a real run is what it promises."""

from __future__ import annotations

import functools
import json
import queue
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import paho.mqtt.client as paho
import pytest
import yaml
import zstandard

from lisiere.asyncapi import asyncapi, channels
from lisiere.clock import SystemClock
from lisiere.config import parse_config
from lisiere.runtime import Runtime
from lisiere.schema import DOCUMENTS
from lisiere_sim.broker import Address, EmbeddedBroker
from support import REPOSITORY, tiny

CONTRACT = REPOSITORY / "docs" / "contract"
WAIT_S = 30


@functools.cache
def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONTRACT / "asyncapi.yaml").read_text("utf-8"))
    return loaded


def resolve(reference: str) -> Any:
    """What a reference within the document points to."""
    at: Any = document()
    for step in reference.removeprefix("#/").split("/"):
        at = at[step]
    return at


@functools.cache
def channel_of(topic: str) -> str | None:
    """Which channel of the document a topic belongs to."""
    for name, channel in document()["channels"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(channel["address"]))
        if re.fullmatch(pattern, topic):
            return str(name)
    return None


@functools.cache
def validator(channel: str) -> jsonschema.Draft202012Validator:
    """What checks the messages of a channel, by the way that a reader of the document goes."""
    (reference,) = resolve(f"#/channels/{channel}/messages").values()
    file = CONTRACT / resolve(reference["$ref"])["payload"]["schema"]["$ref"]
    return jsonschema.Draft202012Validator(json.loads(file.read_text("utf-8")))


def test_it_is_published_as_the_code_has_it() -> None:
    assert document() == asyncapi(), "`lisiere schema asyncapi > docs/contract/asyncapi.yaml`"


def test_every_reference_leads_somewhere() -> None:
    loaded = document()
    for operation in loaded["operations"].values():
        assert resolve(operation["channel"]["$ref"]) in loaded["channels"].values()
    for name, channel in loaded["channels"].items():
        validator(name)
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel["parameters"])
    assert {channel.document for channel in channels().values()} <= set(DOCUMENTS)


def test_every_topic_of_the_readme_is_in_it() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    table = readme[readme.index("| topic under `lisiere/v1/<device>/`") :].split("\n\n")[0]
    named = re.findall(r"`([a-z/<>]+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert len(named) >= 8
    for topic in named:
        assert channel_of(f"lisiere/v1/pi-1/{topic}"), topic


class Everything:
    """All that a broker passes on, in order."""

    def __init__(self, broker: Address) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._news: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        subscribed = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _c, _d, message: self._news.put((message.topic, message.payload))
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.connect(*broker)
        self.client.loop_start()
        self.client.subscribe("#", 1)
        assert subscribed.wait(WAIT_S)

    def until(self, *kinds: str) -> None:
        """Wait until each of these channels was used."""
        missing = set(kinds)
        while missing:
            topic, payload = self._news.get(timeout=WAIT_S)
            self.seen.append((topic, payload))
            missing.discard(channel_of(topic) or "")

    def until_says(self, kind: str, words: bytes) -> None:
        """Wait until a message of a channel has these words in it."""
        while channel_of(self.seen[-1][0]) != kind or words not in self.seen[-1][1]:
            self.seen.append(self._news.get(timeout=WAIT_S))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def broker() -> Iterator[Address]:
    embedded = EmbeddedBroker()
    yield embedded.start()
    embedded.stop()


def test_every_message_of_a_real_run_is_what_it_promises(broker: Address, tmp_path: Path) -> None:
    tiny.classifier(tmp_path / "trees")
    tiny.forecaster(tmp_path / "tide")
    tiny.detector(tmp_path / "hum")
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "0.png"), np.full((10, 10, 3), 40, np.uint8))
    rows = [f"{1_700_000_000 + at},{at}" for at in range(150)]
    (tmp_path / "tide.csv").write_text("\n".join(["time,level", *rows]))
    (tmp_path / "hum.csv").write_text(
        "\n".join(["time,vibration", *(f"{1_700_000_000 + at / 10},{at % 7}" for at in range(40))])
    )
    series = [
        {"name": "tide", "source": {"type": "csv", "path": "tide.csv"}, "model": "tide"},
        {"name": "hum", "source": {"type": "csv", "path": "hum.csv"}, "model": "hum"},
    ]
    common = {"device": "pi-1", "spool": {"path": "spool", "max_rows": 100}}
    # Without a transport first, so that the spool is over full and what is left has waited.
    Runtime(parse_config({**common, "pipelines": series}, tmp_path), SystemClock()).run()
    photos = {"name": "dock", "source": {"type": "images", "path": "photos", "loop": True, "fps": 50}, "model": "trees"}
    transport = {"type": "mqtt", "host": broker[0], "port": broker[1], "protocol": EmbeddedBroker.protocol}
    intervals = {"health_interval_s": 0.1, "metrics_interval_s": 0.1}
    runtime = Runtime(
        parse_config({**common, **intervals, "transport": transport, "pipelines": [photos]}, tmp_path), SystemClock()
    )
    everything = Everything(broker)
    thread = threading.Thread(target=runtime.run)
    thread.start()
    try:
        everything.until("result", "backlog", "gap", "status", "health", "metrics")
        everything.client.publish("lisiere/v1/pi-1/cmd/ping", json.dumps({"id": "a7"}), 1)
        everything.until("command", "reply")
        asked = {"id": "a8", "pipeline": "dock"}
        everything.client.publish("lisiere/v1/pi-1/cmd/infer", json.dumps(asked), 1)
        everything.until("reply")
        everything.until_says("result", b'"command":"a8"')
    finally:
        runtime.stop()
        thread.join(WAIT_S)
        everything.close()
    (answer,) = [json.loads(payload) for topic, payload in everything.seen if topic.endswith("reply/infer")]
    assert (answer["id"], answer["done"], answer["answer"]) == ("a8", True, {"pipeline": "dock"})
    for topic, payload in everything.seen:
        channel = channel_of(topic)
        assert channel is not None, f"No channel is for {topic}."
        validator(channel).validate(json.loads(payload))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "zstd"])
def test_batches_and_acknowledgements_of_a_real_run_are_what_they_promise(
    packed: bool, broker: Address, tmp_path: Path
) -> None:
    tiny.classifier(tmp_path / "trees")
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "0.png"), np.full((10, 10, 3), 40, np.uint8))
    source = {"type": "images", "path": "photos", "fps": 50}
    photos = {"name": "dock", "source": source, "model": "trees"}
    common = {"device": "pi-1", "spool": {"path": "spool"}}
    for _ in range(3):
        Runtime(parse_config({**common, "pipelines": [photos]}, tmp_path), SystemClock()).run()  # its result waits
    transport = {"type": "mqtt", "host": broker[0], "port": broker[1], "protocol": EmbeddedBroker.protocol}
    transport |= {"backlog_batch_kb": 16, "backlog_zstd": packed, "consumer_ack": True}
    loop = {**photos, "source": {**source, "loop": True}}
    runtime = Runtime(parse_config({**common, "transport": transport, "pipelines": [loop]}, tmp_path), SystemClock())
    everything = Everything(broker)
    thread = threading.Thread(target=runtime.run)
    thread.start()
    try:
        everything.until("packed" if packed else "backlog")
        topic, payload = everything.seen[-1]
        assert channel_of(topic) == ("packed" if packed else "backlog")
        batch = json.loads(zstandard.ZstdDecompressor().decompress(payload) if packed else payload)
        validator("batch").validate(batch)
        for result in batch["results"]:
            validator("backlog").validate(result)
        seqs = [result["seq"] for result in batch["results"]]
        assert seqs == [1, 2, 3]
        taken = {"id": "a9", "epoch": batch["epoch"], "ranges": [[1, 3]]}
        validator("ack").validate(taken)
        everything.client.publish("lisiere/v1/pi-1/cmd/ack", json.dumps(taken), 1)
        everything.until("reply")
        answer = json.loads(everything.seen[-1][1])
        validator("reply").validate(answer)
        assert (answer["id"], answer["done"], answer["answer"]) == ("a9", True, {"acknowledged": 3})
    finally:
        runtime.stop(0)
        thread.join(WAIT_S)
        everything.close()


def test_a_message_that_is_not_as_promised_would_be_found() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator("status").validate({"schema": "lisiere.status/1", "device": "pi-1", "state": "asleep"})
    assert channel_of("lisiere/v1/pi-1/gossip") is None
