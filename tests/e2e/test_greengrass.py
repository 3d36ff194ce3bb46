"""`lisiere run --greengrass` as a child process with a component's environment: how it begins and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lisiere.spool import SpoolReader
from lisiere_sim.nucleus.flavour import LITE
from support import tiny
from support.nucleus import THING, Ipc, ipc

NAME = "io.lisiere.EdgeInference"
TIMEOUT = 30
COMMAND = [sys.executable, "-m", "lisiere", "run", "--greengrass"]


@pytest.fixture
def nucleus() -> Iterator[Ipc]:
    with ipc(LITE) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "trees")
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "0.png"), np.full((10, 10, 3), 40, np.uint8))
    return tmp_path


def configure(nucleus: Ipc, **more: Any) -> None:
    source = {"type": "images", "path": "photos", "loop": "true", "fps": "50"}
    document = {"pipelines": [{"name": "p", "source": source, "model": "trees"}], **more}
    for key, value in document.items():
        nucleus.run(lambda key=key, value=value: nucleus.store.merge(NAME, (key,), value, time.time()))  # type: ignore[misc]


def start(nucleus: Ipc, folder: Path) -> subprocess.Popen[str]:
    variables = {**os.environ, **nucleus.environment(NAME)}
    return subprocess.Popen(COMMAND, cwd=folder, env=variables, stderr=subprocess.PIPE, text=True)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_nucleus_starts_it_and_sigterm_ends_it(nucleus: Ipc, folder: Path) -> None:
    configure(nucleus)
    with start(nucleus, folder) as process:
        wait(lambda: len(nucleus.cloud.published) > 10)
        process.terminate()
        _, log = process.communicate(timeout=10)
    assert process.returncode == 0, log
    assert nucleus.cloud.states == [(NAME, "RUNNING")]
    assert json.loads(nucleus.cloud.published[-1][1])["state"] == "stopped"
    assert nucleus.cloud.published[-1][0] == f"lisiere/v1/{THING}/status"
    assert nucleus.token(NAME) not in log
    reader = SpoolReader(folder / "spool")
    assert reader.waiting() == {}
    reader.close()


def test_it_leaves_with_4_when_its_token_is_worth_nothing(nucleus: Ipc, folder: Path) -> None:
    configure(nucleus)
    with start(nucleus, folder) as process:
        wait(lambda: len(nucleus.cloud.published) > 5)
        nucleus.run(lambda: nucleus.tokens.revoke(NAME))
        nucleus.run(lambda: nucleus.server.disconnect(NAME))
        _, log = process.communicate(timeout=15)
    assert process.returncode == 4, log
    assert "does not know this component's token" in log


def test_it_leaves_with_1_or_2_and_errored_when_it_cannot_run(nucleus: Ipc, folder: Path) -> None:
    with start(nucleus, folder) as process:
        _, log = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 2
    assert "The component has no configuration." in log
    configure(nucleus)
    (folder / "trees" / "labels.txt").write_text("tampered")
    with start(nucleus, folder) as process:
        _, log = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "labels.txt" in log
    assert nucleus.cloud.states == [(NAME, "ERRORED")] * 2


def test_without_a_nucleus_it_is_wrong_usage(folder: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_GG", "SVCUID"))}
    done = subprocess.run(COMMAND, cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 2
    assert "`lisiere nucleus run`" in done.stderr
