"""ONNX operators on integers, as the same operators on real numbers between DequantizeLinear and QuantizeLinear.

That is the form in which later passes find what can be computed on integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lisiere_compile.frontends.onnx_nodes import Maker
from lisiere_compile.frontends.onnx_passes import Unfit

_MICROSOFT = "com.microsoft"


def _real(make: Maker, position: int, **attributes: Any) -> str:
    """Dequantise the input at a position, whose scale and zero point follow it."""
    x, scale, zero = make.inputs[position : position + 3]
    return make.emit("DequantizeLinear", [x, scale, *([zero] if zero else [])], **attributes)


def _quantise(make: Maker, name: str, scale: str, zero: str) -> None:
    make.finish("QuantizeLinear", [name, scale, *([zero] if zero else [])])


def _padded(make: Maker, count: int) -> None:
    make.inputs += [""] * (count - len(make.inputs))


def _convolution(make: Maker) -> bool:
    _padded(make, 9)
    x_scale, w_scale = make.value(make.inputs[1], "scale"), make.value(make.inputs[4], "scale")
    inputs = [_real(make, 0), _real(make, 3, **({"axis": 0} if w_scale.size > 1 else {}))]
    if make.inputs[8]:
        scale = make.constant((x_scale * w_scale).astype(np.float32).reshape(-1 if w_scale.size > 1 else ()))
        inputs.append(make.emit("DequantizeLinear", [make.inputs[8], scale], axis=0))
    _quantise(make, make.emit("Conv", inputs, **make.attributes), *make.inputs[6:8])
    return True


def _matrix_product(make: Maker) -> bool:
    scale = make.value(make.inputs[4], "scale")
    rows = make.value(make.inputs[1], "scale")
    if rows.size > 1 or scale.ndim > 1 or (scale.size > 1 and len(make.shape(make.inputs[3])) != 2):
        raise Unfit("has scales along other axes than the columns of its second matrix")
    right = _real(make, 3, **({"axis": 1} if scale.size > 1 else {}))
    _quantise(make, make.emit("MatMul", [_real(make, 0), right]), *make.inputs[6:8])
    return True


def _whole_convolution(make: Maker) -> bool:
    """On int32, where every sum is exact."""
    _padded(make, 4)
    inputs = []
    for position in (0, 1):
        name = make.cast(make.inputs[position], np.int32)
        if zero := make.inputs[position + 2]:
            shift = make.cast(zero, np.int32)
            if position == 1 and make.shape(zero) not in ((), (1,)):
                weights = make.shape(make.inputs[1])
                shift = make.emit("Reshape", [shift, make.numbers(weights[0], *[1] * (len(weights) - 1))])
            name = make.emit("Sub", [name, shift])
        inputs.append(name)
    make.finish("Conv", inputs, **make.attributes)
    return True


def _pair(kind: str) -> Callable[[Maker], bool]:
    def convert(make: Maker) -> bool:
        _padded(make, 8)
        _quantise(make, make.emit(kind, [_real(make, 0), _real(make, 3)]), *make.inputs[6:8])
        return True

    return convert


def _single(kind: str) -> Callable[[Maker], bool]:
    def convert(make: Maker) -> bool:
        _padded(make, 5)
        if make.attribute("channels_last", 0):
            raise Unfit("has its channels last")
        attributes = {name: value for name, value in make.attributes.items() if name != "channels_last"}
        _quantise(make, make.emit(kind, [_real(make, 0)], **attributes), *make.inputs[3:5])
        return True

    return convert


def _concatenation(make: Maker) -> bool:
    scale, zero = make.inputs[:2]
    parts = [_real(make, position) for position in range(2, len(make.inputs), 3)]
    _quantise(make, make.emit("Concat", parts, **make.attributes), scale, zero)
    return True


TABLE: dict[tuple[str, str], Callable[[Maker], bool]] = {
    ("", "ConvInteger"): _whole_convolution,
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _matrix_product,
    (_MICROSOFT, "QLinearAdd"): _pair("Add"),
    (_MICROSOFT, "QLinearMul"): _pair("Mul"),
    (_MICROSOFT, "QLinearAveragePool"): _single("AveragePool"),
    (_MICROSOFT, "QLinearGlobalAveragePool"): _single("GlobalAveragePool"),
    (_MICROSOFT, "QLinearLeakyRelu"): _single("LeakyRelu"),
    (_MICROSOFT, "QLinearSigmoid"): _single("Sigmoid"),
    (_MICROSOFT, "QLinearConcat"): _concatenation,
}
