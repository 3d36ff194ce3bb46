"""The models that are made here, as LiteRT takes them: batch normalisations folded, activations fused, channels last.

It is what LiteRT's own converters make of such a model, for the operators that `models` uses and no others. The
interface stays that of the ONNX model, so the first operator turns the input around, as it does in every contestant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LAST = {4: (0, 2, 3, 1), 3: (0, 2, 1)}  # rank -> channels last
Array = NDArray[Any]


def to_tflite(model: Path, to: Path) -> Path:
    """Write an ONNX model of `models` as a .tflite file."""
    proto = onnx.load(str(model))
    Converter(proto).run(to)
    return to


class Converter:
    """One model on its way; every activation of three or four dimensions is [1, height, width, channels] here."""

    def __init__(self, proto: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.graph = onnx.shape_inference.infer_shapes(proto).graph
        self.weights = {one.name: numpy_helper.to_array(one) for one in self.graph.initializer}
        values = [*self.graph.value_info, *self.graph.input, *self.graph.output]
        self.shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
        self.uses: dict[str, list[Any]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.uses.setdefault(name, []).append(node)
        self.buffers = [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []
        self.made: dict[str, int] = {}  # name of an ONNX value -> tensor
        self.done: set[str] = set()  # nodes that went into another

    def run(self, to: Path) -> None:
        """Convert node by node and write the file."""
        import flatbuffers

        given, last = self.graph.input[0].name, self.graph.output[0].name
        entry = self.tensor(self.shapes[given])
        self.made[given] = entry
        if len(self.shapes[given]) in LAST and self.graph.node[0].op_type == "Conv":
            self.made[given] = self.turned(entry, self.shapes[given])
        for node in self.graph.node:
            if node.name not in self.done:
                attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
                getattr(self, node.op_type.lower())(node, attributes)
        schema = self.schema
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = [entry], [self.made[last]]
        model = schema.ModelT()
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, []
        for number in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        to.write_bytes(bytes(builder.Output()))

    def tensor(self, shape: tuple[int, ...], array: Array | None = None, variable: bool = False) -> int:
        """Add a tensor: an activation, or a weight with its numbers."""
        one = self.schema.TensorT()
        one.shape, one.name, one.isVariable = list(shape), f"t{len(self.tensors)}", variable
        one.type = self.schema.TensorType.FLOAT32
        if array is not None:
            if array.dtype == np.int32:
                one.type = self.schema.TensorType.INT32
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
            self.buffers.append(buffer)
            one.buffer = len(self.buffers) - 1
        self.tensors.append(one)
        return len(self.tensors) - 1

    def constant(self, array: Array) -> int:
        """Add a weight."""
        array = array.astype(np.int32 if array.dtype.kind == "i" else np.float32)
        return self.tensor(array.shape, array)

    def add_operator(
        self, name: str, inputs: list[int], shape: tuple[int, ...], kind: str = "", **settings: Any
    ) -> int:
        """Add an operator and return its one output."""
        number = getattr(self.schema.BuiltinOperator, name)
        if number not in self.codes:
            self.codes.append(number)
        one = self.schema.OperatorT()
        one.opcodeIndex, one.inputs, one.outputs = self.codes.index(number), inputs, [self.tensor(shape)]
        if kind:
            one.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            one.builtinOptions = getattr(self.schema, f"{kind}T")()
            for key, value in settings.items():
                if not hasattr(one.builtinOptions, key):
                    raise AttributeError(f"{kind} has no {key}")
                setattr(one.builtinOptions, key, value)
        self.operators.append(one)
        return int(one.outputs[0])

    def shape_of(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.tensors[tensor].shape)

    def turned(self, tensor: int, shape: tuple[int, ...]) -> int:
        """Put channels last, and a height of one to what has only a width."""
        order = LAST[len(shape)]
        turned = tuple(shape[axis] for axis in order)
        made = self.add_operator("TRANSPOSE", [tensor, self.constant(np.asarray(order))], turned, "TransposeOptions")
        return made if len(shape) == 4 else self.reshaped(made, (turned[0], 1, *turned[1:]))

    def reshaped(self, tensor: int, shape: tuple[int, ...]) -> int:
        target = np.asarray(shape)
        return self.add_operator(
            "RESHAPE", [tensor, self.constant(target)], shape, "ReshapeOptions", newShape=target.astype(np.int32)
        )

    def padded(self, tensor: int, pads: list[int]) -> int:
        """Pad height and width by [top, left, bottom, right]."""
        shape = self.shape_of(tensor)
        more = np.asarray([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]])
        grown = tuple(size + int(both.sum()) for size, both in zip(shape, more, strict=True))
        return self.add_operator("PAD", [tensor, self.constant(more)], grown, "PadOptions")

    def only_use(self, name: str, *operators: str) -> Any:
        """Return the one node that takes a value, where it is of these operators."""
        uses = self.uses.get(name, [])
        return uses[0] if len(uses) == 1 and uses[0].op_type in operators else None

    def activated(self, name: str) -> tuple[str, int]:
        """Return the value after the activation that follows, and the activation to fuse."""
        node = self.only_use(name, "Relu", "Clip")
        if node is None:
            return name, self.schema.ActivationFunctionType.NONE
        self.done.add(node.name)
        kinds = self.schema.ActivationFunctionType
        return node.output[0], kinds.RELU if node.op_type == "Relu" else kinds.RELU6

    def conv(self, node: Any, attributes: dict[str, Any]) -> None:
        """A convolution with its batch normalisation and its activation."""
        weight, output = self.weights[node.input[1]].astype(np.float64), node.output[0]
        bias = self.weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(weight))
        if (norm := self.only_use(output, "BatchNormalization")) is not None:
            self.done.add(norm.name)
            scale, shift, mean, variance = (self.weights[name].astype(np.float64) for name in norm.input[1:])
            factor = scale / np.sqrt(variance + 1e-5)
            weight, bias = weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), (bias - mean) * factor + shift
            output = norm.output[0]
        output, activation = self.activated(output)
        strides, dilations, pads = attributes["strides"], attributes["dilations"], attributes["pads"]
        if weight.ndim == 3:
            weight, strides, dilations = weight[:, :, None], [1, *strides], [1, *dilations]
            pads = [0, pads[0], 0, pads[1]]
        x = self.made[node.input[0]]
        same = all(
            stride == 1 and before == after and before + after == (size - 1) * dilation
            for stride, size, dilation, before, after in zip(
                strides, weight.shape[2:], dilations, pads[:2], pads[2:], strict=True
            )
        )
        if any(pads) and not same:
            x = self.padded(x, pads)
        shape = self.shape_of(x)
        rows, columns = (
            size if same else (size - (kernel - 1) * dilation - 1) // stride + 1
            for size, kernel, dilation, stride in zip(shape[1:3], weight.shape[2:], dilations, strides, strict=True)
        )
        settings = {
            "padding": self.schema.Padding.SAME if same else self.schema.Padding.VALID,
            "strideH": strides[0], "strideW": strides[1],
            "dilationHFactor": dilations[0], "dilationWFactor": dilations[1],
            "fusedActivationFunction": activation,
        }  # fmt: skip
        depthwise = attributes["group"] > 1
        name, kind = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        if depthwise:
            settings["depthMultiplier"] = 1
        packed = weight.transpose(1, 2, 3, 0) if depthwise else weight.transpose(0, 2, 3, 1)
        inputs = [x, self.constant(packed), self.constant(np.asarray(bias))]
        self.made[output] = self.add_operator(name, inputs, (shape[0], rows, columns, len(weight)), kind, **settings)

    def add(self, node: Any, _attributes: dict[str, Any]) -> None:
        """A sum of two activations with its own activation."""
        inputs = [self.made[name] for name in node.input]
        output, activation = self.activated(node.output[0])
        self.made[output] = self.add_operator(
            "ADD", inputs, self.shape_of(inputs[0]), "AddOptions", fusedActivationFunction=activation
        )

    def relu(self, node: Any, _attributes: dict[str, Any]) -> None:
        """A ReLU that nothing could take in."""
        x = self.made[node.input[0]]
        self.made[node.output[0]] = self.add_operator("RELU", [x], self.shape_of(x))

    def maxpool(self, node: Any, attributes: dict[str, Any]) -> None:
        """The largest of each window; it follows a ReLU, so padding by nought is no loss."""
        x = self.padded(self.made[node.input[0]], attributes["pads"])
        (size, _), (stride, _) = attributes["kernel_shape"], attributes["strides"]
        batch, rows, columns, channels = self.shape_of(x)
        shape = (batch, (rows - size) // stride + 1, (columns - size) // stride + 1, channels)
        self.made[node.output[0]] = self.add_operator(
            "MAX_POOL_2D", [x], shape, "Pool2DOptions", padding=self.schema.Padding.VALID, filterWidth=size,
            filterHeight=size, strideW=stride, strideH=stride,
        )  # fmt: skip

    def globalaveragepool(self, node: Any, _attributes: dict[str, Any]) -> None:
        """The mean over height and width, and the flattening behind it."""
        x = self.made[node.input[0]]
        flatten = self.only_use(node.output[0], "Flatten")
        self.done.add(flatten.name)
        batch, _, _, channels = self.shape_of(x)
        self.made[flatten.output[0]] = self.add_operator(
            "MEAN", [x, self.constant(np.asarray([1, 2]))], (batch, channels), "ReducerOptions", keepDims=False
        )

    def slice(self, node: Any, _attributes: dict[str, Any]) -> None:
        """The last steps of a series."""
        x = self.made[node.input[0]]
        start, end, _axis = (int(self.weights[name][0]) for name in node.input[1:])
        batch, rows, _, channels = self.shape_of(x)
        begin, size = np.asarray([0, 0, start, 0]), np.asarray([batch, rows, end - start, channels])
        inputs = [x, self.constant(begin), self.constant(size)]
        shape = (batch, rows, end - start, channels)
        self.made[node.output[0]] = self.add_operator("SLICE", inputs, shape, "SliceOptions")

    def flatten(self, node: Any, _attributes: dict[str, Any]) -> None:
        """Flatten a series, channel by channel as ONNX has it."""
        x = self.made[node.input[0]]
        batch, _, steps, channels = self.shape_of(x)
        order = self.constant(np.asarray([0, 1, 3, 2]))
        x = self.add_operator("TRANSPOSE", [x, order], (batch, 1, channels, steps), "TransposeOptions")
        self.made[node.output[0]] = self.reshaped(x, (batch, channels * steps))

    def gemm(self, node: Any, _attributes: dict[str, Any]) -> None:
        """A dense layer and its activation."""
        weight, bias = (self.weights[name] for name in node.input[1:])
        output, activation = self.activated(node.output[0])
        inputs = [self.made[node.input[0]], self.constant(weight), self.constant(bias)]
        self.made[output] = self.add_operator(
            "FULLY_CONNECTED", inputs, (1, len(weight)), "FullyConnectedOptions", fusedActivationFunction=activation
        )

    def transpose(self, node: Any, _attributes: dict[str, Any]) -> None:
        """Steps first, which the LSTM here does without."""
        self.made[node.output[0]] = self.made[node.input[0]]

    def lstm(self, node: Any, attributes: dict[str, Any]) -> None:
        """An LSTM over all steps, and its last state. Its own state stays from call to call, which costs nothing."""
        x = self.made[node.input[0]]
        hidden, (batch, steps, _) = attributes["hidden_size"], self.shape_of(x)
        wanted = (0, 2, 3, 1)  # ONNX: input, output, forget, cell; here: input, forget, cell, output
        gates = [np.split(self.weights[name][0], count)
                 for name, count in zip(node.input[1:4], (4, 4, 8), strict=True)]  # fmt: skip
        inputs = [x]
        inputs += [self.constant(gates[0][at]) for at in wanted]
        inputs += [self.constant(gates[1][at]) for at in wanted]
        inputs += [-1] * 3
        inputs += [self.constant(gates[2][at] + gates[2][at + 4]) for at in wanted]
        inputs += [-1] * 2
        inputs += [self.tensor((batch, hidden), variable=True), self.tensor((batch, hidden), variable=True)]
        inputs += [-1] * 4
        whole = self.add_operator(
            "UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, (batch, steps, hidden), "UnidirectionalSequenceLSTMOptions",
            fusedActivationFunction=self.schema.ActivationFunctionType.TANH, timeMajor=False,
        )  # fmt: skip
        begin, size = np.asarray([0, steps - 1, 0]), np.asarray([batch, 1, hidden])
        sliced = [whole, self.constant(begin), self.constant(size)]
        self.made[node.output[1]] = self.add_operator("SLICE", sliced, (batch, 1, hidden), "SliceOptions")

    def reshape(self, node: Any, _attributes: dict[str, Any]) -> None:
        """The same numbers in another shape."""
        shape = tuple(int(size) for size in self.weights[node.input[1]])
        self.made[node.output[0]] = self.reshaped(self.made[node.input[0]], shape)

    def identity(self, node: Any, _attributes: dict[str, Any]) -> None:
        """Another name."""
        self.made[node.output[0]] = self.made[node.input[0]]
