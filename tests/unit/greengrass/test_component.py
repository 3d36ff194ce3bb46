"""The component against a real IPC server: it starts, changes, suffers and ends as a nucleus would have it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lisiere.clock import SystemClock
from lisiere.errors import ConfigError, LisiereError
from lisiere.greengrass import Component
from lisiere.ipc import Environment, Nucleus
from lisiere.spool import SpoolReader
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from support import tiny
from support.nucleus import THING, Ipc, ipc

NAME = "io.lisiere.EdgeInference"
BASE = f"lisiere/v1/{THING}"


@pytest.fixture(params=[CLASSIC, LITE], ids=["classic", "lite"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


@pytest.fixture
def nucleus(flavour: Flavour) -> Iterator[Ipc]:
    with ipc(flavour) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "trees")
    tiny.forecaster(tmp_path / "tide")
    (tmp_path / "photos").mkdir()
    for at in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{at}.png"), np.full((10, 10, 3), 40 * at, np.uint8))
    return tmp_path


def pipeline(name: str = "photos", **changes: Any) -> dict[str, Any]:
    source = {"type": "images", "path": "photos", "loop": "true", "fps": "50"}
    return {"name": name, "source": source, "model": "trees", "threads": "1", **changes}


def configuration(*pipelines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"pipelines": list(pipelines), "retry_max_s": "1", "health_interval_s": "0.2", **changes}


def wait(condition: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return found


class Running:
    """A component in a thread, with a work folder, stopped at the end whatever happens."""

    def __init__(self, nucleus: Ipc, folder: Path, document: dict[str, Any]) -> None:
        self.nucleus = nucleus
        self.merge(document)
        environment = Environment.read(nucleus.environment(NAME))
        self.component = Component(Nucleus(environment, 5), SystemClock(), folder)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.component.run()
        except LisiereError as error:
            self.error = error

    def merge(self, document: dict[str, Any]) -> None:
        """What a deployment does."""

        def work() -> None:
            for key, value in document.items():
                self.nucleus.store.merge(NAME, (key,), value, time.time())

        self.nucleus.run(work)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.component.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def of(self, topic: str) -> list[dict[str, Any]]:
        found = list(self.nucleus.cloud.published)
        return [json.loads(payload) for name, payload in found if name == f"{BASE}/{topic}"]


def test_it_takes_its_configuration_and_tells_that_it_runs(nucleus: Ipc, folder: Path) -> None:
    with Running(nucleus, folder, configuration(pipeline())) as running:
        wait(lambda: (NAME, "RUNNING") in nucleus.cloud.states)
        wait(lambda: len(running.of("result/photos")) > 5)
    assert running.error is None
    assert [message["state"] for message in running.of("status")] == ["online", "stopped"]
    result = running.of("result/photos")[0]
    assert (result["device"], result["model"]["name"]) == (THING, "tiny")
    reader = SpoolReader(folder / "spool")
    counts, waiting = reader.counts()["photos"], reader.waiting()
    reader.close()
    assert counts.accepted == counts.acknowledged
    assert waiting == {}


def test_without_a_configuration_it_says_so_and_ends(nucleus: Ipc, folder: Path) -> None:
    with Running(nucleus, folder, {}) as running:
        running.thread.join(15)
    assert isinstance(running.error, ConfigError)
    assert "no configuration" in str(running.error)
    assert nucleus.cloud.states == [(NAME, "ERRORED")]
