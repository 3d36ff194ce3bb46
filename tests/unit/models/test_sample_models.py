"""The model packages of this repository: what is shipped is whole, and is as good as it says."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lisiere.errors import Rejected
from lisiere.models import Package, open_package
from lisiere.values import Reading
from lisiere.windows import WindowBuilder
from support import REPOSITORY, require

MODELS = REPOSITORY / "models"
NAMES = ("co2", "digits", "pump")
# What the compiler's ONNX front end is known to take.
# fmt: off
OPERATORS = frozenset({
    "Add", "Concat", "Conv", "Div", "Flatten", "Gemm", "GlobalAveragePool", "Log", "MatMul",
    "MaxPool", "Mul", "ReduceMean", "Relu", "Reshape", "Slice", "Softplus", "Sqrt", "Sub", "Tanh",
})
# fmt: on
MAX_BYTES = 300_000


def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) is not None for module in modules)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """Each train.py as a module, and what they share; none of them is part of the distribution."""
    require(installed("onnxruntime", "cv2"), "ONNX Runtime and OpenCV")
    path = list(sys.path)
    modules = {name: load(name) for name in NAMES}
    yield {**modules, "training": sys.modules["training"]}
    sys.path[:] = path
    del sys.modules["training"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"train_{name}", MODELS / name / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def needs_the_record() -> None:
    require(installed("statsmodels"), "statsmodels, which has the CO2 record")


@pytest.mark.parametrize("name", NAMES)
def test_the_package_is_what_its_manifest_says(name: str) -> None:
    package = open_package(MODELS / name)
    assert package.manifest.name == name
    assert package.manifest.data is not None
    assert package.manifest.figures["held_out"]
    assert package.manifest.inputs[0].name == "input"
    assert (MODELS / name / "model.onnx").stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_one_that_older_runtimes_and_the_compiler_take(name: str) -> None:
    require(installed("onnx"), "onnx")
    import onnx

    model = onnx.load(MODELS / name / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 9
    assert [entry.version for entry in model.opset_import] == [17]
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("name", NAMES)
def test_golden_vectors_hold(name: str, scripts: dict[str, Any]) -> None:
    package = open_package(MODELS / name)
    golden = package.manifest.golden
    assert golden is not None
    assert package.manifest.onnx is not None
    with np.load(package.file(golden.file)) as vectors:
        inputs = vectors["inputs/input"]
        outputs = vectors[f"outputs/{package.manifest.outputs[0].name}"]
    assert inputs.shape == (8, *package.manifest.inputs[0].shape)
    assert outputs.shape == (8, *package.manifest.outputs[0].shape)
    found = scripts["training"].predict(package.file(package.manifest.onnx), inputs)
    np.testing.assert_allclose(found, outputs, rtol=golden.rtol, atol=golden.atol)
    # The cases tell models apart: no two give the same.
    assert len(np.unique(outputs.reshape(8, -1), axis=0)) == 8


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_hold(name: str, scripts: dict[str, Any]) -> None:
    if name == "co2":
        needs_the_record()
    script = scripts[name]
    assert scripts["training"].check(MODELS / name, script.measure, script.TOLERANCE) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_has_the_main_figure(name: str) -> None:
    figures = open_package(MODELS / name).manifest.figures["held_out"]
    main = {
        "digits": lambda: figures["accuracy"],
        "co2": lambda: figures["model"]["mae_ppmv"],
        "pump": lambda: figures["bearing"]["roc_auc"]["0.5"],
    }[name]()
    assert str(main) in (MODELS / name / "README.md").read_text(encoding="utf-8")


def test_a_figure_that_does_not_hold_is_named(scripts: dict[str, Any]) -> None:
    differences = scripts["training"].differences
    stated = {"held_out": {"accuracy": 0.98, "frames": 10, "mae": 400.0}}
    assert differences(stated, {"held_out": {"accuracy": 0.978, "frames": 10, "mae": 401.0}}, 0.005) == []
    wrong = differences(stated, {"held_out": {"accuracy": 0.90, "frames": 11, "mae": 400.0}}, 0.005)
    assert [line.split()[0] for line in wrong] == ["figures.held_out.accuracy", "figures.held_out.frames"]
    assert differences(stated, {"held_out": {"accuracy": 0.98}}, 0.005)


def test_the_command_line_checks(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training, pump = scripts["training"], scripts["pump"]
    figures = open_package(MODELS / "pump").manifest.figures
    monkeypatch.setattr(sys, "argv", ["train.py", "--check"])
    assert training.main(pump.__doc__, MODELS / "pump", pump.train, lambda *_: figures, 0.005) == 0
    assert capsys.readouterr().out == "The figures hold.\n"
    worse = figures | {"false_alarm_rate_aimed_at": 0.5}
    assert training.main(pump.__doc__, MODELS / "pump", pump.train, lambda *_: worse, 0.005) == 3
    assert "figures.false_alarm_rate_aimed_at" in capsys.readouterr().out


def test_a_quick_training_never_overwrites_the_shipped_model(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--quick"])
    pump = scripts["pump"]
    with pytest.raises(SystemExit) as stop:
        scripts["training"].main(pump.__doc__, MODELS / "pump", pump.train, pump.measure, 0.005)
    assert stop.value.code == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_training_gives_a_whole_package(name: str, scripts: dict[str, Any], tmp_path: Path) -> None:
    require(installed("jax", "optax", "onnx", "sklearn", "statsmodels"), "JAX (extra `train`)")
    package: Package = scripts[name].train(tmp_path, True)
    assert open_package(tmp_path).digest == package.digest
    shipped = {file.name for file in (MODELS / name).iterdir() if file.is_file()}
    # A model that was trained for a moment is not calibrated.
    assert {file.name for file in tmp_path.iterdir()} == shipped - {"train.py", "README.md", "calibration.scores"}


def test_digits_shares_no_original_digit_between_training_and_held_out(scripts: dict[str, Any]) -> None:
    require(installed("sklearn"), "scikit-learn, which has the digits")
    glyphs, labels = scripts["digits"].load()
    train, held = scripts["digits"].split(labels)
    assert set(train).isdisjoint(held)
    assert len(train) + len(held) == len(labels)
    # Nor the same picture under another index.
    assert {glyphs[index].tobytes() for index in train}.isdisjoint(glyphs[index].tobytes() for index in held)
    with np.load(MODELS / "digits" / "heldout.npz") as shipped:
        assert np.array_equal(shipped["index"], held)
        assert np.array_equal(shipped["glyphs"], glyphs[held])
        assert np.array_equal(shipped["labels"], labels[held])
        assert set(shipped["labels"]) == set(range(10))


def test_digits_is_right_at_least_97_times_in_a_hundred() -> None:
    figures = open_package(MODELS / "digits").manifest.figures["held_out"]
    assert figures["accuracy"] >= 0.97
    assert figures["frames"] >= 1000


def test_co2_forecasts_only_what_lies_after_its_training(scripts: dict[str, Any]) -> None:
    needs_the_record()
    co2 = scripts["co2"]
    record = co2.load()
    train, held = co2.split(record)
    assert train.last.max() + co2.HORIZON < record.cut <= held.last.min() + 1
    # No window ends in a filled gap: filling it has used what came later.
    for part in (train, held):
        assert np.isfinite(record.co2[part.last]).all()
        assert np.isfinite(part.x).all()


def test_co2_beats_both_seasonal_baselines() -> None:
    figures = open_package(MODELS / "co2").manifest.figures["held_out"]
    for baseline in ("seasonal_naive", "seasonal_naive_with_drift"):
        assert figures["model"]["mae_ppmv"] < 0.8 * figures[baseline]["mae_ppmv"]
        assert figures["model"]["pinball_ppmv"] < 0.8 * figures[baseline]["pinball_ppmv"]
    assert 0.7 < figures["model"]["coverage_80"] < 0.9


def test_co2_quantiles_never_cross_and_follow_level_and_unit(scripts: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    windows = rng.normal(0, 1, (20, 1, 104, 1)).cumsum(axis=2).astype(np.float32)
    predict, file = scripts["training"].predict, MODELS / "co2" / "model.onnx"
    quantiles = predict(file, windows)
    assert np.all(np.diff(quantiles, axis=-1) > 0)
    assert np.allclose(predict(file, windows * 10 + 300), quantiles * 10 + 300, atol=0.05)


def test_co2_takes_a_window_that_does_not_move(scripts: dict[str, Any]) -> None:
    flat = np.full((1, 1, 104, 1), 400, np.float32)
    assert np.allclose(scripts["training"].predict(MODELS / "co2" / "model.onnx", flat), 400, atol=0.1)


def test_the_replay_file_gives_the_held_out_windows(scripts: dict[str, Any]) -> None:
    needs_the_record()
    co2 = scripts["co2"]
    _, held = co2.split(co2.load())
    builder = WindowBuilder(co2.INPUT, "replay")
    windows = []
    with (MODELS / "co2" / "holdout.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            ts = (date.fromisoformat(row["time"]) - date(1970, 1, 1)).total_seconds()
            windows += builder.add(Reading(ts, (float(row["co2"] or "nan"),), "replay"))
    assert np.array_equal(windows[0].values[:, 0], held.x[0])
    assert len(windows) >= len(held.x)


def test_pump_windows_are_the_devices(scripts: dict[str, Any]) -> None:
    pump = scripts["pump"]
    builder = WindowBuilder(pump.INPUT, "pump")
    samples = pump.Pump(7).samples(3 * pump.LENGTH)
    step = 1 / pump.RATE_HZ
    found = [
        window.values[:, 0]
        for index, value in enumerate(samples)
        for window in builder.add(Reading(1.7e9 + index * step, (float(value),), "pump"))
    ]
    assert np.array_equal(np.stack(found), pump.windows(range(7, 8), 3))


def test_pump_keeps_its_pumps_apart_and_says_that_they_are_synthetic(scripts: dict[str, Any]) -> None:
    pump = scripts["pump"]
    groups = [set(pump.TRAIN_PUMPS), set(pump.THRESHOLD_PUMPS), set(pump.HELD_OUT_PUMPS)]
    assert len(set.union(*groups)) == sum(len(group) for group in groups)
    manifest = open_package(MODELS / "pump").manifest
    assert manifest.data is not None
    for text in (manifest.description, manifest.data.note, (MODELS / "pump" / "README.md").read_text(encoding="utf-8")):
        assert "synthetic" in text.lower()


def test_pump_finds_severe_faults_and_seldom_cries_wolf() -> None:
    figures = open_package(MODELS / "pump").manifest.figures["held_out"]
    assert figures["false_alarm_rate"] <= 0.003
    for fault in ("bearing", "imbalance", "cavitation"):
        assert figures[fault]["detection_rate"]["1.0"] > 0.8
        assert figures[fault]["roc_auc"]["1.0"] > 0.95


def test_a_changed_weight_is_refused(tmp_path: Path) -> None:
    for file in (MODELS / "pump").iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    body = bytearray((tmp_path / "model.onnx").read_bytes())
    body[len(body) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(body)
    with pytest.raises(Rejected, match="SHA-256"):
        open_package(tmp_path)
