"""What the end-to-end tests share: the sample models, compiled once a session as a user would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY

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
