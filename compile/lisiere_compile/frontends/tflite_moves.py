"""TFLite's operators that compute nothing: they move, cut, join, pad or store numbers otherwise.

Where input and output mean the same numbers by the same integers, the integers themselves are moved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lisiere.errors import Rejected
from lisiere_compile.frontends.tflite_builder import CHANNELS_FIRST, Builder, Form, own
from lisiere_compile.frontends.tflite_reader import Operator

Convert = Callable[[Builder, Operator], None]


def _shape(b: Builder, index: int) -> tuple[int, ...]:
    return b.tensor(index).shape


def _take(b: Builder, source: int, target: int, form: Form) -> str:
    return b.stored(source, form) if b.same_scale(source, target) else b.real(source, form)


def _give(b: Builder, source: int, target: int, name: str, form: Form | None = None) -> None:
    (b.put if b.same_scale(source, target) else b.put_real)(target, name, form)


def _reshape(b: Builder, op: Operator) -> None:
    """RESHAPE, SQUEEZE and EXPAND_DIMS: the file says the new shape of the output itself."""
    x, y = op.inputs[0], op.outputs[0]
    value = b.constant(x)
    if value is not None and b.tensor(x).quantisation is None:
        b.fold(y, value.reshape(_shape(b, y)))
        return
    form = b.form(x)
    large = [axis for axis in form if _shape(b, x)[axis] != 1]
    if large != sorted(large):  # else all elements lie in the same order in that form
        form = own(len(form))
    _give(b, x, y, b.reshape(_take(b, x, y, form), _shape(b, y)))


def _transpose(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    axes = [int(axis) for axis in b.known(op.inputs[1], "permutation")]
    form = b.form(x)
    # What lies there already is the output in another form: nothing need move until someone asks for another.
    if sorted(axes) != list(range(len(form))):
        raise Rejected("its permutation is none.")
    if b.constant(x) is None and not b.is_input(x):
        _give(b, x, y, _take(b, x, y, form), tuple(axes.index(axis) for axis in form))
        return
    _give(b, x, y, b.emit("Transpose", [_take(b, x, y, own(len(axes)))], perm=axes))


def _pad(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    pads = b.known(op.inputs[1], "padding").astype(np.int64)
    if pads.shape != (len(_shape(b, x)), 2) or (pads < 0).any():
        raise Rejected("its padding does not fit its input.")
    form = b.form(x)
    amounts = b.numbers(*(int(pads[axis, side]) for side in (0, 1) for axis in form))
    plain = b.same_scale(x, y)
    inputs = [_take(b, x, y, form), amounts]
    if op.kind == "MIRROR_PAD":
        if op.option("Mode") != 0:
            raise Rejected("it mirrors the edge too (SYMMETRIC), which ONNX cannot say.")
        name = b.emit("Pad", inputs, mode="reflect")
    else:
        quantised = b.tensor(x).quantisation
        if len(op.inputs) > 2:
            given = b.known(op.inputs[2], "value of the padding").reshape(())
            if quantised is not None and not plain:
                raise Rejected("it pads quantised numbers and changes their scale.")
            value = given
        else:
            zero = int(quantised.zero_points[0]) if quantised is not None and plain else 0
            value = np.array(zero, b.tensor(x).dtype if plain or quantised is None else np.float32)
        name = b.emit("Pad", [*inputs, b.weight(value)])
    _give(b, x, y, name, form)


def _concatenation(b: Builder, op: Operator) -> None:
    y = op.outputs[0]
    rank = len(_shape(b, y))
    form = b.common_form(op.inputs)
    axis = form.index(op.option("Axis") % rank)
    function = op.option("FusedActivationFunction")
    plain = function == 0 and all(b.same_scale(index, y) for index in op.inputs)
    name = b.emit("Concat", [(b.stored if plain else b.real)(index, form) for index in op.inputs], axis=axis)
    if plain:
        b.put(y, name, form)
    else:
        b.put_real(y, b.activated(name, function, y), form)


def _pack(b: Builder, op: Operator) -> None:
    y = op.outputs[0]
    axis = op.option("Axis") % len(_shape(b, y))
    shape = [1 if index == axis else size for index, size in enumerate(_shape(b, y))]
    if all(b.constant(index) is not None for index in op.inputs) and b.tensor(y).quantisation is None:
        b.fold(y, np.stack([b.known(index, "input") for index in op.inputs], axis))
        return
    parts = [b.reshape(b.stored(index, own(len(_shape(b, index)))), shape) for index in op.inputs]
    if not all(b.same_scale(index, y) for index in op.inputs):
        raise Rejected("it joins quantised numbers of several scales.")
    b.put(y, b.emit("Concat", parts, axis=axis))


def _unpack(b: Builder, op: Operator) -> None:
    x = op.inputs[0]
    axis = op.option("Axis") % len(_shape(b, x))
    _split_into(b, x, op.outputs, axis, [1] * len(op.outputs))


def _split(b: Builder, op: Operator) -> None:
    first = op.kind == "SPLIT"  # the axis stands before the data, and behind it in SPLIT_V
    x = op.inputs[1 if first else 0]
    axis = int(b.known(op.inputs[0 if first else 2], "axis").reshape(-1)[0]) % len(_shape(b, x))
    _split_into(b, x, op.outputs, axis, [_shape(b, y)[axis] for y in op.outputs])


def _split_into(b: Builder, x: int, outputs: tuple[int, ...], axis: int, sizes: list[int]) -> None:
    form = b.form(x)
    if len(_shape(b, outputs[0])) != len(form):
        form = own(len(form))
    if not all(b.same_scale(x, y) for y in outputs):
        raise Rejected("it splits quantised numbers into others of another scale.")
    name = b.emit("Split", [b.stored(x, form), b.numbers(*sizes)], count=len(outputs), axis=form.index(axis))
    for number, y in enumerate(outputs):
        part = f"{name}_{number}" if number else name
        if len(_shape(b, y)) == len(form):
            b.put(y, part, form)
        else:
            b.put(y, b.reshape(part, _shape(b, y)))


def _slice(b: Builder, op: Operator) -> None:
    x = op.inputs[0]
    shape = _shape(b, x)
    begins = [int(one) for one in b.known(op.inputs[1], "begin")]
    sizes = [int(one) for one in b.known(op.inputs[2], "size")]
    ends = [size if count == -1 else start + count for start, count, size in zip(begins, sizes, shape, strict=True)]
    _cut(b, op, begins, ends, [1] * len(shape))


def _strided_slice(b: Builder, op: Operator) -> None:
    x = op.inputs[0]
    shape = _shape(b, x)
    if op.option("EllipsisMask") or op.option("NewAxisMask"):
        raise Rejected("it cuts with an ellipsis or a new axis.")
    begins, ends, steps = (
        [int(one) for one in b.known(index, what)]
        for index, what in zip(op.inputs[1:4], ("begin", "end", "stride"), strict=True)
    )
    if not len(begins) == len(ends) == len(steps) <= len(shape) or 0 in steps:
        raise Rejected("its begins, ends and strides do not fit its input.")
    far = 1 << 31
    for axis, step in enumerate(steps):
        if op.option("ShrinkAxisMask") >> axis & 1:
            begins[axis] %= shape[axis]
            ends[axis], steps[axis] = begins[axis] + 1, 1
            continue
        if op.option("BeginMask") >> axis & 1:
            begins[axis] = 0 if step > 0 else far
        if op.option("EndMask") >> axis & 1:
            ends[axis] = far if step > 0 else -far
    _cut(b, op, begins, ends, steps)


def _cut(b: Builder, op: Operator, begins: list[int], ends: list[int], steps: list[int]) -> None:
    x, y = op.inputs[0], op.outputs[0]
    value = b.constant(x)
    if value is not None and b.tensor(x).quantisation is None:
        cuts = tuple(slice(*one) for one in zip(begins, ends, steps, strict=True))
        b.fold(y, value[cuts].reshape(_shape(b, y)))
        return
    form = b.form(x)
    same_rank = len(_shape(b, y)) == len(form)
    if not same_rank:
        form = own(len(form))
    axes = b.numbers(*(form.index(axis) for axis in range(len(begins))))
    name = b.emit("Slice", [_take(b, x, y, form), b.numbers(*begins), b.numbers(*ends), axes, b.numbers(*steps)])
    if not same_rank:
        name = b.reshape(name, _shape(b, y))
    _give(b, x, y, name, form if same_rank else None)


def _gather(b: Builder, op: Operator) -> None:
    x, indices, y = op.inputs[0], op.inputs[1], op.outputs[0]
    if op.option("BatchDims"):
        raise Rejected("it gathers with batch dimensions.")
    axis = op.option("Axis") % len(_shape(b, x))
    form = own(len(_shape(b, x)))
    value, where = b.constant(x), b.constant(indices)
    if value is not None and where is not None and b.tensor(x).quantisation is None:
        b.fold(y, np.take(value, where, axis).reshape(_shape(b, y)))
        return
    positions = b.stored(indices, own(len(_shape(b, indices))))
    _give(b, x, y, b.emit("Gather", [_take(b, x, y, form), positions], axis=axis))


def _tile(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    form = b.form(x)
    counts = [int(one) for one in b.known(op.inputs[1], "list of multiples")]
    _give(b, x, y, b.emit("Tile", [_take(b, x, y, form), b.numbers(*(counts[axis] for axis in form))]), form)


def _broadcast(b: Builder, op: Operator) -> None:
    x, y = op.inputs[0], op.outputs[0]
    _give(b, x, y, b.emit("Expand", [_take(b, x, y, own(len(_shape(b, x)))), b.numbers(*_shape(b, y))]))


def _depth(kind: str) -> Convert:
    def convert(b: Builder, op: Operator) -> None:
        x, y = op.inputs[0], op.outputs[0]
        name = b.emit(kind, [_take(b, x, y, CHANNELS_FIRST)], blocksize=op.option("BlockSize"))
        _give(b, x, y, name, CHANNELS_FIRST)

    return convert


def _shape_of(b: Builder, op: Operator) -> None:
    y = op.outputs[0]
    b.fold(y, np.array(_shape(b, op.inputs[0]), b.tensor(y).dtype))


def _requantise(b: Builder, op: Operator) -> None:
    """QUANTIZE and DEQUANTIZE; half-precision weights behind the latter become single ones here and now."""
    x, y = op.inputs[0], op.outputs[0]
    value = b.constant(x)
    if value is not None and b.tensor(x).dtype == "float16":
        b.fold(y, value.astype(np.float32))
    elif b.tensor(x).dtype == "float16":
        b.put_real(y, b.emit("Cast", [b.stored(x)], to=1), b.form(x))
    else:
        b.put_real(y, b.real(x), b.form(x))


def _cast(b: Builder, op: Operator) -> None:
    from onnx import helper

    x, y = op.inputs[0], op.outputs[0]
    value = b.constant(x)
    if value is not None:
        b.fold(y, value.astype(b.tensor(y).dtype))
        return
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(b.tensor(y).dtype))
    b.put(y, b.emit("Cast", [b.stored(x)], to=kind), b.form(x))


TABLE: dict[str, Convert] = {
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _pad,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "GATHER": _gather,
    "TILE": _tile,
    "BROADCAST_TO": _broadcast,
    "DEPTH_TO_SPACE": _depth("DepthToSpace"),
    "SPACE_TO_DEPTH": _depth("SpaceToDepth"),
    "SHAPE": _shape_of,
    "QUANTIZE": _requantise,
    "DEQUANTIZE": _requantise,
    "CAST": _cast,
}
