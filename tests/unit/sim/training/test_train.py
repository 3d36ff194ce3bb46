"""`lisiere train`: from a CSV file to a package that the device runs and evaluation scores the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.cli import main
from lisiere.models import open_package
from lisiere.models.manifest import Forecasting, WindowInput
from lisiere_sim.training.cli import register
from support import require, seasons

HOURS = 1400


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two channels, 48 hours to 6, and the series it is from; a gap of two rows is interpolated."""
    folder = tmp_path_factory.mktemp("trained")
    values = seasons.seasons(HOURS, 2)
    values[300:302] = np.nan
    values[700:710, 1] = np.nan
    file = seasons.write_csv(folder / "series.csv", values)
    code, _ = train(
        file, folder / "model", "--horizon", "6", "--lookback", "48", "--max-gap", "2", "--licence", "CC0-1.0"
    )
    assert code == 0
    return folder


def train(data: Path, output: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the subcommand; exit code and figures."""
    import argparse
    import contextlib
    import io

    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["train", str(data), "--output", str(output), "--json", *options])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code: int = args.run(args)
    return code, json.loads(out.getvalue())


def test_the_package_declares_what_a_device_needs(trained: Path) -> None:
    manifest = open_package(trained / "model").manifest
    how, task = manifest.input, manifest.task
    assert isinstance(how, WindowInput)
    assert isinstance(task, Forecasting)
    assert (how.channels, how.length, how.step_s, how.max_gap) == (("c0", "c1"), 48, 3600.0, 2)
    assert how.normalise is not None
    assert how.normalise.level == "last"
    assert (task.horizon, task.names, task.quantiles) == (6, ("c0", "c1"), (0.05, 0.5, 0.95))
    assert manifest.data is not None
    assert manifest.data.licence == "CC0-1.0"
    held = manifest.figures["held_out"]
    assert held["mse"] < 0.8 * held["last_value_mse"]


def test_the_same_file_gives_the_same_package(trained: Path, tmp_path: Path) -> None:
    options = ("--horizon", "6", "--lookback", "48", "--max-gap", "2", "--licence", "CC0-1.0", "--name", "model")
    train(trained / "series.csv", tmp_path / "again", *options)
    assert open_package(tmp_path / "again").digest == open_package(trained / "model").digest


def test_replay_and_evaluate_give_the_figures_of_training(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_onnx()
    from lisiere_sim.evaluate.runs import read_runs

    config = {"name": "town", "model": "model", "source": {"type": "csv", "path": "model/holdout.csv"}}
    (trained / "device.yaml").write_text(json.dumps({"device": "laptop", "pipelines": [config | {"backend": "onnx"}]}))
    holdout, output = str(trained / "model" / "holdout.csv"), str(trained / "run.jsonl")
    assert main(["replay", holdout, "--config", str(trained / "device.yaml"), "--output", output]) == 0
    capsys.readouterr()
    (run,) = read_runs(Path(output), {"": trained / "model"})
    found, stated = run.figures(), open_package(trained / "model").manifest.figures["held_out"]
    assert found["scored"] == stated["windows"]
    assert found["standardised"]["mse"] == pytest.approx(stated["mse"], rel=1e-3)
    assert found["standardised"]["mae"] == pytest.approx(stated["mae"], rel=1e-3)
    assert 0.85 < found["standardised"]["coverage"] < 0.95
    scores = [json.loads(line)["score"] for line in Path(output).read_text().splitlines() if "lisiere.score/1" in line]
    assert len(scores) == stated["windows"]
    # A score is of one forecast; all of them together are the mean absolute error of the run.
    assert np.mean([one["channels"]["c0"]["mae"] for one in scores]) == pytest.approx(found["c0"]["mae"], rel=1e-3)


def require_onnx() -> None:
    import importlib.util

    require(importlib.util.find_spec("onnxruntime") is not None, "ONNX Runtime")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--horizon", "0"), "--horizon: It is 0"),
        (("--horizon", "6", "--lookback", "1"), "--lookback: It is 1"),
        (("--horizon", "6", "--max-gap", "336"), "--max-gap: It is 336"),
        (("--horizon", "6", "--quantiles", "0.1,0.9"), "--quantiles: They must rise between 0 and 1, and 0.5"),
        (("--horizon", "6", "--quantiles", "low"), "no list of numbers"),
        (("--horizon", "6", "--split", "0.5,0.5,0.5"), "--split: The parts are shares"),
        (("--horizon", "6", "--split", "1000,200,201"), "takes 1401 rows, but the series has 1400"),
        (("--horizon", "6", "--split", "0.6,0.2"), "three parts"),
        (("--horizon", "300", "--lookback", "24"), "The validation part has 280 rows, and there is no window"),
        (("--horizon", "6", "--channels", "rain"), "but not rain"),
        (("--horizon", "6", "--step", "60"), "there is no window without a hole"),
        (("--horizon", "6", "--step", "0.001"), "give the step by --step"),
        (("--horizon", "6", "--name", "a b"), "cannot be a model's name"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    trained: Path, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    from lisiere.errors import LisiereError

    with pytest.raises(LisiereError) as wrong:
        train(trained / "series.csv", tmp_path / "no", *options)
    assert why in str(wrong.value)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("time\n1\n2\n", "no column but"),
        ("time,x\n1,2\n", "1 usable rows"),
        ("time,x\n1,2\n1,3\n", "do not rise"),
    ],
)
def test_a_file_that_is_no_series_is_refused(tmp_path: Path, text: str, why: str) -> None:
    from lisiere.errors import ConfigError

    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=why):
        train(file, tmp_path / "no", "--horizon", "1")


def test_a_channel_that_never_changes_is_refused(tmp_path: Path) -> None:
    from lisiere.errors import ConfigError

    values = np.column_stack([np.arange(100.0), np.ones(100)])
    with pytest.raises(ConfigError, match="c1 does not change"):
        train(seasons.write_csv(tmp_path / "x.csv", values), tmp_path / "no", "--horizon", "2", "--lookback", "4")
