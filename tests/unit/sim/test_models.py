from __future__ import annotations

import platform
from pathlib import Path

import pytest

from lisiere.errors import ConfigError, Permanent
from lisiere_sim import models
from lisiere_sim.models import find_data, find_model

WHERE = "$.pipelines[0].model"


def never(text: str) -> None:
    raise AssertionError(text)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").touch()
    return folder


def test_the_artifact_for_this_machine_is_preferred(tmp_path: Path) -> None:
    here = f"{platform.system()}_{platform.machine()}".lower()
    make(tmp_path / "digits-aaa")
    assert find_model("digits", tmp_path, tmp_path, WHERE, never) == tmp_path / "digits-aaa"
    make(tmp_path / f"digits-{here}")
    assert find_model("digits", tmp_path, tmp_path, WHERE, never) == tmp_path / f"digits-{here}"


def test_a_path_is_taken_from_the_scenario(tmp_path: Path) -> None:
    folder = make(tmp_path / "mine" / "model")
    assert find_model("mine/model", tmp_path / "models", tmp_path, WHERE, never) == folder
    with pytest.raises(ConfigError, match="There is no model at") as caught:
        find_model("./absent", tmp_path / "models", tmp_path, WHERE, never)
    assert caught.value.path == WHERE


def test_an_absent_model_comes_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lisiere compile models/nothing/job\.json --output") as caught:
        find_model("nothing", tmp_path, tmp_path, WHERE, never)
    assert caught.value.path == WHERE


def test_a_model_with_a_job_is_compiled_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "models" / "odd" / "job.json"
    job.parent.mkdir(parents=True)
    job.write_text("{}")
    monkeypatch.setattr(models, "SOURCE_ROOT", tmp_path)
    said: list[str] = []
    with pytest.raises(Permanent, match=r"lisiere compile .*job\.json --output .*failed \(exit code"):
        find_model("odd", tmp_path / "built", tmp_path, WHERE, said.append)
    assert "compiling odd" in said[0]


def test_data_is_looked_for_beside_the_scenario_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario, work = tmp_path / "scenario", tmp_path / "work"
    for folder in (scenario, work):
        folder.mkdir()
    (work / "data.csv").touch()
    monkeypatch.chdir(work)
    assert find_data("data.csv", scenario, "$") == work / "data.csv"
    (scenario / "data.csv").touch()
    assert find_data("data.csv", scenario, "$") == scenario / "data.csv"
    with pytest.raises(ConfigError, match=r"There is no other\.csv in"):
        find_data("other.csv", scenario, "$")
