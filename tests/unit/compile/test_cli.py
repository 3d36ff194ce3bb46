from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.helper import make_node as node

from lisiere.models.package import read_manifest
from lisiere_compile import lower
from lisiere_compile.cli import register
from lisiere_compile.target import host_name

from .conftest import dense, make_job, make_model, write_package


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
        "print([m for m in ('tvm', 'onnx', 'onnxruntime', 'numpy', 'rich', 'boto3') if m in sys.modules])"
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
    assert report["verified"]["by"] in ("dlr", "graph")
    assert report["peak_activation_bytes"] >= 48
    assert Path(report["archive"]).stat().st_size == report["archive_bytes"]
    assert set(report["stages"]) == {"import", "optimise", "schedule", "build", "link", "verify", "pack"}


def test_exit_codes(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.json") == 2
    job.write_text(json.dumps(make_job("http://host/model.tar.gz")))
    assert run(job) == 2
    assert "$.InputConfig.S3Uri" in capfd.readouterr().err
    job.write_text(json.dumps(make_job("nothing-here")))
    assert run(job, "--json") == 1
    out, err = capfd.readouterr()
    assert "There is nothing at" in json.loads(out)["error"]
    assert "There is nothing at" in err


def test_a_model_is_compiled_without_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(make_model([node("Relu", ["x"], ["y"])], {"x": ["N", "M"]}, {"y": ["N", "M"]}, {}), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert run("m.onnx", "--json") == 1
    assert "DataInputConfig" in capfd.readouterr().err
    assert run("m.onnx", "--shape", "x=2,3", "--name", "net", "--threads", "2", "--output", "o", "--json") == 0
    report = json.loads(capfd.readouterr().out)
    manifest = read_manifest(Path(report["artifact"]) / "manifest.yaml")
    assert manifest.name == "net"
    assert manifest.inputs[0].shape == (2, 3)
    assert manifest.build is not None
    assert (manifest.build.target, manifest.build.threads) == (host_name(), 2)
    assert sorted(Path("o").iterdir()) == [Path("o/net-" + host_name()), Path(f"o/net-{host_name()}.tar.gz")]


def test_an_archive_with_a_bare_model_is_compiled_into_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(dense(), tmp_path / "small.onnx")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as stream:
        stream.add(tmp_path / "small.onnx", "small.onnx")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("../model.tar.gz", "--target", "x86_64") == (0 if platform.machine() == "x86_64" else 1)
    out, _ = capfd.readouterr()
    assert out.startswith("small-x86_64\n")


@pytest.mark.parametrize(
    "options",
    [
        ["--threads", "0"],
        ["--threads", "65"],
        ["--threads", "two"],
        ["--shape", "x"],
        ["--shape", "x=1,a"],
        ["--name", "../up"],
    ],
)
def test_a_wrong_option_is_wrong_usage(options: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("m.onnx", *options)
    assert caught.value.code == 2
    assert options[1] in capfd.readouterr().err


@pytest.mark.parametrize("option", [["--target", "native"], ["--shape", "x=1"], ["--framework", "ONNX"]])
def test_an_option_for_a_model_does_not_go_with_a_job(
    job: Path, option: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(job, *option) == 2
    assert f"{option[0]}: " in capfd.readouterr().err


def test_a_write_that_the_system_refuses_is_one_line_and_leaves_nothing(job: Path) -> None:
    """A limit on the size of files stands for the full disk: an OSError at the same calls."""
    most = 512
    arguments = ["compile", str(job), "--output", str(job.parent / "o")]
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}));"
        f"from lisiere.cli import main; sys.exit(main({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lisiere: ")
    assert not (job.parent / "o").exists()


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


def test_a_signal_in_the_middle_leaves_nothing_behind(job: Path) -> None:
    scratch, output = job.parent / "scratch", job.parent / "o"
    scratch.mkdir()
    command = [sys.executable, "-m", "lisiere", "compile", str(job), "--output", str(output)]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("link"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 1
    assert rest.splitlines()[-1] == "lisiere: interrupted."
    assert not list(scratch.iterdir())
    assert not output.exists()
