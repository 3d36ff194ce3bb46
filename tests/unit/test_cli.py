"""The command line: exit codes, and messages that name the place."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from lisiere.cli import DONE, FAILED, NOT_HELD, USAGE, main
from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.models import open_package, write_manifest
from lisiere.models.package import read_manifest
from lisiere.schema import DOCUMENTS
from lisiere.spool import Spool
from support import REPOSITORY, tiny


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """`main` sets logging up, which belongs to the process: put it back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def config(tmp_path: Path) -> Path:
    tiny.classifier(tmp_path / "trees")
    file = tmp_path / "device.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "device": "pi-1",
                "pipelines": [{"name": "p", "source": {"type": "images", "path": "photos"}, "model": "trees"}],
            }
        )
    )
    return file


def change(file: Path, old: str, new: str) -> Path:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    for word in ("run", "simulate", "compile", "models", "spool", "validate", "schema", "exit codes"):
        assert word in text


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["fly"])
    assert raised.value.code == USAGE


def test_validate_accepts_a_good_configuration(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(config)]) == DONE
    assert "is valid" in capsys.readouterr().out
    assert main(["validate", "--json", str(config)]) == DONE
    assert json.loads(capsys.readouterr().out)["device"] == "pi-1"


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("device: pi-1", "device: pi-1\ncolour: red", "$"),
        ("device: pi-1", "device: a/b", "$.device"),
        ("type: images", "type: telepathy", "$.pipelines[0].source"),
        ("model: trees", "model: oaks", "$.pipelines[0].model"),
        ("name: p", f"name: {'p' * 126}\ntopic_prefix: x", "$.pipelines[0]"),
        ("device: pi-1", "device: pi-1\ntopic_prefix: a/b/c/d/e", "$.topic_prefix"),
        ("device: pi-1", "device: pi-1\nstop_drain_s: soon", "$.stop_drain_s"),
    ],
)
def test_a_wrong_configuration_is_exit_2_and_names_the_place(
    config: Path, command: str, old: str, new: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(config, old, new.replace("\ntopic_prefix: x", "\n  colour: red"))
    assert main([command, str(config)]) == USAGE
    message = capsys.readouterr().err
    assert message.startswith(f"lisiere: {place}")
    assert "Traceback" not in message


def test_a_missing_configuration_is_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.yaml")]) == USAGE
    assert "cannot be read" in capsys.readouterr().err


def test_a_tampered_model_is_exit_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "trees" / "labels.txt").write_text("other\n")
    assert main(["run", str(config)]) == FAILED
    assert "labels.txt" in capsys.readouterr().err


def test_models_inspect_lists_nested_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.classifier(tmp_path / "m", figures={"held_out": {"accuracy": 0.5, "worst": {"ash": 0.25}}, "n": 3})
    assert main(["models", "inspect", str(folder)]) == DONE
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "figure" in line]
    assert lines == [
        ["figure", "held_out.accuracy", "0.5"],
        ["figure", "held_out.worst.ash", "0.25"],
        ["figure", "n", "3"],
    ]


def test_models_inspect_and_verify(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(config.parent / "trees")
    assert main(["models", "inspect", folder]) == DONE
    assert "tiny 1.0.0" in capsys.readouterr().out
    assert main(["models", "verify", folder, "--json"]) == DONE
    outcomes = json.loads(capsys.readouterr().out)
    assert outcomes["onnx"]["holds"] is True
    assert outcomes["dlr"]["holds"] is None


def test_models_seal_makes_a_hand_written_manifest_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.classifier(tmp_path / "m")
    document = yaml.safe_load((folder / "model.yaml").read_text())
    del document["files"]
    (folder / "model.yaml").write_text(yaml.safe_dump(document))
    assert main(["models", "inspect", str(folder)]) == FAILED
    assert "files" in capsys.readouterr().err
    assert main(["models", "seal", str(folder), "--json"]) == DONE
    assert set(json.loads(capsys.readouterr().out)["files"]) == {"model.onnx", "labels.txt", "golden.npz"}
    (folder / "labels.txt").write_text("elm\nfir\nyew\n")
    assert main(["models", "verify", str(folder)]) == FAILED
    assert main(["models", "seal", str(folder)]) == DONE
    assert open_package(folder).labels() == ("elm", "fir", "yew")


def test_models_seal_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.classifier(tmp_path / "m")
    (folder / "labels.txt").unlink()
    assert main(["models", "seal", str(folder)]) == FAILED
    assert "lacks labels.txt" in capsys.readouterr().err
    assert main(["models", "seal", str(tmp_path / "none")]) == FAILED


def test_models_verify_is_exit_3_when_golden_vectors_do_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    folder = tiny.classifier(tmp_path / "m")
    with np.load(folder / "golden.npz") as archive:
        vectors = dict(archive)
    vectors["outputs/scores"] = vectors["outputs/scores"] + 1
    np.savez(folder / "golden.npz", **vectors)
    write_manifest(read_manifest(folder / "model.yaml"), folder / "model.yaml")
    open_package(folder)
    assert main(["models", "verify", str(folder)]) == NOT_HELD
    assert "does NOT reproduce" in capsys.readouterr().out


def test_spool_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(SpoolConfig(path=str(tmp_path)), SystemClock())
    for _ in range(3):
        spool.append("dock", b"{}")
    spool.flush(5)
    spool.acknowledge([1])
    spool.close()
    assert main(["spool", "status", str(tmp_path), "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    gone = {"acknowledged": 1, "evicted": 0, "expired": 0, "set_aside": 0, "damaged": 0, "sent": 0}
    assert document["pipelines"] == {"dock": {"accepted": 3, **gone, "waiting": 2}}
    assert main(["spool", "status", str(tmp_path)]) == DONE
    assert "dock" in capsys.readouterr().out
    assert main(["spool", "status", str(tmp_path / "none")]) == FAILED


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_schemas_are_published_as_the_code_has_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", name]) == DONE
    assert (REPOSITORY / f"docs/contract/{name}.schema.json").read_text() == capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run"], ["run", "--greengrass", "device.yaml"]])
def test_run_takes_a_file_or_a_nucleus(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == USAGE
    assert "either CONFIG.yaml or --greengrass" in capsys.readouterr().err


def test_the_greengrass_transport_is_for_a_component(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(config, "device: pi-1", "device: pi-1\ntransport: {type: greengrass}")
    assert main(["run", str(config)]) == USAGE
    assert "$.transport: The transport `greengrass` is for `lisiere run --greengrass`." in capsys.readouterr().err


def test_a_reader_who_goes_away_ends_it_without_a_word() -> None:
    gone, out = os.pipe()
    os.close(gone)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "lisiere", "schema", "config"], stdout=out, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(out)
    assert (ended.returncode, ended.stderr) == (FAILED, b"")
