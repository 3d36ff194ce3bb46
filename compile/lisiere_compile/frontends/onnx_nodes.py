"""A small language for rewriting one ONNX node into others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lisiere_compile.frontends.onnx_passes import Graph, Unfit


class Maker:
    """Reads a node and makes what takes its place.

    Attributes:
        graph: where it stands.
        node: the one to be replaced.
        nodes: what has been made so far.
    """

    def __init__(self, graph: Graph, node: Any) -> None:
        from onnx import helper

        self.graph, self.node = graph, node
        self.nodes: list[Any] = []
        self.inputs = list(node.input)
        self.attributes: dict[str, Any] = {one.name: helper.get_attribute_value(one) for one in node.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        value = self.attributes.get(name, default)
        return list(value) if isinstance(value, Sequence) and not isinstance(value, bytes | str) else value

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a value.

        Raises:
            Unfit: it is not known before run time.
        """
        if name not in self.graph.shapes:
            raise Unfit("has an input whose shape is known only at run time")
        return self.graph.shapes[name]

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of a value."""
        from onnx import helper

        if name in self.graph.constants:
            return self.graph.constants[name].dtype
        if not self.graph.kinds.get(name):
            raise Unfit("has an input whose element type is not known")
        dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(self.graph.kinds[name]))
        return dtype

    def kind_of(self, dtype: DTypeLike) -> int:
        """ONNX's number of an element type."""
        from onnx import helper

        return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def value(self, name: str, what: str) -> NDArray[Any]:
        """The value of an input that must be constant."""
        if name not in self.graph.constants:
            raise Unfit(f"computes its {what} at run time")
        return self.graph.constants[name]

    def optional(self, position: int, what: str) -> NDArray[Any] | None:
        """The value of an input that must be constant where it is given."""
        return (
            self.value(self.inputs[position], what) if self.inputs[position : position + 1] not in ([], [""]) else None
        )

    def used(self, name: str) -> bool:
        """Whether anything needs an output of the node."""
        return self.graph.users(name) > 0

    def constant(self, value: Any) -> str:
        """Add a constant."""
        return self.graph.constant(value)

    def numbers(self, *values: int) -> str:
        """Add a constant list of positions or sizes."""
        return self.constant(np.array(values, np.int64))

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add a node that makes given names; it bears the name of the one that it replaces."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=self.node.name, **attributes))

    def emit(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node and return what it makes."""
        name = self.graph.fresh(self.node.output[0])
        self.add(kind, inputs, [name], **attributes)
        return name

    def finish(self, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add the node that makes what the replaced one made."""
        self.add(kind, inputs, [self.node.output[0]], **attributes)

    def cast(self, name: str, dtype: DTypeLike) -> str:
        """Convert to an element type."""
        return self.emit("Cast", [name], to=self.kind_of(dtype))

    def reduce(self, kind: str, name: str, axes: list[int], keep: bool = False) -> str:
        """Reduce over axes, which became an input of ReduceSum in opset 13 and of the others in 18."""
        if self.graph.opset >= (13 if kind == "ReduceSum" else 18):
            return self.emit(kind, [name, self.numbers(*axes)], keepdims=int(keep))
        return self.emit(kind, [name], axes=axes, keepdims=int(keep))
