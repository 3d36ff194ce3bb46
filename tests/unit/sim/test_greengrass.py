from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lisiere.errors import ConfigError
from lisiere_sim import greengrass
from lisiere_sim.nucleus.components.recipe import read_recipe
from lisiere_sim.nucleus.flavour import LITE
from support import REPOSITORY, require


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the simulator takes from the source tree."""
    require(importlib.util.find_spec("awsiot"), "awsiotsdk")
    root = tmp_path / "sources"
    script = root / "components" / greengrass.COMPONENT
    script.mkdir(parents=True)
    shutil.copy(REPOSITORY / "components" / greengrass.COMPONENT / "install.sh", script)
    shutil.copy(REPOSITORY / "recipe.yaml", root)
    monkeypatch.setattr("lisiere_sim.greengrass.SOURCE_ROOT", root)
    return root


def test_a_scenario_of_processes_needs_neither_nucleus_nor_ipc_client() -> None:
    script = (
        "import sys, lisiere_sim.runner, lisiere_sim.cli\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('aws', 'lisiere_sim.nucleus'))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_what_was_built_from_these_sources_is_taken_and_nothing_else(sources: Path, tmp_path: Path) -> None:
    made = greengrass.find_artifact(tmp_path / "first")
    assert read_recipe(made.recipe, LITE).version == made.version
    built = sources / "greengrass-build"
    archive = built / "artifacts" / greengrass.COMPONENT / made.version / f"{greengrass.COMPONENT}.zip"
    archive.parent.mkdir(parents=True)
    (built / "recipes").mkdir()
    shutil.copy(made.recipe, built / "recipes" / "recipe.yaml")
    install = (sources / "components" / greengrass.COMPONENT / "install.sh").read_bytes()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr("install.sh", install)
        stream.writestr("digest", "of-the-build\n")
    assert greengrass.find_artifact(tmp_path / "second").digest == "of-the-build"
    (built / "recipes" / "recipe.yaml").write_text("of: yesterday")
    assert greengrass.find_artifact(tmp_path / "third").digest == made.digest


def test_without_the_sources_or_the_client_it_says_what_is_missing(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="awsiotsdk"):
        greengrass.find_artifact(tmp_path)
    (sources / "recipe.yaml").unlink()
    with pytest.raises(ConfigError, match="source tree"):
        greengrass.find_artifact(tmp_path)


def test_the_borrowed_environment_runs_this_lisiere(tmp_path: Path) -> None:
    greengrass.borrow_environment(tmp_path, "0123456789abcdef" * 4)
    (home,) = tmp_path.glob("env-*")
    assert home.name == "env-0123456789abcdef"
    done = subprocess.run([str(home / "bin" / "lisiere"), "--version"], capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [str(home / "bin" / "python"), "-c", "import lisiere, msgspec; print(lisiere.__file__)"],
        capture_output=True, text=True, env={}, check=True,
    )  # fmt: skip
    assert str(REPOSITORY) in where.stdout
