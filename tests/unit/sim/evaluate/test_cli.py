"""`lisiere evaluate`: runs and samples scored, and what is refused."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest

from lisiere.errors import ConfigError
from lisiere_sim.evaluate.cli import register
from lisiere_sim.evaluate.runs import read_runs
from lisiere_sim.evaluate.samples import find_samples, pump
from support import REPOSITORY, require

LINE = (
    '{"schema": "lisiere.result/1", "pipeline": "p", "task": "anomaly", "ts": "1970-01-01T00:00:0%dZ",'
    ' "result": {"state": "%s", "score": 1.0, "threshold": 0.5}}\n'
)


def evaluate(*arguments: str) -> int:
    """What `lisiere evaluate` does with its arguments; errors come out as they are raised."""
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["evaluate", *arguments])
    code: int = args.run(args)
    return code


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = tmp_path / "run.jsonl"
    states = ("normal", "anomalous", "normal")
    file.write_text(
        "".join(LINE % (at, state) for at, state in enumerate(states))
        + '{"schema": "lisiere.event/1", "pipeline": "p", "event": "new"}\n\n'
    )
    (tmp_path / "labels.json").write_text('[["1970-01-01T00:00:01Z", "1970-01-01T00:00:01Z"]]')
    return file


def test_a_run_is_scored(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = results.with_name("labels.json")
    assert evaluate(str(results), "--labels", str(labels), "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["p"]["task"] == "anomaly"
    assert found["p"]["point"]["f1"] == 1.0
    assert found["p"]["results"] == 3


def test_text_and_json_say_the_same(results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    labels = f"p={results.with_name('labels.json')}"
    assert evaluate(str(results), "--labels", labels, "--json", str(tmp_path / "out.json")) == 0
    out = capsys.readouterr().out
    assert "point: precision 1, recall 1, f1 1, far 0, mar 0" in out
    assert json.loads((tmp_path / "out.json").read_text())["p"]["event"]["found"] == 1


def test_a_run_is_drawn(results: Path, tmp_path: Path) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib")
    labels = str(results.with_name("labels.json"))
    assert evaluate(str(results), "--labels", labels, "--plots", str(tmp_path / "pictures")) == 0
    assert (tmp_path / "pictures" / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("", {"": "labels.json"}, "holds no results"),
        ("[1]\n", {"": "labels.json"}, "line 1 is no result"),
        ("{\n", {"": "labels.json"}, "line 1 is not JSON"),
        ("[" * 100_000 + "\n", {"": "labels.json"}, "line 1 is not JSON"),
        ('{"pipeline": "p"}\n', {"": "labels.json"}, "has no `task`, `ts`"),
        (LINE % (0, "normal"), {}, "p has no labels: give --labels p=FILE"),
        (LINE % (0, "normal"), {"q": "labels.json"}, "results of p, and none of q"),
        ('{"pipeline": "p", "task": "cooking", "ts": "1970-01-01", "result": {}}\n', {}, "of the task 'cooking'"),
    ],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path, results: Path, text: str, labels: dict[str, str], message: str
) -> None:
    results.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_runs(results, {name: tmp_path / file for name, file in labels.items()})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--labels", "labels.json"],
        ["nothing.jsonl", "--labels", "labels.json"],
        ["--models", "nowhere"],
        ["nothing.jsonl", "--labels", "a=x", "--labels", "a=y"],
        ["nothing.jsonl", "--nab", "."],
        ["--nab", "nowhere"],
    ],
)
def test_usage_is_checked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError):
        evaluate(*arguments)
    assert capsys.readouterr().out == ""


def test_samples_reproduce_the_figures_of_the_readme() -> None:
    """The first run: the weakest bearing fault. README and models/pump/README.md name the same figures."""
    folder = find_samples(REPOSITORY / "models")
    found = next(iter(pump(folder / "pump", lambda _done, _total: None))).figures()
    assert found["point"]["far"] == 0.0012
    assert found["point"]["recall"] == 0.045
    assert found["roc_auc"] == 0.8933
