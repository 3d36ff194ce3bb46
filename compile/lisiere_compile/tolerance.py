"""How far an output may be from the reference, derived from what the graph leaves open.

Float sums come out otherwise in another order, by far less than `FLOAT` of the output's largest number. A quantised
model rounds inside too, and a number that lies between two steps may go to either: what is allowed is then so many
steps of the last quantised tensor, followed to the output. Through a softmax that is not one size for all: with
all scores off by at most d, a share p stays between p / (p + (1 - p) e^2d) and p / (p + (1 - p) e^-2d).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT = 1e-4
HALF = 1e-2  # where anything is computed in float16
STEPS = 2  # of the last quantised tensor: one for the rounding before it, one for its own
# Of a quantised model's output that is computed in float after the last quantised tensor.
_QUANTISED = 2 / 127
_SHARES = {"Softmax", "Sigmoid"}
# What makes no difference larger.
_PASSES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Relu", "Clip", "Slice"} | {
    "MaxPool", "AveragePool", "GlobalAveragePool",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may differ, for one output, in its own unit.

    Attributes:
        relative: of the largest number of the output in all cases.
        absolute: whatever the number is.
        scores: how far what enters the last softmax or sigmoid may be off; 0 when there is none to allow for.
        step, zero: what one of an integer stands for, and the integer that stands for nothing.
    """

    relative: float = FLOAT
    absolute: float = 0.0
    scores: float = 0.0
    step: float = 1.0
    zero: int = 0

    @property
    def rounds(self) -> bool:
        """Whether it allows for rounding to steps, and not only for another order of float sums."""
        return self.absolute > 0 or self.scores > 0 or self.relative == _QUANTISED

    def allowed(self, wanted: NDArray[Any], largest: float) -> NDArray[np.float64]:
        """Return how far each number may be off.

        Args:
            wanted: the reference.
            largest: the largest finite magnitude of this output in all cases.
        """
        bound = np.full(wanted.shape, self.absolute + self.relative * largest, np.float64)
        if self.scores:
            share = np.clip((wanted.astype(np.float64) - self.zero) * self.step, 0.0, 1.0)
            high = share / (share + (1 - share) * np.exp(-2 * self.scores))
            low = share / (share + (1 - share) * np.exp(2 * self.scores))
            bound += np.maximum(high - share, share - low) / self.step
        return bound


def largest_of(values: Iterable[NDArray[Any]]) -> float:
    """Return the largest finite magnitude in some tensors; 0 when there is none."""
    return max((float(np.max(np.abs(one[np.isfinite(one)]), initial=0.0)) for one in values), default=0.0)


def output_tolerances(proto: Any) -> dict[str, Tolerance]:
    """Return the tolerance of each output of an ONNX model."""
    from onnx import TensorProto

    graph = _Graph(proto)
    found = {}
    for output in proto.graph.output:
        kind = output.type.tensor_type.elem_type
        if kind in (TensorProto.INT8, TensorProto.UINT8):
            found[output.name] = _of_integers(graph, output.name)
        elif kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            found[output.name] = _of_floats(graph, output.name)
        else:
            found[output.name] = Tolerance(relative=0.0)  # positions and counts are right or wrong
    return found


def _of_floats(graph: _Graph, name: str) -> Tolerance:
    kind, node = graph.last(name)
    if kind == "share":
        kind, deeper = graph.last(node.input[0])
        if kind == "step":
            return Tolerance(scores=STEPS * graph.scale(deeper))
    elif kind == "step":
        return Tolerance(absolute=STEPS * graph.scale(node))
    return Tolerance(relative=_QUANTISED if graph.quantised else HALF if graph.half else FLOAT)


def _of_integers(graph: _Graph, name: str) -> Tolerance:
    kind, node = graph.last(name)
    if kind != "step":
        return Tolerance(relative=0.0, absolute=STEPS if graph.quantised else 1)
    kind, share = graph.last(node.input[0])
    if kind == "share":
        kind, deeper = graph.last(share.input[0])
        if kind == "step":
            return Tolerance(0.0, STEPS, STEPS * graph.scale(deeper), graph.scale(node), graph.zero(node))
    return Tolerance(relative=0.0, absolute=STEPS)


class _Graph:
    """An ONNX graph, looked at from its outputs."""

    def __init__(self, proto: Any) -> None:
        from onnx import TensorProto

        self._constants = {one.name: one for one in proto.graph.initializer}
        self._makers = {name: node for node in proto.graph.node for name in node.output}
        operators = {node.op_type for node in proto.graph.node}
        self.quantised = any(
            one in ("QuantizeLinear", "DynamicQuantizeLinear") or one.startswith("QLinear") for one in operators
        )
        self.half = any(one.data_type == TensorProto.FLOAT16 for one in self._constants.values())

    def last(self, name: str) -> tuple[str, Any]:
        """Return what a tensor comes out of: a `step` (quantised), a `share` (softmax) or `other`, and its node."""
        while (node := self._makers.get(name)) is not None:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in self._constants:
                return "step", node
            if node.op_type in _SHARES:
                return "share", node
            if node.op_type not in _PASSES:
                break
            name = node.input[0]
        return "other", node

    def scale(self, node: Any) -> float:
        """Return what one step of a quantising node stands for; the largest, where channels differ."""
        from onnx import numpy_helper

        return float(np.max(numpy_helper.to_array(self._constants[node.input[1]])))

    def zero(self, node: Any) -> int:
        """Return the integer that stands for nothing."""
        from onnx import numpy_helper

        held = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        return int(np.max(numpy_helper.to_array(held))) if held is not None else 0
