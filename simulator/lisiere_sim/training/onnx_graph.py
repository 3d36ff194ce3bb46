"""Writing an ONNX file node by node, and running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

OPSET = 17
# The oldest that knows this opset, so that older runtimes load the file.
IR_VERSION = 8


class OnnxGraph:
    """Writes an ONNX file node by node: one input, one output, weights in the file."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self._name = name
        self._shape = shape
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, op: str, *inputs: str | NDArray[Any], **attributes: Any) -> str:
        """Append a node and return the name of its output. An array among the inputs becomes a constant."""
        from onnx import helper, numpy_helper

        names = []
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
                continue
            # Weights and sums are float32; what shapes and picks is int64.
            kind = np.int64 if value.dtype.kind == "i" else np.float32
            names.append(f"constant_{len(self._constants)}")
            self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, kind), names[-1]))
        output = f"{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, names, [output], name=output, **attributes))
        return output

    def save(self, file: Path, last: str, output: str, shape: tuple[int, ...]) -> None:
        """Check the graph and write it. The output of node `last` becomes `output`; the input is called `input`."""
        import onnx
        from onnx import TensorProto, checker, helper

        for node in self._nodes:
            node.output[:] = [output if name == last else name for name in node.output]
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self._shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self._constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="lisiere",
        )
        checker.check_model(model, full_check=True)
        onnx.save(model, file)


def predict(file: Path, inputs: Array) -> Array:
    """Run an ONNX file by ONNX Runtime over `inputs` [cases, *shape], a case at a time; return [cases, *shape]."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: case})[0] for case in inputs])
