"""TFLite's operators in ONNX's words: one small function an operator, and the table of them.

Source: the reference kernels in tensorflow/lite/kernels/internal/reference; where padding or rounding is told there
otherwise than in ONNX, the function says how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends.tflite_builder import CHANNELS_FIRST, Builder, own
from lisiere_compile.frontends.tflite_reader import Operator

Convert = Callable[[Builder, Operator], None]
_SAME, _VALID = 0, 1


def _present(op: Operator, position: int) -> bool:
    return len(op.inputs) > position and op.inputs[position] >= 0


def _shape(b: Builder, index: int) -> tuple[int, ...]:
    return b.tensor(index).shape


def _pads(op: Operator, sizes: tuple[int, int], kernel: tuple[int, int], dilations: tuple[int, int]) -> list[int]:
    """ONNX pads [top, left, bottom, right]; SAME puts the odd one behind."""
    if op.option("Padding") == _VALID:
        return [0, 0, 0, 0]
    before, after = [], []
    for size, extent, dilation, stride in zip(sizes, kernel, dilations, _strides(op), strict=True):
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return before + after


def _strides(op: Operator) -> tuple[int, int]:
    return op.option("StrideH", 1), op.option("StrideW", 1)


def _convolution(b: Builder, op: Operator) -> None:
    depthwise = op.kind == "DEPTHWISE_CONV_2D"
    x, w, y = op.inputs[0], op.inputs[1], op.outputs[0]
    _, height, width, channels = _shape(b, x)
    filters, kernel_height, kernel_width, depth = _shape(b, w)
    kernel, dilations = (
        (kernel_height, kernel_width),
        (op.option("DilationHFactor", 1), op.option("DilationWFactor", 1)),
    )
    # A depthwise filter is [1, H, W, channels x multiplier], others are [filters, H, W, channels of a group].
    inputs = [b.real(x, CHANNELS_FIRST), b.real(w, (3, 0, 1, 2) if depthwise else CHANNELS_FIRST)]
    if depthwise and filters != 1:
        raise Rejected("a depthwise filter has a first dimension other than 1.")
    if _present(op, 2):
        inputs.append(b.real(op.inputs[2]))
    name = b.emit(
        "Conv",
        inputs,
        kernel_shape=kernel,
        strides=_strides(op),
        dilations=dilations,
        pads=_pads(op, (height, width), kernel, dilations),
        group=channels if depthwise else channels // depth,
    )
    b.put_real(y, b.activated(name, op.option("FusedActivationFunction"), y), CHANNELS_FIRST)


def _transposed_convolution(b: Builder, op: Operator) -> None:
    w, x, y = op.inputs[1], op.inputs[2], op.outputs[0]
    kernel = _shape(b, w)[1:3]
    # The padding is that of the convolution whose gradient this is: from the output's size to the input's.
    before, after, extra = [], [], []
    for size, made, extent, stride in zip(_shape(b, x)[1:3], _shape(b, y)[1:3], kernel, _strides(op), strict=True):
        total = (size - 1) * stride + extent - made
        before.append(max(total, 0) // 2)
        after.append(max(total, 0) - max(total, 0) // 2)
        extra.append(max(-total, 0))
    inputs = [b.real(x, CHANNELS_FIRST), b.real(w, (3, 0, 1, 2))]
    if _present(op, 3):
        inputs.append(b.real(op.inputs[3]))
    name = b.emit(
        "ConvTranspose", inputs, kernel_shape=kernel, strides=_strides(op), pads=before + after, output_padding=extra
    )
    b.put_real(y, b.activated(name, op.option("FusedActivationFunction"), y), CHANNELS_FIRST)


def _fully_connected(b: Builder, op: Operator) -> None:
    if op.option("WeightsFormat") != 0:
        raise Rejected("its weights are shuffled; convert the model without that.")
    x, w, y = op.inputs[0], op.inputs[1], op.outputs[0]
    filters, depth = _shape(b, w)
    if b.tensor(x).quantisation is None:
        # Behind DequantizeLinear, ONNX Runtime would round the activations to integers as well.
        b.fold_real(w)
    rows = math.prod(_shape(b, x)) // depth
    flat = _shape(b, x) == (rows, depth)
    value = b.real(x) if flat else _dequantised_as(b, x, (rows, depth))
    name = b.emit("MatMul", [value, b.real(w, (1, 0))])
    if _present(op, 2):
        name = b.emit("Add", [name, b.real(op.inputs[2])])
    name = b.activated(name, op.option("FusedActivationFunction"), y)
    if _shape(b, y) != (rows, filters):
        name = b.reshape(name, _shape(b, y))
    b.put_real(y, name)


def _dequantised_as(b: Builder, index: int, shape: tuple[int, ...]) -> str:
    """A tensor in another shape; it is reshaped as integers, so that the operator still stands beside its QDQ."""
    return b.dequantised(b.reshape(b.stored(index, own(len(_shape(b, index)))), shape), index)


def _pool(kind: str) -> Convert:
    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        _, height, width, _ = _shape(b, x)
        kernel = (op.option("FilterHeight"), op.option("FilterWidth"))
        # The largest of integers is the integer of the largest.
        plain = kind == "MaxPool" and b.same_scale(x, y) and not op.option("FusedActivationFunction")
        value = b.stored(x, CHANNELS_FIRST) if plain else b.real(x, CHANNELS_FIRST)
        name = b.emit(
            kind,
            [value],
            kernel_shape=kernel,
            strides=_strides(op),
            pads=_pads(op, (height, width), kernel, (1, 1)),
        )
        if plain:
            b.put(y, name, CHANNELS_FIRST)
        else:
            b.put_real(y, b.activated(name, op.option("FusedActivationFunction"), y), CHANNELS_FIRST)

    return convert


def _elementwise(kind: str, fused: bool = False) -> Convert:
    """An operator without attributes whose inputs broadcast."""

    def convert(b: Builder, op: Operator) -> None:
        y = op.outputs[0]
        form = b.common_form(op.inputs)
        name = b.emit(kind, [_operand(b, index, form) for index in op.inputs])
        if fused:
            name = b.activated(name, op.option("FusedActivationFunction"), y)
        b.put_real(y, name, form)

    return convert


def _operand(b: Builder, index: int, form: tuple[int, ...]) -> str:
    short = b.constant(index) is None and len(_shape(b, index)) < len(form)
    moved = form != own(len(form)) or b.constant(index) is None
    return b.real(index, None if short else form if moved else own(len(_shape(b, index))))


def _activation(make: Callable[[Builder, str, Operator], str]) -> Convert:
    """One number in, one out, whatever the form."""

    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        b.put_real(y, make(b, b.real(x), op), b.form(x))

    return convert


def _clip(low: float, high: float | None) -> Convert:
    return _activation(lambda b, x, op: b.clipped(x, low, high, op.outputs[0]))


def _hard_swish(b: Builder, x: str, _op: Operator) -> str:
    return b.emit("Mul", [x, b.emit("HardSigmoid", [x], alpha=1 / 6, beta=0.5)])


def _gelu(b: Builder, x: str, op: Operator) -> str:
    if op.option("Approximate"):
        cube = b.emit("Mul", [b.emit("Mul", [b.emit("Mul", [x, x]), x]), b.scalar(0.044715)])
        inner = b.emit("Tanh", [b.emit("Mul", [b.emit("Add", [x, cube]), b.scalar(math.sqrt(2 / math.pi))])])
    else:
        inner = b.emit("Erf", [b.emit("Mul", [x, b.scalar(math.sqrt(0.5))])])
    return b.emit("Mul", [b.emit("Mul", [x, b.scalar(0.5)]), b.emit("Add", [inner, b.scalar(1.0)])])


def _softmax(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    form, name = b.form(x), b.real(x)
    beta = float(op.option("Beta", 1.0))
    if beta != 1.0:
        name = b.emit("Mul", [name, b.scalar(beta)])
    b.put_real(y, b.emit("Softmax", [name], axis=form.index(len(form) - 1)), form)


def _log_softmax(b: Builder, x: str, op: Operator) -> str:
    form = b.form(op.inputs[0])
    return b.emit("LogSoftmax", [x], axis=form.index(len(form) - 1))


def _prelu(b: Builder, op: Operator) -> None:
    form = b.common_form(op.inputs)
    b.put_real(op.outputs[0], b.emit("PRelu", [_operand(b, index, form) for index in op.inputs]), form)


def _l2_normalisation(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    form, name = b.form(x), b.real(x)
    axis = form.index(len(form) - 1)
    total = b.emit("ReduceSum", [b.emit("Mul", [name, name]), b.numbers(axis)], keepdims=1)
    norm = b.emit("Sqrt", [b.emit("Max", [total, b.scalar(1e-6)])])
    b.put_real(y, b.activated(b.emit("Div", [name, norm]), op.option("FusedActivationFunction"), y), form)


def _reduce(kind: str) -> Convert:
    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        rank = len(_shape(b, x))
        axes = sorted({int(axis) % rank for axis in b.known(op.inputs[1], "list of axes").reshape(-1)})
        keep, form = bool(op.option("KeepDims")), b.form(x)
        left = [axis for axis in form if axis not in axes]
        if not keep and left != sorted(left):
            form = own(rank)
        moved = sorted(form.index(axis) for axis in axes)
        if kind == "ReduceSum":  # the first whose axes became an input
            name = b.emit(kind, [b.real(x, form), b.numbers(*moved)], keepdims=int(keep))
        else:
            name = b.emit(kind, [b.real(x, form)], axes=moved, keepdims=int(keep))
        b.put_real(y, name, form if keep else None)

    return convert


def _arg(kind: str) -> Convert:
    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        rank = len(_shape(b, x))
        axis = int(b.known(op.inputs[1], "axis").reshape(-1)[0]) % rank
        name = b.emit(kind, [b.stored(x, own(rank))], axis=axis, keepdims=0)
        b.put(y, name if b.tensor(y).dtype == "int64" else b.emit("Cast", [name], to=6))

    return convert


def _batch_matmul(b: Builder, op: Operator) -> None:
    x, w, y = op.inputs[0], op.inputs[1], op.outputs[0]

    def side(index: int, turned: bool) -> str:
        axes = own(len(_shape(b, index)))
        return b.real(index, (*axes[:-2], axes[-1], axes[-2]) if turned else axes)

    b.put_real(y, b.emit("MatMul", [side(x, op.option("AdjX")), side(w, op.option("AdjY"))]))


def _resize(mode: str) -> Convert:
    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        aligned, half = op.option("AlignCorners"), op.option("HalfPixelCenters")
        where = "align_corners" if aligned else "half_pixel" if half else "asymmetric"
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": where}
        if mode == "nearest":
            # TFLite takes floor((x + 0.5) * scale), which is round_prefer_ceil of ONNX's (x + 0.5) * scale - 0.5.
            attributes["nearest_mode"] = "round_prefer_ceil" if aligned or half else "floor"
        sizes = [_shape(b, y)[axis] for axis in CHANNELS_FIRST]
        name = b.emit("Resize", [b.real(x, CHANNELS_FIRST), "", "", b.numbers(*sizes)], **attributes)
        b.put_real(y, name, CHANNELS_FIRST)

    return convert


TABLE: dict[str, Convert] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "TRANSPOSE_CONV": _transposed_convolution,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "ADD": _elementwise("Add", fused=True),
    "SUB": _elementwise("Sub", fused=True),
    "MUL": _elementwise("Mul", fused=True),
    "DIV": _elementwise("Div", fused=True),
    "ADD_N": _elementwise("Sum"),
    "POW": _elementwise("Pow"),
    "MAXIMUM": _elementwise("Max"),
    "MINIMUM": _elementwise("Min"),
    "ABS": _elementwise("Abs"),
    "CEIL": _elementwise("Ceil"),
    "COS": _elementwise("Cos"),
    "EXP": _elementwise("Exp"),
    "FLOOR": _elementwise("Floor"),
    "LOG": _elementwise("Log"),
    "LOGISTIC": _elementwise("Sigmoid"),
    "NEG": _elementwise("Neg"),
    "ROUND": _elementwise("Round"),
    "SIN": _elementwise("Sin"),
    "SQRT": _elementwise("Sqrt"),
    "TANH": _elementwise("Tanh"),
    "EQUAL": _elementwise("Equal"),
    "GREATER": _elementwise("Greater"),
    "GREATER_EQUAL": _elementwise("GreaterOrEqual"),
    "LESS": _elementwise("Less"),
    "LESS_EQUAL": _elementwise("LessOrEqual"),
    "LOGICAL_AND": _elementwise("And"),
    "LOGICAL_NOT": _elementwise("Not"),
    "LOGICAL_OR": _elementwise("Or"),
    "SELECT_V2": _elementwise("Where"),
    "PRELU": _prelu,
    "RELU": _clip(0.0, None),
    "RELU6": _clip(0.0, 6.0),
    "RELU_0_TO_1": _clip(0.0, 1.0),
    "RELU_N1_TO_1": _clip(-1.0, 1.0),
    "ELU": _activation(lambda b, x, _op: b.emit("Elu", [x])),
    "GELU": _activation(_gelu),
    "HARD_SWISH": _activation(_hard_swish),
    "LEAKY_RELU": _activation(lambda b, x, op: b.emit("LeakyRelu", [x], alpha=float(op.option("Alpha")))),
    "LOG_SOFTMAX": _activation(_log_softmax),
    "RSQRT": _activation(lambda b, x, _op: b.emit("Reciprocal", [b.emit("Sqrt", [x])])),
    "SQUARE": _activation(lambda b, x, _op: b.emit("Mul", [x, x])),
    "SOFTMAX": _softmax,
    "L2_NORMALIZATION": _l2_normalisation,
    "MEAN": _reduce("ReduceMean"),
    "SUM": _reduce("ReduceSum"),
    "REDUCE_MAX": _reduce("ReduceMax"),
    "REDUCE_MIN": _reduce("ReduceMin"),
    "REDUCE_PROD": _reduce("ReduceProd"),
    "ARG_MAX": _arg("ArgMax"),
    "ARG_MIN": _arg("ArgMin"),
    "RESIZE_BILINEAR": _resize("linear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("nearest"),
}
