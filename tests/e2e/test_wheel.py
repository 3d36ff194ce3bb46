"""The built wheel holds what an installed Lisière needs, and runs from it without the source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(REPOSITORY)], check=True, capture_output=True)
    (file,) = folder.glob("lisiere-*.whl")
    return file


def test_it_holds_code_and_what_the_code_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "lisiere/cli.py",
        "lisiere/py.typed",
        "lisiere/spool/schema_v1.sql",
        "lisiere_compile/cli.py",
        "lisiere_compile/py.typed",
        "lisiere_sim/cli.py",
        "lisiere_sim/py.typed",
        "lisiere_sim/scenarios/default.yaml",
    ):
        assert needed in names, needed
    assert not [name for name in names if name.startswith(("tests", "models", "build", "docs"))]


def test_it_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """With the wheel first on the path, the code comes from there, reads its SQL from there, and makes a spool."""
    unpacked = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(unpacked)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import lisiere.spool\n"
        "from lisiere.config import SpoolConfig\n"
        "from lisiere.clock import SystemClock\n"
        "assert lisiere.spool.__file__.startswith(sys.argv[1]), lisiere.spool.__file__\n"
        "spool = lisiere.spool.Spool(SpoolConfig(path=sys.argv[2]), SystemClock())\n"
        "spool.append('dock', b'{}')\n"
        "assert spool.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(unpacked), str(tmp_path / "spool")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
