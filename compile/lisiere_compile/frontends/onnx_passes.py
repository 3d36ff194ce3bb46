"""Passes over an ONNX model before it is imported: constants are computed, and operators put in the importer's words.

The model computes the same before and after. Quantised weights stay behind their DequantizeLinear, which later passes
look for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere.models import TensorSpec

TENSOR_MAX_BYTES = 1 << 31
# What is larger stays an operator: the constants of an artifact should not outgrow the model.
FOLD_MAX_BYTES = 64 << 20
_ROUNDS = 8
_RUN_OPSET = 22  # the last that every ONNX Runtime from 1.20 on has
_KEPT = {
    "DequantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial",
    "Bernoulli", "If", "Loop", "Scan", "Optional", "SequenceConstruct", "SequenceEmpty",
}  # fmt: skip


class Unfit(Exception):
    """An operator is used in a way that cannot be compiled; the text says which, and continues `it ...`."""


class Graph:
    """An ONNX graph in a form that passes can change.

    Attributes:
        nodes: in an order that computes inputs before outputs.
        constants: name -> value.
        shapes, kinds: name -> static shape and ONNX element type, where they are known.
        opset: of the default domain.
        outputs: names that must stay.
    """

    def __init__(self, proto: Any, specs: Sequence[TensorSpec]) -> None:
        from onnx import numpy_helper

        self._proto = type(proto)()
        self._proto.CopyFrom(proto)
        self._specs = specs
        self.opset = max((one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), default=1)
        self.nodes: list[Any] = list(self._proto.graph.node)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self._proto.graph.initializer
        }
        self.outputs = [one.name for one in self._proto.graph.output]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, int] = {}
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)} | set(self.constants)
        self._names |= {one.name for one in self._proto.graph.input}
        self._fix_inputs()

    def _fix_inputs(self) -> None:
        """Give the inputs their static shapes, and forget shapes that were derived from others."""
        graph = self._proto.graph
        for value in list(graph.input):
            if value.name in self.constants:
                graph.input.remove(value)
        for value, spec in zip(graph.input, self._specs, strict=True):
            value.type.tensor_type.ClearField("shape")
            for size in spec.shape:
                value.type.tensor_type.shape.dim.add().dim_value = size
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        graph.ClearField("value_info")

    def fresh(self, what: str) -> str:
        """Return a name that is not in use."""
        number = len(self._names)
        while (name := f"{what}_{number}") in self._names:
            number += 1
        self._names.add(name)
        return name

    def constant(self, value: Any, what: str = "constant") -> str:
        """Add a constant and return its name."""
        name = self.fresh(what)
        self.constants[name] = np.asarray(value)
        return name

    def users(self, name: str) -> int:
        """How many nodes and outputs use a value."""
        return sum(list(node.input).count(name) for node in self.nodes) + self.outputs.count(name)

    def proto(self) -> Any:
        """Return the model as it is now, without what nobody uses."""
        from onnx import numpy_helper

        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                # A subgraph sees the names around it.
                needed.update(node.input, *(one.input for one in _inner_nodes(node)))
                kept.append(node)
        self.nodes = kept[::-1]
        graph = self._proto.graph
        graph.ClearField("node")
        graph.node.extend(self.nodes)
        graph.ClearField("initializer")
        graph.initializer.extend(
            numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in needed
        )
        return self._proto

    def infer(self) -> None:
        """Learn shapes and element types.

        Raises:
            Rejected: a tensor is larger than any that can be compiled.
        """
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.proto(), data_prop=True)
        except Exception:  # noqa: BLE001 - too large or contradictory: what is not known is not folded
            return
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            tensor = value.type.tensor_type
            self.kinds[value.name] = tensor.elem_type
            dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
            if tensor.HasField("shape") and min(dims, default=0) >= 0:
                self.shapes[value.name] = tuple(dims)
                if math.prod(dims) * 4 > TENSOR_MAX_BYTES:
                    raise Rejected(f"The tensor {value.name!r} would have the shape {dims}, which no device can hold.")
        for name, value in self.constants.items():
            self.shapes[name] = value.shape


def _inner_nodes(node: Any) -> Iterable[Any]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield inner
                yield from _inner_nodes(inner)


def prepare(proto: Any, specs: Sequence[TensorSpec]) -> tuple[Any, list[tuple[Any, str]]]:
    """Return the model in the importer's words, and the nodes that cannot be put in them with the reason for each.

    Args:
        proto: a checked onnx.ModelProto, which is not changed.
        specs: its inputs with static shapes.

    Raises:
        Rejected: a tensor is larger than any that can be compiled.
    """
    from lisiere_compile.frontends.onnx_rewrites import rewrite

    graph = Graph(proto, specs)
    problems: list[tuple[Any, str]] = []
    for _ in range(_ROUNDS):
        _constants(graph)
        _bypass(graph)
        graph.infer()
        changed = _fold(graph)
        done: list[Any] = []
        for node in graph.nodes:
            try:
                made = rewrite(graph, node)
            except Unfit as error:
                if not any(node == known for known, _ in problems):
                    problems.append((node, str(error)))
                made = None
            changed |= made is not None
            done.extend([node] if made is None else made)
        graph.nodes = done
        if not changed:
            break
    return graph.proto(), problems


def _constants(graph: Graph) -> None:
    """Constant nodes become initialisers, in whichever of their forms they come."""
    from onnx import helper, numpy_helper

    kept = []
    for node in graph.nodes:
        if node.op_type != "Constant" or node.output[0] in graph.outputs:
            kept.append(node)
            continue
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            graph.constants[node.output[0]] = numpy_helper.to_array(value)
        elif attribute.name in ("value_float", "value_floats"):
            graph.constants[node.output[0]] = np.asarray(value, np.float32)
        elif attribute.name in ("value_int", "value_ints"):
            graph.constants[node.output[0]] = np.asarray(value, np.int64)
        else:
            kept.append(node)
    graph.nodes = kept


def _bypass(graph: Graph) -> None:
    """Identity, and Dropout as it is outside of training, are left out."""
    names: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        for position, name in enumerate(node.input):
            node.input[position] = names.get(name, name)
        inner = list(_inner_nodes(node))
        for one in inner:
            for position, name in enumerate(one.input):
                one.input[position] = names.get(name, name)
        idle = node.op_type == "Identity" or (node.op_type == "Dropout" and _idle_dropout(graph, node))
        if idle and node.output[0] not in graph.outputs:
            names[node.output[0]] = node.input[0]
        elif idle:
            node.op_type = "Identity"
            del node.input[1:], node.output[1:]
            node.ClearField("attribute")
            kept.append(node)
        else:
            kept.append(node)
    graph.nodes = kept


def _idle_dropout(graph: Graph, node: Any) -> bool:
    """Whether a Dropout does nothing: not in training, and nobody asks for what it drops."""
    training = node.input[2] if len(node.input) > 2 else ""
    if training and bool(graph.constants.get(training, np.True_).any()):
        return False
    return not any(graph.users(name) for name in node.output[1:] if name)


def _fold(graph: Graph) -> bool:
    """Compute what follows from constants and from static shapes alone; say whether there was any."""
    found: dict[str, NDArray[Any]] = {}
    later, chosen = [], []
    known = set(graph.constants)
    for node in graph.nodes:
        source = graph.shapes.get(node.input[0]) if node.input else None
        if node.op_type in ("Shape", "Size") and source is not None and node.output[0] not in graph.outputs:
            found[node.output[0]] = _shape_value(node, source)
        elif _foldable(graph, node, known):
            chosen.append(node)
        else:
            later.append(node)
            continue
        known.update(node.output)
    computed = _compute(graph, chosen, found)
    if computed is None:  # the reference does not know one of them
        chosen = []
        computed = {}
        later = [node for node in graph.nodes if node.output[0] not in found]
    graph.constants.update(found)
    graph.constants.update(computed)
    graph.nodes = later
    return bool(found or chosen)


def _shape_value(node: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    if node.op_type == "Size":
        return np.array(math.prod(shape), np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end", len(shape))], np.int64)


def _foldable(graph: Graph, node: Any, known: set[str]) -> bool:
    if node.op_type in _KEPT or node.domain not in ("", "ai.onnx") or any(_inner_nodes(node)):
        return False
    if any(name and name not in known for name in node.input) or any(name in graph.outputs for name in node.output):
        return False
    if not any(node.input) and node.op_type == "Constant":
        return False
    shapes = [graph.shapes.get(name) for name in node.output if name]
    return all(shape is not None and math.prod(shape) * 8 <= FOLD_MAX_BYTES for shape in shapes)


def _compute(graph: Graph, nodes: list[Any], found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """Run nodes on constants in ONNX Runtime; None when it cannot."""
    if not nodes:
        return {}
    from onnx import helper, numpy_helper

    outputs = [name for node in nodes for name in node.output if name]
    made = set(outputs)
    inputs = {name for node in nodes for name in node.input if name and name not in made}
    values = {**graph.constants, **found}
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "constants",
            [],
            [helper.make_value_info(name, helper.make_tensor_type_proto(graph.kinds[name], None)) for name in outputs],
            [numpy_helper.from_array(values[name], name) for name in sorted(inputs)],
        ),
        opset_imports=[helper.make_opsetid("", min(graph.opset, _RUN_OPSET))],
        ir_version=10,
    )
    try:
        results = run(model, outputs)
    except Exception:  # noqa: BLE001 - its bindings raise classes of their own; the nodes then stay as they are
        return None
    return dict(zip(outputs, results, strict=True))


def run(model: Any, outputs: list[str]) -> list[Any]:
    """Run a model without inputs in ONNX Runtime."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(outputs, {}))
