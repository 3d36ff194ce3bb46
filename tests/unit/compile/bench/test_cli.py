from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lisiere.cli import main
from lisiere_compile.bench import run as bench_run
from lisiere_compile.bench.run import Figure, ModelFigures
from support.artifacts import compiled

QUICK = ["--rounds", "2", "--seconds", "0"]


def test_bench_prints_a_table_and_writes_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, file = compiled("classifier"), tmp_path / "new" / "figures.json"
    assert main(["bench", str(model), "--against", "onnxruntime", *QUICK, "--json", str(file)]) == 0
    shown = capsys.readouterr()
    heads, row, *_ = shown.out.splitlines()
    assert heads.split()[:3] == ["model", "lisiere", "onnxruntime"]
    assert row.split()[0] == model.name
    assert "measuring" in shown.err
    found = json.loads(file.read_text())
    assert found["schema"] == "lisiere.bench/1"
    assert set(found) == {
        "schema", "machine", "versions", "threads", "plan", "against", "models", "geometric_mean",
    }  # fmt: skip
    assert found["machine"]["cpus"] >= 1
    assert found["versions"]["onnxruntime"]
    assert (found["threads"], found["against"]) == (1, ["onnxruntime"])
    (one,) = found["models"]
    assert set(one["contestants"]) == {"lisiere", "onnxruntime"}
    assert one["contestants"]["lisiere"]["ms"]["n"] == 2
    assert one["ratio"]["median"] == pytest.approx(found["geometric_mean"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere.onnx"], 1, "nothing at nowhere.onnx"),
        (["{model}", "--against", "onnxruntime,torch"], 2, "not torch"),
        (["{model}", "--against", ","], 2, "not nothing"),
        (["{model}", "--threads", "0"], 2, "at least 1"),
        (["{model}", "--rounds", "0"], 2, "at least 1"),
        (["{model}", "--seconds", "-1"], 2, "at least 0"),
        (["{model}", "--tflite", "other.onnx=m.tflite"], 2, "one of the models"),
        (["{model}", "--tflite", "m.tflite"], 2, "MODEL=FILE"),
        (["{model}", "--tflite", "{model}=m.tflite"], 1, "no file m.tflite"),
        ([__file__], 1, "neither an .onnx file"),
    ],
)
def test_what_cannot_be_measured_is_said(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(compiled("classifier"))
    assert main(["bench", *(argument.format(model=model) for argument in arguments)]) == code
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.out == ""


def test_a_peer_that_is_asked_for_and_absent_is_an_error_that_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "from importlib import util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'openvino' else find(name, *rest)\n"
        "from lisiere.cli import main\n"
        f"sys.exit(main(['bench', {str(compiled('classifier'))!r}, '--against', 'openvino']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install openvino" in done.stderr


@pytest.mark.parametrize(
    ("figure", "code"),
    [(Figure(difference=0.5, agrees=False), 3), (Figure(absent="not compiled: because"), 1), (Figure(), 0)],
)
def test_the_exit_code_says_whether_the_compiled_model_ran_and_gave_the_answer(
    figure: Figure, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any, **__: Any) -> ModelFigures:
        peer = Figure(absent="not here")
        return ModelFigures(name="m", contestants={"lisiere": figure, "onnxruntime": peer}, reference="onnxruntime")

    monkeypatch.setattr(bench_run, "bench_model", measured)
    assert main(["bench", str(compiled("classifier")), "--against", "onnxruntime"]) == code
