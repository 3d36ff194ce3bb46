"""What the end-to-end tests share: the sample models, compiled once a session as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY, cross_tools
from support.components import clone, compiled, finish, start
from support.once import made_once

SAMPLES = ("digits", "pump", "co2")


@pytest.fixture(scope="session")
def sample_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three sample models, compiled for this machine; never written to."""
    folder = tmp_path_factory.mktemp("models")
    for name in SAMPLES:
        job = REPOSITORY / "models" / name / "job.json"
        done = subprocess.run(
            [sys.executable, "-m", "lisiere", "compile", str(job), "--output", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two trees with what was built in each; the second takes its models compiled, which tests/soak/ does not."""
    cross_tools("aarch64")
    cross_tools("armv7l")

    def make(folder: Path) -> None:
        one, other = clone(folder / "one", 0, 0o644), clone(folder / "another-one", 1e7, 0o600)
        finish(start(one))
        finish(start(other, "--models", str(compiled(one, folder / "models"))))

    folder = made_once(tmp_path_factory, "component-builds", make)
    return [folder / "one", folder / "another-one"]
