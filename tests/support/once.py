"""What takes long and is never written to again, made once a test run, though the run may have many processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` has filled; the first process to ask makes it, and the others wait.

    A failure is not remembered: the next process tries again and fails with a message of its own.
    """
    base = factory.getbasetemp()
    # Each process of pytest-xdist has its own below the run's.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = run / name
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder
