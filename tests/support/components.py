"""Greengrass components built from copies of this tree, as a clone would build them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import lisiere
from support import REPOSITORY

NAME = "io.lisiere.EdgeInference"
# What a clone has that the build reads.
TREE = (".gitignore", "LICENSE", "README.md", "pyproject.toml", "recipe.yaml", "gdk-config.json")
FOLDERS = ("components", "compile", "device", "models", "requirements", "scripts", "simulator")


def clone(into: Path, age_s: float, mode: int) -> Path:
    """Another checkout of this tree: at another place, of another time, with another umask."""
    into.mkdir()
    for name in TREE:
        shutil.copy(REPOSITORY / name, into / name)
    for name in FOLDERS:
        left_out = shutil.ignore_patterns("__pycache__", "greengrass-build")
        shutil.copytree(REPOSITORY / name, into / name, ignore=left_out)
    for file in into.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            os.utime(file, (time.time() - age_s,) * 2)
    return into


def start(tree: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin to build as the wrapper does, with the code of that tree."""
    path = os.pathsep.join(str(tree / name) for name in ("device", "compile", "simulator"))
    return subprocess.Popen(
        [sys.executable, str(tree / "scripts" / "build_component.py"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    return said


def archive(tree: Path) -> Path:
    return tree / "greengrass-build" / "artifacts" / NAME / lisiere.__version__ / f"{NAME}.zip"


def compiled(build: Path, into: Path) -> Path:
    """The models of a build, as `--models` takes them."""
    with zipfile.ZipFile(archive(build)) as outer:
        outer.extractall(into)
    for architecture, target in (("aarch64", "aarch64"), ("amd64", "x86_64"), ("arm", "rasp3b")):
        (into / "sample" / architecture).rename(into / f"digits-{target}")
    return into


def digests(build: Path) -> dict[str, str]:
    """What stands in a folder: path -> SHA-256."""
    return {
        str(file.relative_to(build)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(build.rglob("*"))
        if file.is_file()
    }
