"""Tiny model packages, made in a moment: random weights, right shapes, golden vectors by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from lisiere.models import Manifest, TensorSpec, write_manifest
from lisiere.models.manifest import Anomaly, Classification, Forecasting, Golden, ImageInput, WindowInput

LABELS = ("ash", "beech", "oak")


def classifier(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    """A package that classifies 1x3x8x8 images into three trees; `changes` go into its manifest."""
    rng = np.random.default_rng(1)
    conv = rng.normal(0, 0.4, (4, 3, 3, 3)).astype(np.float32)
    dense = rng.normal(0, 0.4, (4, len(LABELS))).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "conv"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense"], ["scores"]),
    ]
    manifest = Manifest(
        schema="lisiere.model/1",
        name=name,
        version="1.0.0",
        inputs=(TensorSpec(name="image", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="scores", shape=(1, len(LABELS))),),
        input=ImageInput(scale=(1 / 255,)),
        task=Classification(labels="labels.txt", scores="softmax"),
        files={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return _package(folder, manifest, nodes, {"conv": conv, "dense": dense}, changes)


def forecaster(folder: Path, name: str = "tide", length: int = 6, horizon: int = 2, **changes: Any) -> Path:
    """A package that forecasts a channel `level`: a window of rows a second apart to three quantiles."""
    weights = np.zeros((length, horizon * 3), np.float32)
    weights[-1] = 1  # the last value, for ever
    bias = np.tile(np.asarray([-1, 0, 1], np.float32), horizon)
    nodes = [
        helper.make_node("Flatten", ["window"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["steps"]),
        helper.make_node("Reshape", ["steps", "shape"], ["quantiles"]),
    ]
    manifest = Manifest(
        schema="lisiere.model/1",
        name=name,
        version="1.0.0",
        inputs=(TensorSpec(name="window", shape=(1, length, 1)),),
        outputs=(TensorSpec(name="quantiles", shape=(1, horizon, 3)),),
        input=WindowInput(channels=("level",), length=length, step_s=1.0, max_gap=2),
        task=Forecasting(horizon=horizon, quantiles=(0.1, 0.5, 0.9), channel="level", unit="m"),
        files={},
    )
    shape = np.asarray([1, horizon, 3], np.int64)
    return _package(folder, manifest, nodes, {"weights": weights, "bias": bias, "shape": shape}, changes)


def detector(folder: Path, name: str = "hum", length: int = 4, threshold: float = 1.0, **changes: Any) -> Path:
    """A package that scores a channel `vibration`: the mean square of a window of rows 0.1 s apart."""
    nodes = [
        helper.make_node("Mul", ["window", "window"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["score"]),
    ]
    manifest = Manifest(
        schema="lisiere.model/1",
        name=name,
        version="1.0.0",
        inputs=(TensorSpec(name="window", shape=(1, length, 1)),),
        outputs=(TensorSpec(name="score", shape=(1, 1)),),
        input=WindowInput(channels=("vibration",), length=length, step_s=0.1, stride=length),
        task=Anomaly(threshold=threshold),
        files={},
    )
    return _package(folder, manifest, nodes, {"shape": np.asarray([1, 1], np.int64)}, changes)


def _package(
    folder: Path, manifest: Manifest, nodes: list[Any], weights: dict[str, Any], changes: dict[str, Any]
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given, made = manifest.inputs[0], manifest.outputs[0]
    graph = helper.make_graph(
        nodes,
        manifest.name,
        [helper.make_tensor_value_info(given.name, TensorProto.FLOAT, given.shape)],
        [helper.make_tensor_value_info(made.name, TensorProto.FLOAT, made.shape)],
        [numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    cases = np.random.default_rng(2).normal(0, 1, (4, *given.shape)).astype(np.float32)
    answers = np.stack([session.run(None, {given.name: case})[0] for case in cases])
    vectors: dict[str, Any] = {f"inputs/{given.name}": cases, f"outputs/{made.name}": answers}
    np.savez(folder / "golden.npz", **vectors)
    manifest = msgspec.structs.replace(manifest, onnx="model.onnx", golden=Golden(file="golden.npz"))
    write_manifest(msgspec.structs.replace(manifest, **changes), folder / "model.yaml")
    return folder
