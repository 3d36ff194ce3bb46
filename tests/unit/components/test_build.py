"""Which packages of the lock go to which device."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from support import REPOSITORY

LOCK = (REPOSITORY / "requirements" / "device.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_component", REPOSITORY / "scripts" / "build_component.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins(lines: list[str]) -> dict[str, str]:
    return dict(line.partition(" ")[0].split("==") for line in lines)


def test_libdlr_goes_where_there_is_one(build: ModuleType) -> None:
    assert "dlr" in pins(build._for_device(LOCK, "x86_64", "3.11"))
    for machine in ("aarch64", "armv7l"):
        assert "dlr" not in pins(build._for_device(LOCK, machine, "3.11"))


def test_a_package_is_pinned_once_for_each_python_and_with_hashes(build: ModuleType) -> None:
    for python in ("3.10", "3.11", "3.12", "3.13"):
        lines = build._for_device(LOCK, "aarch64", python)
        assert len(pins(lines)) == len(lines)
        assert {"awsiotsdk", "awscrt", "msgspec", "numpy", "opencv-python-headless", "paho-mqtt", "pyyaml"} <= set(
            pins(lines)
        )
        assert all(re.search(r" --hash=sha256:[0-9a-f]{64}", line) and ";" not in line for line in lines)


def test_the_lock_agrees_with_the_demos(build: ModuleType) -> None:
    demo = (REPOSITORY / "requirements" / "demo.txt").read_text(encoding="utf-8")
    for python in ("3.10", "3.13"):
        known = pins(build._for_device(demo, "x86_64", python))
        for name, version in pins(build._for_device(LOCK, "x86_64", python)).items():
            assert known[name] == version


def test_the_lock_names_no_index() -> None:
    assert "://" not in LOCK
