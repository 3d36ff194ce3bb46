"""Small TFLite models from a list of operators, and what LiteRT's interpreter makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from support import require

_TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int16": 7, "int8": 9}
_VERSIONS = {"RESHAPE": 1, "BROADCAST_TO": 2}
Tensors = dict[str, NDArray[Any]]


class T(NamedTuple):
    """A tensor; `data` makes it constant, `scale` quantised (several scales lie along `axis`)."""

    name: str
    shape: Sequence[int]
    dtype: str = "float32"
    data: NDArray[Any] | None = None
    scale: Sequence[float] = ()
    zero: Sequence[int] = (0,)
    axis: int = 0


class Op(NamedTuple):
    """An operator by its names in the schema; `options` is the class of its options without the ending."""

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: str = ""
    values: Mapping[str, Any] = {}


def constant(name: str, value: Any, dtype: str = "int32", **more: Any) -> T:
    """A constant tensor."""
    array = np.asarray(value, dtype)
    return T(name, array.shape, dtype, array, **more)


def make_tflite(tensors: Sequence[T], operators: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """Return the bytes of a `.tflite` file, or skip where there is no schema to write it by."""
    require(find_spec("ai_edge_litert"), "ai-edge-litert")
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], [schema.BufferT()], []
    graph.tensors, graph.operators = [], []
    place = {tensor.name: index for index, tensor in enumerate(tensors)}
    place[""] = -1
    for tensor in tensors:
        made = schema.TensorT()
        made.name, made.shape, made.type = tensor.name, list(tensor.shape), _TYPES[tensor.dtype]
        if tensor.data is not None:
            made.buffer = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
            model.buffers.append(buffer)
        if tensor.scale:
            quantisation = schema.QuantizationParametersT()
            quantisation.scale, quantisation.zeroPoint = list(tensor.scale), list(tensor.zero)
            quantisation.quantizedDimension = tensor.axis
            made.quantization = quantisation
        graph.tensors.append(made)
    for operator in operators:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, operator.kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        # The least that LiteRT asks for; some have other kernels only for it.
        quantised = any(tensors[place[name]].scale for name in operator.inputs if name)
        code.version = _VERSIONS.get(operator.kind, 2 if quantised else 1)
        made = schema.OperatorT()
        made.opcodeIndex = len(model.operatorCodes)
        made.inputs, made.outputs = [place[name] for name in operator.inputs], [place[n] for n in operator.outputs]
        if operator.options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, f"{operator.options}Options")
            made.builtinOptions = getattr(schema, f"{operator.options}OptionsT")()
            for name, value in operator.values.items():
                assert hasattr(made.builtinOptions, name), name
                setattr(made.builtinOptions, name, value)
        model.operatorCodes.append(code)
        graph.operators.append(made)
    graph.inputs, graph.outputs = [place[name] for name in inputs], [place[name] for name in outputs]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class LiteRt:
    """LiteRT's interpreter: `plain` are its reference kernels, otherwise what it takes by itself (XNNPACK)."""

    def __init__(self, model: bytes, plain: bool = True) -> None:
        require(find_spec("ai_edge_litert"), "ai-edge-litert")
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kind = OpResolverType.BUILTIN_REF if plain else OpResolverType.AUTO
        try:
            self._interpreter = Interpreter(model_content=model, experimental_op_resolver_type=kind)
        except ValueError:  # a few operators have one kernel, which is not called a reference
            self._interpreter = Interpreter(model_content=model)
        self._interpreter.allocate_tensors()
        self.inputs = self._interpreter.get_input_details()
        self.outputs = self._interpreter.get_output_details()

    def run(self, feed: Tensors) -> list[NDArray[Any]]:
        """Return the outputs in order."""
        for one in self.inputs:
            self._interpreter.set_tensor(one["index"], feed[one["name"]])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(one["index"]) for one in self.outputs]

    def random_feed(self, random: np.random.Generator) -> Tensors:
        """Return normal floats, or any integers."""
        feed = {}
        for one in self.inputs:
            kind = np.dtype(one["dtype"])
            if kind.kind == "f":
                feed[one["name"]] = random.normal(size=one["shape"]).astype(kind)
            elif kind.kind == "b":
                feed[one["name"]] = random.random(one["shape"]) > 0.5
            else:
                limits = np.iinfo(kind)
                low, high = (limits.min, limits.max + 1) if kind.itemsize == 1 else (0, 3)
                feed[one["name"]] = random.integers(low, high, one["shape"], kind)
        return feed
