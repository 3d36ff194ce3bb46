"""What keeps an artifact from running is told before anything of it is loaded."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere import doctor
from lisiere.cli import DONE, FAILED, NOT_HELD, main
from lisiere.doctor import examine
from lisiere.machine import this_machine
from lisiere.models import write_manifest
from lisiere.models.manifest import Verified
from lisiere.models.package import read_draft
from support import tiny
from support.artifacts import compiled


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled("classifier"), tmp_path / "artifact"))


def rebuild(artifact: Path, **fields: Any) -> None:
    """Say other things of how it was built."""
    file = artifact / "manifest.yaml"
    manifest = read_draft(file)
    assert manifest.build is not None
    build = msgspec.structs.replace(manifest.build, **fields)
    write_manifest(msgspec.structs.replace(manifest, build=build), file)


def states(artifact: Path) -> dict[str, str]:
    return {check.name: check.state for check in examine(artifact).checks}


def test_an_artifact_for_this_machine_runs(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Something was loaded.")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert main(["doctor", str(artifact)]) == DONE
    said = capsys.readouterr().out
    assert "It can run here, by the backend " in said
    assert "stop" not in said
    assert set(states(artifact)) == {
        *("files", "arch", "features", "glibc", "threads", "memory", "verified", "backend")
    }


@pytest.mark.parametrize(
    ("fields", "name", "says", "fix"),
    [
        ({"arch": "riscv64"}, "arch", "compiled for riscv64", "Compile the model for"),
        ({"features": ("avx9999",)}, "features", "lacks avx9999", "Compile the model for"),
        ({"min_glibc": "99.1"}, "glibc", "needs glibc 99.1", "zig"),
        ({"peak_activation_bytes": 1 << 60}, "memory", "MiB are free", "smaller"),
    ],
)
def test_what_keeps_it_from_running_is_told_with_what_helps(
    fields: dict[str, Any], name: str, says: str, fix: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rebuild(artifact, **fields)
    assert main(["doctor", "--json", str(artifact)]) == NOT_HELD
    report = json.loads(capsys.readouterr().out)
    assert (report["runs"], report["backend"]) == (False, None)
    (stop,) = [check for check in report["checks"] if check["state"] == "stop"]
    assert stop["name"] == name
    assert says in stop["sentence"]
    assert fix in stop["fix"]
    # The ONNX file beside the code is another matter, and is told of as such.
    assert report["checks"][-1]["state"] == "note"
    assert "ONNX file" in report["checks"][-1]["sentence"]


def test_what_is_worth_knowing_keeps_nothing_back(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rebuild(artifact, threads=4096, verified=Verified(by="nothing", note="qemu-arm is not installed"))
    assert main(["doctor", str(artifact)]) == DONE
    said = capsys.readouterr().out
    assert "It uses 4096 threads" in said
    assert "has not run it: qemu-arm is not installed" in said
    assert "lisiere models verify" in said
    found = states(artifact)
    assert (found["threads"], found["verified"]) == ("note", "note")


def test_a_damaged_artifact_is_told(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (artifact / "compiled.params").open("ab") as stream:
        stream.write(b"more")
    assert main(["doctor", str(artifact)]) == NOT_HELD
    said = capsys.readouterr().out
    assert "stop files" in said
    assert "compiled.params" in said
    assert "It cannot run here." in said


def test_without_libdlr_the_next_backend_is_named(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LISIERE_LIBDLR", str(tmp_path / "none.so"))
    report = examine(artifact)
    assert report.backend == "graph"
    assert "none.so" in report.backends["dlr"]
    assert "since dlr cannot" in report.checks[-1].sentence


def test_a_model_without_a_runtime_for_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny.classifier(tmp_path / "model")
    assert examine(package).backend == "onnx"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    report = examine(package)
    assert report.runs is False
    assert "pip install lisiere[onnx]" in report.checks[-1].sentence


def test_what_cannot_be_compared_is_told(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = replace(this_machine(), features=None, memory_bytes=None)
    monkeypatch.setattr(doctor, "this_machine", lambda: blind)
    found = states(artifact)
    assert (found["features"], found["memory"]) == ("note", "note")
    assert examine(artifact).runs


def test_without_an_artifact_this_machine_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == DONE
    said = capsys.readouterr().out
    assert this_machine().arch in said
    for backend in ("dlr", "graph", "onnx"):
        assert backend in said
    assert main(["doctor", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["runs"] is None


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == FAILED
    assert "not a model folder" in capsys.readouterr().err
