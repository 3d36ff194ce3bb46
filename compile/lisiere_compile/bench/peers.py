"""The runtimes that a compiled model is measured against, each at its best for one small request at a time.

A contestant is made once, outside of what is timed: inputs are in place, outputs have buffers. Its `call` is the
shortest way to one inference that its Python interface offers to a program that wants the outputs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from lisiere.backends import Tensor
from lisiere.errors import Rejected
from lisiere_compile.frontends.onnx import first_line
from lisiere_compile.quiet import quiet

# Name of the peer -> what to install, and the module that it comes as.
PEERS = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "litert": ("ai-edge-litert", "ai_edge_litert"),
}


class Contestant(Protocol):
    """One model in one runtime, with its inputs in place."""

    def call(self) -> object:
        """Infer once."""

    def outputs(self) -> list[Tensor]:
        """Return what the last call gave, in the model's order."""

    def close(self) -> None:
        """Let go of the model."""


class OnnxRuntime:
    """ONNX Runtime on the CPU, all graph optimisations, inputs and outputs bound beforehand."""

    def __init__(self, file: Path, feeds: dict[str, Tensor], threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4
        # Workers may spin within a run, which makes them fast, but not on into another contestant's batch.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            first = self._session.run(None, feeds)
        except Exception as error:  # its bindings raise classes that they do not export
            raise Rejected(f"ONNX Runtime refuses it: {first_line(error)}") from error
        self._binding = self._session.io_binding()
        for name, value in feeds.items():
            self._binding.bind_cpu_input(name, value)
        self._results = [ort.OrtValue.ortvalue_from_numpy(value) for value in first]
        for node, value in zip(self._session.get_outputs(), self._results, strict=True):
            self._binding.bind_ortvalue_output(node.name, value)

    def call(self) -> object:
        """Infer once."""
        return self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Tensor]:
        """Return what the last call gave."""
        return [value.numpy().copy() for value in self._results]

    def close(self) -> None:
        """Let go of the session."""
        del self._binding, self._results, self._session


class OpenVino:
    """OpenVINO on the CPU, for latency, in float32 where a newer CPU would be given bfloat16."""

    def __init__(self, file: Path, feeds: dict[str, Tensor], threads: int) -> None:
        with _unreported():
            import openvino
        core = openvino.Core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,  # it would take this thread, and so every contestant, to one core
        }
        try:
            self._request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise Rejected(f"OpenVINO refuses it: {first_line(error)}") from error
        self._tensors = {name: openvino.Tensor(value, shared_memory=True) for name, value in feeds.items()}
        for name, tensor in self._tensors.items():
            self._request.set_tensor(name, tensor)
        self._results = self._request.model_outputs

    def call(self) -> object:
        """Infer once; its result copies the outputs, as fast as sharing them."""
        return self._request.infer()

    def outputs(self) -> list[Tensor]:
        """Return what the last call gave."""
        return [self._request.get_tensor(output).data.copy() for output in self._results]

    def close(self) -> None:
        """Let go of the request."""
        del self._results, self._request, self._tensors


class LiteRt:
    """LiteRT (TensorFlow Lite) with its XNNPACK delegate, inputs and outputs in its own buffers."""

    def __init__(self, file: Path, feeds: dict[str, Tensor], threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        try:
            with quiet():  # it tells of its delegate
                self._interpreter = Interpreter(model_path=str(file), num_threads=threads)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise Rejected(f"LiteRT refuses it: {first_line(error)}") from error
        details = self._interpreter.get_input_details()
        if len(details) != len(feeds):
            raise Rejected(f"{file.name} has {len(details)} inputs, but the ONNX model has {len(feeds)}.")
        for detail, (name, value) in zip(details, feeds.items(), strict=True):
            shape = tuple(int(size) for size in detail["shape"])
            if shape != value.shape or detail["dtype"] != value.dtype:
                raise Rejected(
                    f"{file.name} takes {detail['dtype'].__name__} {list(shape)} where the ONNX model takes "
                    f"{name} {value.dtype} {list(value.shape)}: it is another model."
                )
            self._interpreter.set_tensor(detail["index"], value)
        self._results = [detail["index"] for detail in self._interpreter.get_output_details()]
        self.call = self._interpreter.invoke

    def outputs(self) -> list[Tensor]:
        """Return what the last call gave."""
        return [self._interpreter.get_tensor(index) for index in self._results]

    def close(self) -> None:
        """Let go of the interpreter."""
        del self.call, self._interpreter


def missing(peer: str) -> str:
    """Return what to install for a peer that is not here, or nothing when it is."""
    import importlib.util

    package, module = PEERS[peer]
    if importlib.util.find_spec(module) is not None:
        return ""
    return f"{peer} is not installed: `pip install {package}`, or `pip install lisiere[bench]` for all peers"


@contextmanager
def _unreported() -> Iterator[None]:
    """Hide OpenVINO's telemetry during its import, which else starts a process that reports it.

    Its tools then take the stub that they carry for this case.
    """
    name = "openvino_telemetry"
    had = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail
    try:
        yield
    finally:
        del sys.modules[name]
        if had is not None:
            sys.modules[name] = had
