"""Small detectors whose outputs are known: constants, and images handed through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lisiere.models import Manifest, TensorSpec, write_manifest
from lisiere.models.manifest import Detection, ImageInput

LABELS = ("cat", "dog", "owl")
SIZE = 32  # of the input's side


def detector(
    folder: Path, head: Any, outputs: dict[str, NDArray[np.float32]], fit: Any = "letterbox", **what: Any
) -> Path:
    """A package whose model gives `outputs` for every image: the sum of its pixels, times zero, is added to each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    nodes += [helper.make_node("Add", [f"{name}_of", "nothing"], [name]) for name in outputs]
    constants = {"zero": np.zeros(1, np.float32)} | {f"{name}_of": array for name, array in outputs.items()}
    shape = (1, 3, SIZE, SIZE)
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in outputs.items()],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    return declare(folder, head, outputs, fit, **what)


def declare(folder: Path, head: Any, outputs: dict[str, NDArray[np.float32]], fit: Any, **what: Any) -> Path:
    """Write the manifest of a package whose other files are there."""
    manifest = Manifest(
        schema="lisiere.model/1",
        name="eyes",
        version="1.0.0",
        inputs=(TensorSpec(name="image", shape=(1, 3, SIZE, SIZE)),),
        outputs=tuple(TensorSpec(name=name, shape=array.shape) for name, array in outputs.items()),
        input=ImageInput(fit=fit),
        task=Detection(labels="labels.txt", head=head, **what),
        onnx="model.onnx",
        files={},
    )
    write_manifest(msgspec.structs.replace(manifest), folder / "model.yaml")
    return folder
