"""ONNX operators that the importer lacks or gets wrong, in terms of those that it has.

One function an operator: it returns the nodes that take its place, None when the importer does well with it as it is,
or raises `Unfit`. Source: ONNX's operator documents; the importer's faults were found by ONNX's own node tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lisiere_compile.frontends import onnx_quantised
from lisiere_compile.frontends.onnx_nodes import Maker
from lisiere_compile.frontends.onnx_passes import Graph, Unfit, run

# Positions are compared with each other for these, so that the work grows with the square.
SORT_MAX = 4096


def rewrite(graph: Graph, node: Any) -> list[Any] | None:
    """Return what takes a node's place, None to leave it.

    Raises:
        Unfit: it is used in a way that cannot be compiled.
    """
    function = TABLE.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    if function is None:
        return None
    make = Maker(graph, node)
    return make.nodes if function(make) else None


def _slice(make: Maker) -> bool:
    """By attributes, as before opset 10: what is left of each axis is gathered."""
    starts = make.attribute("starts")
    if starts is None:
        return False
    x, shape = make.inputs[0], make.shape(make.inputs[0])
    ends, axes = make.attribute("ends"), make.attribute("axes", list(range(len(starts))))
    for start, end, axis in zip(starts, ends, axes, strict=True):
        places = np.arange(shape[axis])[start:end]
        x = make.emit("Gather", [x, make.constant(places)], axis=axis % len(shape))
    make.finish("Identity", [x])
    return True


def _squeeze(make: Maker) -> bool:
    """As a Reshape, since the importer takes negative axes for positions."""
    if make.node.output[0] not in make.graph.shapes:
        return False
    make.finish("Reshape", [make.inputs[0], make.numbers(*make.shape(make.node.output[0]))])
    return True


def _training(make: Maker) -> bool:
    """Whose training form nobody deploys."""
    if make.attribute("training_mode", 0) or len([name for name in make.node.output if name and make.used(name)]) > 1:
        raise Unfit("is in training mode")
    return False


def _dropout(_make: Maker) -> bool:
    raise Unfit("is in training mode, or its mask is used")


def _layer_normalisation(make: Maker) -> bool:
    outputs = make.node.output
    if any(name and make.used(name) for name in outputs[1:]):
        raise Unfit("gives out its mean or deviation, which has no kernel")
    if len(outputs) > 1:
        make.add("LayerNormalization", make.inputs, [outputs[0]], **make.attributes)
        return True
    return False


def _is_infinite(make: Maker) -> bool:
    if make.attribute("detect_positive", 1) and make.attribute("detect_negative", 1):
        return False
    x, kind = make.inputs[0], make.dtype(make.inputs[0])
    sign = 1 if make.attribute("detect_positive", 1) else -1
    make.finish("Equal", [x, make.constant(np.array(sign * np.inf, kind))])
    return True


def _roi_align(make: Maker) -> bool:
    if make.attribute("mode", b"avg") != b"avg":
        raise Unfit("takes the maximum, which has no kernel")
    return False


def _space_to_depth(make: Maker) -> bool:
    if make.attribute("mode", b"DCR") != b"DCR":
        raise Unfit("orders by columns and rows first (CRD), which has no kernel")
    return False


def _bit_shift(make: Maker) -> bool:
    if make.dtype(make.inputs[0]).kind != "u":
        raise Unfit("shifts signed numbers, which ONNX leaves open")
    return False


def _transposed_convolution(make: Maker) -> bool:
    wanted = make.attribute("output_shape")
    if not wanted:
        return False
    size, kernel = make.shape(make.inputs[0])[2:], make.shape(make.inputs[1])[2:]
    count = len(size)
    strides, dilations = make.attribute("strides", [1] * count), make.attribute("dilations", [1] * count)
    extra = make.attribute("output_padding", [0] * count)
    before, after = [], []
    for axis in range(count):
        whole = strides[axis] * (size[axis] - 1) + (kernel[axis] - 1) * dilations[axis] + 1 + extra[axis]
        total = whole - wanted[-count:][axis]
        if total < 0:  # it asks for more than there is: zeros behind
            extra[axis] -= total
            total = 0
        # SAME_UPPER puts the odd one behind; everything else puts it before.
        first = total // 2 if make.attribute("auto_pad", b"NOTSET") == b"SAME_UPPER" else total - total // 2
        before.append(first)
        after.append(total - first)
    attributes = {name: value for name, value in make.attributes.items() if name not in ("output_shape", "auto_pad")}
    make.finish("ConvTranspose", make.inputs, **{**attributes, "pads": before + after, "output_padding": extra})
    return True


def _upsample(make: Maker) -> bool:
    scales = make.attribute("scales")
    scales = make.value(make.inputs[1], "scales") if scales is None else np.array(scales, np.float32)
    mode = make.attribute("mode", b"nearest")
    return _as_resize(make, make.inputs[0], scales, mode=mode.decode(), coordinate_transformation_mode="asymmetric",
                      nearest_mode="floor")  # fmt: skip


def _as_resize(make: Maker, x: str, scales: Any, **attributes: Any) -> bool:
    """Resize of opset 13 and later by static sizes."""
    shape = make.shape(x)
    sizes = [math.floor(size * float(scale)) for size, scale in zip(shape, scales, strict=True)]
    if any(made != size * scale for made, size, scale in zip(sizes, shape, scales.tolist(), strict=True)):
        return _interpolated(make, x, {"scales": scales}, attributes)
    make.finish("Resize", [x, "", "", make.constant(np.array(sizes, np.int64))], **attributes)
    return True


def _resize(make: Maker) -> bool:
    x, rank = make.inputs[0], len(make.shape(make.inputs[0]))
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in make.attributes.items()}
    if make.graph.opset < 11 and len(make.inputs) == 2:
        return _as_resize(make, x, make.value(make.inputs[1], "scales"), mode=plain.get("mode", "nearest"),
                          coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    found = {name: make.optional(position, name) for name, position in (("scales", 2), ("sizes", 3))}
    given = {name: value for name, value in found.items() if value is not None and value.size}
    if len(given) != 1:
        raise Unfit("has neither scales nor sizes, or both")
    axes = plain.get("axes")
    where = plain.get("coordinate_transformation_mode", "half_pixel")
    ((name, value),) = given.items()
    exact = True
    if name == "scales" and axes is None:
        exact = all(math.floor(n * s) == n * s for n, s in zip(make.shape(x), value.tolist(), strict=True))
    odd = (
        not exact
        or axes is not None
        or bool(plain.get("antialias"))
        or bool(plain.get("exclude_outside"))
        or where == "half_pixel_symmetric"
        or plain.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    )
    if not odd:
        return False
    if where == "tf_crop_and_resize" or rank != 4:
        raise Unfit("resizes in a way that has no kernel")
    return _interpolated(make, x, given, plain)


def _interpolated(make: Maker, x: str, given: dict[str, Any], attributes: dict[str, Any]) -> bool:
    """Resizing is linear and goes axis by axis: each axis has a matrix, which is what ONNX Runtime makes of ones."""
    from onnx import helper, numpy_helper

    shape = make.shape(x)
    if len(shape) != 4:
        raise Unfit("resizes in a way that has no kernel")
    ((name, value),) = given.items()
    axes = [axis % 4 for axis in attributes.get("axes") or range(4)]
    full = [1.0] * 4 if name == "scales" else list(shape)
    for axis, one in zip(axes, value.tolist(), strict=True):
        full[axis] = one
    if name == "sizes" and (policy := attributes.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        ratios = [full[axis] / shape[axis] for axis in axes]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        for axis in axes:
            full[axis] = math.floor(shape[axis] * ratio + 0.5)
    rest = {key: one for key, one in attributes.items() if key not in ("axes", "keep_aspect_ratio_policy")}
    if full[0] != (1.0 if name == "scales" else shape[0]) or full[1] != (1.0 if name == "scales" else shape[1]):
        raise Unfit("resizes in a way that has no kernel")

    def matrix(axis: int) -> Any:
        size = shape[axis]
        ones = np.eye(size, dtype=np.float32).reshape(1, 1, size, size)
        amount = [1.0, 1.0, full[axis], 1.0] if name == "scales" else [1, 1, full[axis], size]
        tensors = {"ones": ones, "amount": np.array(amount, np.float32 if name == "scales" else np.int64)}
        inputs = ["ones", "", "amount"] if name == "scales" else ["ones", "", "", "amount"]
        graph = helper.make_graph(
            [helper.make_node("Resize", inputs, ["m"], **rest)],
            "matrix",
            [],
            [helper.make_tensor_value_info("m", 1, None)],
            [numpy_helper.from_array(tensor, key) for key, tensor in tensors.items()],
        )
        opset = [helper.make_opsetid("", min(max(make.graph.opset, 13), 19))]
        return run(helper.make_model(graph, opset_imports=opset, ir_version=8), ["m"])[0][0, 0]

    try:
        rows, columns = matrix(2), matrix(3)
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise Unfit("resizes in a way that ONNX Runtime refuses") from error
    high = make.emit("MatMul", [make.constant(rows), x])
    make.finish("MatMul", [high, make.constant(np.ascontiguousarray(columns.T))])
    return True


def _last(make: Maker, x: str, axis: int) -> tuple[str, tuple[int, ...], list[int]]:
    """Put an axis last: the tensor, its shape, and the permutation that puts it back."""
    shape = make.shape(x)
    order = [one for one in range(len(shape)) if one != axis] + [axis]
    moved = x if order == sorted(order) else make.emit("Transpose", [x], perm=order)
    return moved, tuple(shape[one] for one in order), [order.index(one) for one in range(len(shape))]


def _top_k(make: Maker) -> bool:
    """By rank: how many come before each. Then the one of each rank is summed out from among zeros."""
    x = make.inputs[0]
    count = make.attribute("k")
    count = int(count if count is not None else make.value(make.inputs[1], "k").reshape(-1)[0])
    axis = make.attribute("axis", -1) % len(make.shape(x))
    moved, shape, back = _last(make, x, axis)
    size = shape[-1]
    if size > SORT_MAX:
        raise Unfit(f"sorts {size} numbers; up to {SORT_MAX} can be")
    across = make.emit("Reshape", [moved, make.numbers(*shape[:-1], 1, size)])
    along = make.emit("Reshape", [moved, make.numbers(*shape, 1)])
    before = make.emit("Greater" if make.attribute("largest", 1) else "Less", [across, along])
    earlier = make.constant(np.tril(np.ones((size, size), np.float32), -1))
    none = make.constant(np.zeros((), np.float32))
    tied = make.emit("Where", [make.emit("Equal", [across, along]), earlier, none])
    ranks = make.reduce("ReduceSum", make.emit("Add", [make.cast(before, np.float32), tied]), [-1])
    wanted = make.constant(np.arange(count, dtype=np.float32).reshape(count, 1))
    chosen = make.emit("Equal", [make.emit("Reshape", [ranks, make.numbers(*shape[:-1], 1, size)]), wanted])
    kind = make.dtype(x)
    picked = make.emit("Where", [chosen, across, make.constant(np.zeros((), kind))])
    places = make.emit(
        "Where", [chosen, make.constant(np.arange(size, dtype=np.float32)), make.constant(np.float32(0))]
    )
    turned = back != sorted(back)
    outputs = list(make.node.output)
    for name, value, whole in ((outputs[0], picked, False), (outputs[1] if outputs[1:] else "", places, True)):
        if not name:
            continue
        value = make.reduce("ReduceSum", value, [-1])
        value = make.cast(value, np.int64) if whole else value
        make.add("Transpose" if turned else "Identity", [value], [name], **({"perm": back} if turned else {}))
    return True


def _cumulative_sum(make: Maker) -> bool:
    x = make.inputs[0]
    kind = make.dtype(x)
    axis = int(make.value(make.inputs[1], "axis").reshape(-1)[0]) % len(make.shape(x))
    moved, shape, back = _last(make, x, axis)
    size = shape[-1]
    if size > SORT_MAX:
        raise Unfit(f"sums up {size} numbers; up to {SORT_MAX} can be")
    if kind.kind != "f":
        raise Unfit("sums up integers, which has no kernel")
    ones = np.triu(np.ones((size, size), kind), int(make.attribute("exclusive", 0)))
    total = make.emit("MatMul", [moved, make.constant(ones.T.copy() if make.attribute("reverse", 0) else ones)])
    if back == sorted(back):
        make.finish("Identity", [total])
    else:
        make.finish("Transpose", [total], perm=back)
    return True


def _one_hot(make: Maker) -> bool:
    where, values = make.inputs[0], make.value(make.inputs[2], "values")
    depth = int(make.value(make.inputs[1], "depth").reshape(-1)[0])
    shape = make.shape(where)
    axis = make.attribute("axis", -1) % (len(shape) + 1)
    spread = make.emit("Reshape", [make.cast(where, np.int64), make.numbers(*shape[:axis], 1, *shape[axis:])])
    steps = np.arange(depth).reshape([depth] + [1] * (len(shape) - axis))
    hits = [make.emit("Equal", [spread, make.constant(steps - shift)]) for shift in (0, depth)]
    make.finish("Where", [make.emit("Or", hits), make.constant(values[1]), make.constant(values[0])])
    return True


def _power(make: Maker) -> bool:
    base, exponent = make.dtype(make.inputs[0]), make.dtype(make.inputs[1])
    if base == exponent and base.kind == "f":
        return False
    if base.kind == "f":
        make.finish("Pow", [make.inputs[0], make.cast(make.inputs[1], base)])
        return True
    real = [make.cast(name, np.float64) for name in make.inputs]
    power = make.emit("Pow", real)
    # Powers of integers are integers, and double precision holds them to 2^53.
    whole = make.emit("Round", [power]) if exponent.kind != "f" else power
    make.finish("Cast", [whole], to=make.kind_of(base))
    return True


def _lp_normalisation(make: Maker) -> bool:
    axis = make.attribute("axis", -1)
    norm = make.reduce("ReduceL1" if make.attribute("p", 2) == 1 else "ReduceL2", make.inputs[0], [axis], keep=True)
    zero = make.constant(np.zeros((), make.dtype(make.inputs[0])))
    one = make.constant(np.ones((), make.dtype(make.inputs[0])))
    safe = make.emit("Where", [make.emit("Equal", [norm, zero]), one, norm])
    make.finish("Div", [make.inputs[0], safe])
    return True


def _mean(make: Maker) -> bool:
    count = make.constant(np.array(len(make.inputs), make.dtype(make.inputs[0])))
    make.finish("Div", [make.emit("Sum", make.inputs), count])
    return True


def _celu(make: Maker) -> bool:
    x = make.inputs[0]
    alpha = make.constant(np.array(make.attribute("alpha", 1.0), np.float32))
    elu = make.emit("Elu", [make.emit("Div", [x, alpha])], alpha=1.0)
    # Elu(x / a) is x / a where x is positive.
    make.finish("Mul", [alpha, elu])
    return True


def _quantised(make: Maker) -> bool:
    if make.attribute("block_size", 0):
        raise Unfit("has scales for blocks, which has no kernel")
    return False


def _attention(make: Maker) -> bool:
    if make.node.domain in ("", "ai.onnx"):
        raise Unfit("is of an opset after 21; export the model with opset 21 or earlier")
    return False


TABLE: dict[tuple[str, str], Callable[[Maker], bool]] = {
    ("", "Attention"): _attention,
    ("", "BatchNormalization"): _training,
    ("", "BitShift"): _bit_shift,
    ("", "Celu"): _celu,
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "CumSum"): _cumulative_sum,
    ("", "DequantizeLinear"): _quantised,
    ("", "QuantizeLinear"): _quantised,
    ("", "Dropout"): _dropout,
    ("", "IsInf"): _is_infinite,
    ("", "LayerNormalization"): _layer_normalisation,
    ("", "LpNormalization"): _lp_normalisation,
    ("", "Mean"): _mean,
    ("", "OneHot"): _one_hot,
    ("", "Pow"): _power,
    ("", "Resize"): _resize,
    ("", "RoiAlign"): _roi_align,
    ("", "Slice"): _slice,
    ("", "Squeeze"): _squeeze,
    ("", "SpaceToDepth"): _space_to_depth,
    ("", "TopK"): _top_k,
    ("", "Upsample"): _upsample,
    **onnx_quantised.TABLE,
}
