"""What the tests share: real components insisted on, and tiny models."""

from __future__ import annotations

import builtins
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def require(present: object, what: str) -> None:
    """Skip the test when something real is absent; fail instead where LISIERE_REQUIRE is set, as CI does."""
    if present:
        return
    if os.environ.get("LISIERE_REQUIRE"):
        pytest.fail(f"LISIERE_REQUIRE is set, but there is no {what}.")
    pytest.skip(f"There is no {what} here.")


def shared_data() -> Path:
    """Return the folder of real pretrained models and labelled images, or skip."""
    folder = Path(os.environ.get("LISIERE_SHARED", REPOSITORY.parent / "shared")) / "data"
    require(folder.is_dir(), f"shared data at {folder} (set LISIERE_SHARED)")
    return folder


def cross_tools(arch: str) -> None:
    """Skip where artifacts for an architecture (aarch64, armv7l) can be neither linked nor run, or fail: `require`."""
    kind, qemu = {
        "aarch64": ("aarch64-linux-gnu", "qemu-aarch64"),
        "armv7l": ("arm-linux-gnueabihf", "qemu-arm"),
    }[arch]
    require(shutil.which(f"{kind}-gcc"), f"{kind}-gcc")
    require(shutil.which(qemu), qemu)


def mosquitto() -> str:
    """Return the path of a real Mosquitto, or skip."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    require(found, "mosquitto")
    assert found is not None
    return found


def forget_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importing cv2 fail, as on a device without the camera extra."""
    whole = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return whole(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
