"""The runtime: several pipelines at once, one's fault is not another's, and a clean stop."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.config import Config, parse_config
from lisiere.errors import ConfigError, Permanent
from lisiere.runtime import Runtime, _drain_report
from lisiere.schema import json_schema
from lisiere.spool import SpoolReader
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport
from support import tiny

BASE = "lisiere/v1/pi-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "trees")
    tiny.forecaster(tmp_path / "tide")
    (tmp_path / "photos").mkdir()
    for at in range(6):
        cv2.imwrite(str(tmp_path / "photos" / f"{at}.png"), np.full((10, 10, 3), 40 * at, np.uint8))
    rows = "\n".join(f"{1_700_000_000 + at},{at}" for at in range(12))
    (tmp_path / "tide.csv").write_text(f"time,level\n{rows}\n")
    return tmp_path


def configuration(folder: Path, *pipelines: dict[str, Any], **changes: Any) -> Config:
    return parse_config({"device": "pi-1", "pipelines": list(pipelines), **changes}, folder)


PHOTOS = {"name": "photos", "source": {"type": "images", "path": "photos"}, "model": "trees"}
ENDLESS = {"name": "photos", "source": {"type": "images", "path": "photos", "loop": True, "fps": 200}, "model": "trees"}
TIDE = {"name": "tide", "source": {"type": "csv", "path": "tide.csv"}, "model": "tide"}


def received(broker: MemoryBroker, topic: str) -> list[dict[str, Any]]:
    return [json.loads(message.payload) for message in broker.of(f"{BASE}/{topic}")]


def results(broker: MemoryBroker, pipeline: str) -> list[dict[str, Any]]:
    """Results by either topic: those of the first moment may have been on disk before the connection was there."""
    found = received(broker, f"result/{pipeline}") + received(broker, f"backlog/{pipeline}")
    return sorted(found, key=lambda envelope: int(envelope["seq"]))


def test_two_pipelines_run_to_their_ends_and_all_is_delivered(folder: Path) -> None:
    broker = MemoryBroker()
    Runtime(configuration(folder, PHOTOS, TIDE), SystemClock(), lambda: MemoryTransport(broker)).run()
    assert len(results(broker, "photos")) == 6
    assert len(results(broker, "tide")) == 7
    assert [status["state"] for status in received(broker, "status")] == ["online", "stopped"]
    for envelope in results(broker, "photos") + results(broker, "tide"):
        jsonschema.validate(envelope, json_schema("result"))
    for name in ("status", "health"):
        for message in received(broker, name):
            jsonschema.validate(message, json_schema(name))


def test_without_a_transport_results_stay_in_the_spool(folder: Path) -> None:
    Runtime(configuration(folder, PHOTOS), SystemClock()).run()
    reader = SpoolReader(folder / "spool")
    assert reader.waiting() == {"photos": 6}
    reader.close()


def test_a_damaged_spool_is_told_and_what_was_saved_of_it_is_delivered(folder: Path) -> None:
    Runtime(configuration(folder, PHOTOS), SystemClock()).run()
    file = folder / "spool" / "spool.db"
    content = bytearray(file.read_bytes())
    content[60:64] = b"\0\0\0\7"  # the version in the file's header; the table says another
    file.write_bytes(content)
    broker = MemoryBroker()
    Runtime(configuration(folder, PHOTOS), SystemClock(), lambda: MemoryTransport(broker)).run()
    health = received(broker, "health")[-1]
    assert health["state"] == "degraded"
    assert "6 rows of it were saved" in health["spool_failure"]
    (gap,) = received(broker, "gap")
    jsonschema.validate(gap, json_schema("gap"))
    assert (gap["reason"], gap["damage"]["salvaged"], gap["damage"]["lost"], gap["seq"]) == ("spool_damaged", 6, 0, 7)
    delivered = results(broker, "photos")
    for envelope in delivered:
        jsonschema.validate(envelope, json_schema("result"))
    former = [envelope.get("formerly") for envelope in delivered]
    assert former == [*(f"{gap['damage']['epoch']}:{seq}" for seq in range(1, 7)), *[None] * 6]
    assert [envelope["seq"] for envelope in delivered] == list(range(8, 20))


def test_one_bad_model_does_not_keep_the_others_from_running(folder: Path) -> None:
    (folder / "tide" / "model.onnx").write_bytes(b"tampered")
    broker = MemoryBroker()
    Runtime(configuration(folder, PHOTOS, TIDE), SystemClock(), lambda: MemoryTransport(broker)).run()
    assert len(results(broker, "photos")) == 6
    health = received(broker, "health")[-1]
    assert health["state"] == "degraded"
    assert health["pipelines"]["tide"]["state"] == "failed"
    assert "model.onnx" in health["pipelines"]["tide"]["why"]


def test_when_no_pipeline_can_run_it_fails_with_the_reasons(folder: Path) -> None:
    (folder / "tide" / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(Permanent, match=r"No pipeline could run\. tide: .*model\.onnx"):
        Runtime(configuration(folder, TIDE), SystemClock()).run()


def test_a_source_that_does_not_fit_its_model_is_a_configuration_error(folder: Path) -> None:
    wrong = {**TIDE, "model": "trees"}
    with pytest.raises(ConfigError, match=r"^\$\.pipelines\[0\]\.source: The source gives readings"):
        Runtime(configuration(folder, wrong), SystemClock()).run()


class Running:
    """A runtime in a thread, stopped at the end whatever happens."""

    def __init__(self, config: Config, broker: MemoryBroker) -> None:
        self.broker = broker
        self.runtime = Runtime(config, SystemClock(), lambda: MemoryTransport(broker))
        self.thread = threading.Thread(target=self.runtime.run)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.runtime.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.broker.changed:
            assert self.broker.changed.wait_for(condition, 20)


def test_a_clean_stop_delivers_what_was_accepted(folder: Path) -> None:
    broker = MemoryBroker()
    with Running(configuration(folder, ENDLESS), broker) as running:
        running.wait(lambda: len(broker.of(f"{BASE}/result/photos")) > 20)
    reader = SpoolReader(folder / "spool")
    counts = reader.counts()["photos"]
    reader.close()
    assert counts.accepted == counts.acknowledged == len({envelope["id"] for envelope in results(broker, "photos")})
    assert received(broker, "status")[-1]["state"] == "stopped"


def test_a_stop_while_offline_keeps_everything_on_disk(folder: Path) -> None:
    broker = MemoryBroker()
    with Running(configuration(folder, ENDLESS, stop_drain_s=0.2), broker) as running:
        running.wait(lambda: len(broker.of(f"{BASE}/result/photos")) > 5)
        broker.cut()
    reader = SpoolReader(folder / "spool")
    counts, waiting = reader.counts()["photos"], reader.waiting().get("photos", 0)
    reader.close()
    assert counts.accepted == counts.acknowledged + waiting
    again = MemoryBroker()
    Runtime(configuration(folder, PHOTOS), SystemClock(), lambda: MemoryTransport(again)).run()
    ids = {envelope["id"] for envelope in results(broker, "photos") + results(again, "photos")}
    assert len(ids) == counts.accepted + 6


def test_health_and_metrics_are_published_at_their_intervals(folder: Path) -> None:
    broker = MemoryBroker()
    config = configuration(folder, ENDLESS, health_interval_s=0.05, metrics_interval_s=0.1)
    with Running(config, broker) as running:
        running.wait(lambda: len(broker.of(f"{BASE}/metrics")) > 2 and len(broker.of(f"{BASE}/health")) > 3)
    metrics = received(broker, "metrics")
    for message in metrics:
        jsonschema.validate(message, json_schema("metrics"))
    assert metrics[-1]["pipelines"]["photos"]["results_per_s"] > 0
    assert received(broker, "health")[2]["pipelines"]["photos"]["state"] == "running"


def test_a_missing_camera_is_tried_again_and_named(folder: Path) -> None:
    broker = MemoryBroker()
    absent = {"name": "door", "source": {"type": "camera", "device": str(folder / "video9")}, "model": "trees"}
    config = configuration(folder, absent, ENDLESS, health_interval_s=0.05)

    def waiting() -> bool:
        found = received(broker, "health")
        return bool(found) and found[-1]["pipelines"]["door"]["state"] == "waiting"

    with Running(config, broker) as running:
        running.wait(waiting)
        running.wait(lambda: len(broker.of(f"{BASE}/result/photos")) > 3)
    health = [message for message in received(broker, "health") if message["pipelines"]["door"]["state"] == "waiting"]
    assert "There is no camera" in health[0]["pipelines"]["door"]["why"]
    assert health[0]["pipelines"]["door"]["counters"] == {"source_unavailable": 1}
    assert health[0]["state"] == "degraded"


def test_a_camera_that_stays_away_is_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker()
    absent = {"name": "door", "source": {"type": "camera", "device": str(folder / "video9")}, "model": "trees"}

    def tried_twice() -> bool:
        found = received(broker, "health")
        return bool(found) and found[-1]["pipelines"]["door"]["counters"].get("source_unavailable", 0) >= 2

    with Running(configuration(folder, absent, retry_max_s=1, health_interval_s=0.05), broker) as running:
        running.wait(tried_twice)
    assert sum("waits for its source" in record.message for record in caplog.records) == 1


def test_a_broker_that_stays_away_is_logged_ever_more_rarely(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = _drain_report()
    for _ in range(150):
        report("waiting", "The broker is away.")
    assert [record.args[1] for record in caplog.records if record.args] == [1, 10, 100]  # type: ignore[index]
    report("failed", "The certificate cannot be read.")
    assert "results stay in the spool" in caplog.records[-1].message
