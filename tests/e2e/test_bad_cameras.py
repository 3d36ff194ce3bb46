"""A device among bad cameras: each fault is named in its pipeline's health, and no pipeline dies of another's."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lisiere.clock import SystemClock
from lisiere.config import parse_config
from lisiere.runtime import Runtime
from lisiere.schema import json_schema
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport
from support import tiny
from support.cameras import CameraServer
from support.pictures import claiming, encoded, jpeg, noise

RAW = {"format": "gray", "width": 16, "height": 16}
BASE = "lisiere/v1/gate"


@pytest.fixture
def server() -> Iterator[CameraServer]:
    made = CameraServer()
    yield made
    made.close()


def test_each_bad_camera_is_named_and_the_others_go_on(tmp_path: Path, server: CameraServer) -> None:
    tiny.classifier(tmp_path / "model")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in (
        ("a.jpg", claiming(".jpg", 10_000, 10_000)),
        ("b.png", claiming(".png", 0, 0)),
        ("c.jpg", encoded(".jpg", noise())[:-9]),
        ("d.bmp", b"no picture"),
        ("e.jpg", jpeg()),
    ):
        (folder / name).write_bytes(data)
    done = threading.Event()  # so that streams end with the test
    sizes = itertools.cycle([(48, 64)] * 3 + [(96, 128)] * 3 + [(8, 8)] * 3)
    server.answer = lambda request: request.stream(jpeg(90, *next(sizes)) for _ in iter(lambda: done.wait(0.002), True))
    dying = "import sys; print('lens fell off', file=sys.stderr); sys.exit(7)"
    sources: dict[str, dict[str, Any]] = {
        "bombs": {"type": "images", "path": str(folder), "loop": True, "fps": 100},
        "changing": {"type": "camera", "url": server.url},
        "dying": {"type": "camera", "command": [sys.executable, "-c", dying]},
        "missing": {"type": "camera", "command": ["no-such-camera-program"]},
        "absent": {"type": "camera", "device": "/dev/v4l/by-id/no-such-camera"},
        "good": {"type": "camera", "command": [sys.executable, "-c", GOOD], **RAW},
    }
    pipelines: list[dict[str, Any]] = [
        {"name": name, "source": source, "model": "model"} for name, source in sources.items()
    ]
    pipelines[1]["view"] = {"region": [8, 8, 40, 40]}
    config = parse_config(
        {"device": "gate", "pipelines": pipelines, "health_interval_s": 0.05, "stop_drain_s": 0.1}, tmp_path
    )
    broker = MemoryBroker()
    runtime = Runtime(config, SystemClock(), lambda: MemoryTransport(broker))
    thread = threading.Thread(target=runtime.run)
    thread.start()

    def health() -> dict[str, Any]:
        found = broker.of(f"{BASE}/health")
        return dict(json.loads(found[-1].payload)["pipelines"]) if found else {}

    def all_told() -> bool:
        counters = {name: set(part["counters"]) for name, part in health().items()}
        return (
            {"image_too_large", "image_empty", "image_truncated", "image_unreadable"} <= counters.get("bombs", set())
            and {"frame_size_changed", "view_unfit", "results"} <= counters["changing"]
            and "source_unavailable" in counters["dying"] & counters["missing"] & counters["absent"]
        )

    try:
        with broker.changed:
            assert broker.changed.wait_for(all_told, 60), health()
            now = len(broker.of(f"{BASE}/result/good"))
            assert broker.changed.wait_for(lambda: len(broker.of(f"{BASE}/result/good")) > now + 20, 60)
        last = health()
    finally:
        done.set()
        runtime.stop()
        thread.join(60)
    assert not thread.is_alive()
    states = {name: part["state"] for name, part in last.items()}
    expected = {"bombs": "running", "dying": "waiting", "missing": "failed", "absent": "waiting", "good": "running"}
    assert {name: states[name] for name in expected} == expected
    assert "exit code 7, and said: lens fell off. Next try" in last["dying"]["why"]
    assert "no-such-camera-program cannot be run" in last["missing"]["why"]
    assert "There is no camera at /dev/v4l/by-id/no-such-camera" in last["absent"]["why"]
    result = json.loads(broker.of(f"{BASE}/result/good")[-1].payload)
    jsonschema.validate(result, json_schema("result"))
    assert 0 <= result["input"]["age_ms"] < 60_000


GOOD = """
import sys, time
while True:
    sys.stdout.buffer.write(bytes(range(256)))
    sys.stdout.flush()
    time.sleep(0.005)
"""
