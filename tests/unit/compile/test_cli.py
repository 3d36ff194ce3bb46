from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lisiere_compile import lower
from lisiere_compile.cli import register

from .conftest import dense, make_job, write_package


@pytest.fixture
def job(tmp_path: Path) -> Path:
    write_package(tmp_path / "package", dense())
    file = tmp_path / "job.json"
    file.write_text(json.dumps(make_job("package")))
    return file


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["compile", *map(str, arguments)])
    return int(args.run(args))


def test_registering_imports_nothing_heavy() -> None:
    code = (
        "import argparse, sys; from lisiere_compile.cli import register;"
        "register(argparse.ArgumentParser().add_subparsers());"
        "print([m for m in ('tvm', 'onnx', 'onnxruntime', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_relative_paths_start_at_the_job(job: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(job) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].startswith(str(job.parent / "out" / "small-"))
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "import", "optimise", "schedule", "build", "link", "verify", "pack"
    ]  # fmt: skip


def test_json_is_one_document_and_nothing_else(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(job, "--json", "--no-onnx", "--output", tmp_path / "elsewhere") == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert err == ""
    folder = Path(report["artifact"])
    assert folder.parent == tmp_path / "elsewhere"
    assert report["sizes"] == {file.name: file.stat().st_size for file in folder.iterdir()}
    assert "model.onnx" not in report["sizes"]
    assert report["verified"]["cases"] == 8
    assert set(report["stages"]) == {"import", "optimise", "schedule", "build", "link", "verify", "pack"}


def test_exit_codes(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.json") == 2
    job.write_text(json.dumps(make_job("s3://bucket/model.tar.gz")))
    assert run(job) == 2
    assert "$.InputConfig.S3Uri" in capfd.readouterr().err
    job.write_text(json.dumps(make_job("nothing-here")))
    assert run(job, "--json") == 1
    out, err = capfd.readouterr()
    assert "There is nothing at" in json.loads(out)["error"]
    assert "There is nothing at" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_tvm_swallows_still_ends_it(
    job: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    legalise, before = lower.legalise, signal.getsignal(number)

    def interrupted(*arguments: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        return legalise(*arguments)

    monkeypatch.setattr(lower, "legalise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert signal.getsignal(number) == before
    assert not (job.parent / "out").exists()
