"""Quantised models, as exporters write them: every operator between DequantizeLinear and QuantizeLinear."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lisiere.backends import Tensor, graph
from lisiere.backends.requirements import obstacles
from lisiere.machine import this_machine
from lisiere.models import open_package
from lisiere_compile.compiler import compile_job
from lisiere_compile.emulate import Emulator, find_emulator
from lisiere_compile.job import parse_job
from support import require

_TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}


class Quantised:
    """A model of independent branches, each with its own inputs, outputs and random weights."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self.feeds: dict[str, Tensor] = {}

    def name(self) -> str:
        return f"t{len(self._nodes) + len(self._weights) + len(self._inputs)}"

    def constant(self, value: Any) -> str:
        name = self.name()
        self._weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = self.name()
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n_{name}", **attributes))
        return name

    def input(self, shape: Sequence[int], dtype: str = "int8") -> str:
        name = self.name()
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
        self.feeds[name] = self.random.integers(low, high, shape).astype(dtype)
        return name

    def output(self, name: str, rank: int, dtype: str = "int8") -> str:
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], [None] * rank))
        return name

    def dequantised(self, name: str, scale: Any, zero: Any, dtype: str = "int8", axis: int = 1) -> str:
        parts = self.constant(np.float32(scale)), self.constant(np.asarray(zero).astype(dtype))
        return self.node("DequantizeLinear", name, *parts, axis=axis)

    def quantised(self, name: str, scale: float, zero: int, dtype: str = "int8") -> str:
        return self.node("QuantizeLinear", name, self.constant(np.float32(scale)), self.constant(np.array(zero, dtype)))

    def weights(self, shape: Sequence[int], dtype: str, zero: int, *, axis: int | None) -> tuple[str, NDArray[Any]]:
        """Random integer weights, with a scale along an axis or one for all; returns them and the scales."""
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
        numbers = self.random.integers(low, high, shape).astype(dtype)
        count = 1 if axis is None else shape[axis]
        scales = self.random.uniform(0.5, 1.5, count).astype(np.float32) / 100
        if axis is None:
            return self.dequantised(self.constant(numbers), scales[0], zero, dtype), scales
        return self.dequantised(self.constant(numbers), scales, np.full(count, zero), dtype, axis), scales

    def model(self) -> onnx.ModelProto:
        made = helper.make_graph(self._nodes, "quantised", self._inputs, self._outputs, self._weights)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        # Every shape is known, and a manifest wants those of the outputs.
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)

    def run(
        self, folder: Path, device: str = "native", **options: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
        """Compile and run the model, and ask ONNX Runtime for the same without its own fusions.

        Returns:
            What each gives, and the kernels of the artifact in order.
        """
        model = self.model()
        onnx.save(model, str(folder / "m.onnx"))
        document = {
            "CompilationJobName": "test",
            "InputConfig": {"S3Uri": "m.onnx", "Framework": "ONNX"},
            "OutputConfig": {
                "S3OutputLocation": "out",
                "TargetDevice": device,
                **({"CompilerOptions": json.dumps(options)} if options else {}),
            },
        }
        artifact = compile_job(parse_job(json.dumps(document).encode()), folder)
        package = open_package(artifact)
        assert package.manifest.neo is not None
        assert package.manifest.neo.graph is not None
        nodes = json.loads(package.file(package.manifest.neo.graph).read_bytes())["nodes"]
        kernels = [node["attrs"]["func_name"].removeprefix("lisiere_") for node in nodes if node["op"] != "null"]
        assert package.manifest.build is not None
        if obstacles(package.manifest.build, this_machine()):
            emulator = find_emulator(package.manifest.build)
            require(not isinstance(emulator, str), str(emulator))
            assert isinstance(emulator, Emulator)
            found = emulator.run(package, [self.feeds])[0]
        else:
            found = graph.load(package).run(self.feeds)
        session = ort.SessionOptions()
        session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        reference = ort.InferenceSession(str(folder / "m.onnx"), session, providers=["CPUExecutionProvider"])
        names = [one.name for one in reference.get_outputs()]
        wanted = dict(zip(names, reference.run(names, self.feeds), strict=True))
        return found, wanted, kernels
