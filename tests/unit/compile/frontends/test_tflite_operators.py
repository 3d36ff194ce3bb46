"""Each TFLite operator, float and quantised, through the converter and ONNX Runtime, against LiteRT's kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lisiere.errors import Rejected
from lisiere_compile.frontends.tflite import OPERATORS, convert_tflite
from support import REPOSITORY
from support.tflite import LiteRt, Op, T, constant, make_tflite

SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
STRIDE = {"strideH": 2, "strideW": 2}
Case = tuple[Sequence[T], Sequence[Op], Sequence[str], Sequence[str]]


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def small(*shape: int, dtype: str = "int8") -> np.ndarray[Any, Any]:
    limits = np.iinfo(dtype)
    return np.random.default_rng(sum(shape)).integers(limits.min, limits.max, shape, dtype)


def f(name: str, *shape: int) -> T:
    return T(name, shape)


def q(name: str, *shape: int, scale: float = 0.05, zero: int = 3, dtype: str = "int8") -> T:
    return T(name, shape, dtype, None, [scale], [zero])


def weights(name: str, *shape: int) -> T:
    return T(name, shape, "float32", normal(*shape))


def one(kind: str, tensors: Sequence[T], options: str = "", **values: Any) -> Case:
    """A model of one operator: constants and inputs as they come, what begins with y are outputs."""
    outputs = [tensor.name for tensor in tensors if tensor.name.startswith("y")]
    given = [tensor for tensor in tensors if tensor.name not in outputs]
    inputs = [tensor.name for tensor in given if tensor.data is None and tensor.name]
    return tensors, [Op(kind, [tensor.name for tensor in given], outputs, options, values)], inputs, outputs


def conv(kind: str, y: T, x: T, w: T, b: T | None, **values: Any) -> Case:
    options = "DepthwiseConv2D" if kind.startswith("DEPTH") else "Conv2D"
    defaults = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": SAME}
    return one(kind, [x, w, *([b] if b else []), y], options, **{**defaults, **values})


def int_conv(kind: str, y: T, x: T, shape: Sequence[int], channels: int, axis: int, **values: Any) -> Case:
    """Weights with a scale for each channel, and a bias of their scales times the input's."""
    scales = np.linspace(0.002, 0.02, channels)
    w = T("w", shape, "int8", small(*shape), list(scales), [0] * channels, axis)
    bias = np.arange(channels, dtype=np.int32) * 20 - 50
    b = T("b", [channels], "int32", bias, list(scales * x.scale[0]), [0] * channels)
    return conv(kind, y, x, w, b, **values)


def chain() -> Case:
    """Convolution, residual sum, pool, mean, dense, softmax: forms that meet channels first, then last."""
    tensors = [
        f("x", 1, 8, 8, 4), weights("w", 4, 3, 3, 4), weights("b", 4), f("a", 1, 8, 8, 4), f("s", 1, 8, 8, 4),
        weights("k", 4), f("m", 1, 8, 8, 4), f("p", 1, 4, 4, 4), f("c", 1, 4, 4, 8), constant("axes", [1, 2]),
        f("g", 1, 8), weights("d", 5, 8), f("l", 1, 5), f("y", 1, 5), f("pool", 1, 4, 4, 4),
    ]  # fmt: skip
    pool = {"padding": SAME, "filterHeight": 2, "filterWidth": 2, **STRIDE}
    operators = [
        Op("CONV_2D", ["x", "w", "b"], ["a"], "Conv2D", {"strideH": 1, "strideW": 1, "fusedActivationFunction": RELU}),
        Op("ADD", ["a", "x"], ["s"], "Add"),
        Op("MUL", ["k", "s"], ["m"], "Mul"),
        Op("MAX_POOL_2D", ["m"], ["p"], "Pool2D", pool),
        Op("AVERAGE_POOL_2D", ["m"], ["pool"], "Pool2D", pool),
        Op("CONCATENATION", ["p", "pool"], ["c"], "Concatenation", {"axis": -1}),
        Op("MEAN", ["c", "axes"], ["g"], "Reducer"),
        Op("FULLY_CONNECTED", ["g", "d", ""], ["l"], "FullyConnected"),
        Op("SOFTMAX", ["l"], ["y"], "Softmax", {"beta": 2.0}),
    ]
    return tensors, operators, ["x"], ["y", "m"]


def shape_of() -> Case:
    """Keras writes Flatten as a subgraph of shapes, which the file's own shapes make needless."""
    tensors = [
        f("x", 1, 2, 3), T("s", [3], "int32"), constant("from", [0]), constant("to", [1]), constant("step", [1]),
        T("n", [], "int32"), constant("minus", -1), T("new", [2], "int32"), f("y", 1, 6),
    ]  # fmt: skip
    operators = [
        Op("SHAPE", ["x"], ["s"], "Shape", {"outType": 2}),
        Op("STRIDED_SLICE", ["s", "from", "to", "step"], ["n"], "StridedSlice", {"shrinkAxisMask": 1}),
        Op("PACK", ["n", "minus"], ["new"], "Pack", {"valuesCount": 2}),
        Op("RESHAPE", ["x", "new"], ["y"], "Reshape"),
    ]
    return tensors, operators, ["x"], ["y"]


def half_weights() -> Case:
    tensors = [
        f("x", 1, 6), T("h", [3, 6], "float16", normal(3, 6).astype(np.float16)), f("w", 3, 6), f("y", 1, 3)
    ]  # fmt: skip
    operators = [Op("DEQUANTIZE", ["h"], ["w"]), Op("FULLY_CONNECTED", ["x", "w", ""], ["y"], "FullyConnected")]
    return tensors, operators, ["x"], ["y"]


def passed_through() -> Case:
    """An output that is an input, and two that are the same tensor's forms."""
    tensors = [
        f("x", 1, 4, 4, 2),
        weights("w", 2, 1, 1, 2),
        f("a", 1, 4, 4, 2),
        f("y", 1, 4, 2, 4),
        constant("p", [0, 1, 3, 2]),
        weights("b", 2),
    ]
    operators = [
        Op("CONV_2D", ["x", "w", "b"], ["a"], "Conv2D", {"strideH": 1, "strideW": 1}),
        Op("TRANSPOSE", ["a", "p"], ["y"]),
    ]
    return tensors, operators, ["x"], ["x", "a", "y"]


def unary(kind: str) -> Case:
    return one(kind, [f("x", 2, 3, 4), f("y", 2, 3, 4)])


IMAGE = f("x", 1, 7, 9, 4)
CASES: dict[str, Case] = {
    "conv same": conv("CONV_2D", f("y", 1, 4, 5, 6), IMAGE, weights("w", 6, 3, 2, 4), weights("b", 6), **STRIDE),
    "conv valid dilated": conv("CONV_2D", f("y", 1, 3, 5, 6), IMAGE, weights("w", 6, 3, 3, 4), weights("b", 6),
                               padding=VALID, dilationHFactor=2, dilationWFactor=2, fusedActivationFunction=RELU6),
    "conv grouped": conv("CONV_2D", f("y", 1, 7, 9, 6), IMAGE, weights("w", 6, 3, 3, 2), weights("b", 6)),
    "depthwise": conv("DEPTHWISE_CONV_2D", f("y", 1, 4, 5, 8), IMAGE, weights("w", 1, 3, 3, 8), weights("b", 8),
                      depthMultiplier=2, fusedActivationFunction=RELU, **STRIDE),
    "int8 conv": int_conv("CONV_2D", q("y", 1, 4, 5, 6), q("x", 1, 7, 9, 4), [6, 3, 3, 4], 6, 0, **STRIDE),
    "int8 depthwise": int_conv("DEPTHWISE_CONV_2D", q("y", 1, 7, 9, 8), q("x", 1, 7, 9, 4), [1, 3, 3, 8], 8, 3,
                               depthMultiplier=2, fusedActivationFunction=RELU),
    "uint8 conv": conv("CONV_2D", q("y", 1, 7, 9, 6, scale=0.2, zero=90, dtype="uint8"),
                       q("x", 1, 7, 9, 4, zero=120, dtype="uint8"),
                       T("w", [6, 3, 3, 4], "uint8", small(6, 3, 3, 4, dtype="uint8"), [0.01], [131]),
                       T("b", [6], "int32", np.arange(6, dtype=np.int32) * 9, [0.05 * 0.01], [0]),
                       fusedActivationFunction=RELU6),
    "transposed conv": one("TRANSPOSE_CONV", [constant("s", [1, 9, 6, 5]), weights("w", 5, 3, 3, 4), f("x", 1, 5, 3, 4),
                           f("y", 1, 9, 6, 5)], "TransposeConv", padding=SAME, **STRIDE),
    "transposed conv with a gap": one("TRANSPOSE_CONV", [constant("s", [1, 6, 6, 5]), weights("w", 5, 1, 1, 4),
                                      f("x", 1, 3, 3, 4), f("y", 1, 6, 6, 5)], "TransposeConv", padding=SAME, **STRIDE),
    "dense": one("FULLY_CONNECTED", [f("x", 2, 3, 4), weights("w", 5, 12), weights("b", 5), f("y", 2, 5)],
                 "FullyConnected", fusedActivationFunction=RELU),
    "dense of rows": one("FULLY_CONNECTED", [f("x", 2, 3, 4), weights("w", 5, 4), T("b", [5], "float32", normal(5)),
                         f("y", 2, 3, 5)], "FullyConnected", keepNumDims=True),
    "int8 dense": one("FULLY_CONNECTED", [q("x", 2, 3, 4), T("w", [5, 12], "int8", small(5, 12), [0.01], [0]),
                      T("b", [5], "int32", np.arange(5, dtype=np.int32), [0.05 * 0.01], [0]), q("y", 2, 5)],
                      "FullyConnected"),
    "matmul": one("BATCH_MATMUL", [f("x", 2, 3, 4), f("z", 2, 5, 4), f("y", 2, 3, 5)], "BatchMatMul", adjY=True),
    "average pool": one("AVERAGE_POOL_2D", [IMAGE, f("y", 1, 4, 5, 4)], "Pool2D", padding=SAME, filterHeight=3,
                        filterWidth=3, **STRIDE),
    "int8 average pool": one("AVERAGE_POOL_2D", [q("x", 1, 8, 8, 4), q("y", 1, 4, 4, 4)], "Pool2D", padding=VALID,
                             filterHeight=2, filterWidth=2, **STRIDE),
    "int8 max pool": one("MAX_POOL_2D", [q("x", 1, 7, 9, 4), q("y", 1, 4, 5, 4)], "Pool2D", padding=SAME,
                         filterHeight=3, filterWidth=3, **STRIDE),
    "add": one("ADD", [f("x", 2, 3, 4), weights("k", 4), f("y", 2, 3, 4)], "Add", fusedActivationFunction=RELU6),
    "int8 add": one("ADD", [q("x", 1, 3, 4), q("z", 1, 3, 4, scale=0.02, zero=-9), q("y", 1, 3, 4, scale=0.08)], "Add"),
    "int8 sub": one("SUB", [q("x", 1, 3, 4), q("z", 1, 3, 4, scale=0.02, zero=-9), q("y", 1, 3, 4, scale=0.08)], "Sub"),
    "int8 mul": one("MUL", [q("x", 1, 3, 4), q("z", 1, 3, 4, scale=0.02), q("y", 1, 3, 4)], "Mul"),
    "sub": one("SUB", [f("x", 2, 3, 4), f("z", 1, 4), f("y", 2, 3, 4)], "Sub"),
    "div": one("DIV", [f("x", 2, 3, 4), weights("k", 1), f("y", 2, 3, 4)], "Div"),
    "maximum": one("MAXIMUM", [f("x", 2, 3, 4), f("z", 2, 3, 4), f("y", 2, 3, 4)]),
    "minimum": one("MINIMUM", [f("x", 2, 3, 4), weights("k", 4), f("y", 2, 3, 4)]),
    "int8 relu6": one("RELU6", [q("x", 1, 9, zero=0), q("y", 1, 9, zero=0)]),
    "int8 sigmoid": one("LOGISTIC", [q("x", 1, 99), q("y", 1, 99, scale=1 / 256, zero=-128)]),
    "int8 tanh": one("TANH", [q("x", 1, 99), q("y", 1, 99, scale=1 / 128, zero=0)]),
    "int8 softmax": one("SOFTMAX", [q("x", 2, 9), q("y", 2, 9, scale=1 / 256, zero=-128)], "Softmax", beta=1.0),
    "leaky": one("LEAKY_RELU", [f("x", 2, 9), f("y", 2, 9)], "LeakyRelu", alpha=0.3),
    "prelu": one("PRELU", [IMAGE, weights("k", 1, 1, 4), f("y", 1, 7, 9, 4)]),
    "gelu": one("GELU", [f("x", 2, 9), f("y", 2, 9)], "Gelu", approximate=False),
    "gelu by tanh": one("GELU", [f("x", 2, 9), f("y", 2, 9)], "Gelu", approximate=True),
    "norm": one("L2_NORMALIZATION", [f("x", 2, 9), f("y", 2, 9)], "L2Norm"),
    "mean": one("MEAN", [IMAGE, constant("axes", [1, 2]), f("y", 1, 1, 1, 4)], "Reducer", keepDims=True),
    "int8 mean": one("MEAN", [q("x", 1, 5, 5, 4), constant("axes", [-3, -2]), q("y", 1, 4)], "Reducer"),
    "sum": one("SUM", [f("x", 2, 3, 4), constant("axes", [1]), f("y", 2, 4)], "Reducer"),
    "largest": one("REDUCE_MAX", [f("x", 2, 3, 4), constant("axes", [-1]), f("y", 2, 3)], "Reducer"),
    "argmax": one("ARG_MAX", [f("x", 2, 9), constant("axis", 1), T("y", [2], "int64")], "ArgMax", outputType=4),
    "int8 argmax": one("ARG_MAX", [q("x", 2, 9), constant("axis", -1), T("y", [2], "int32")], "ArgMax", outputType=2),
    "reshape": one("RESHAPE", [f("x", 2, 3, 4), constant("s", [4, 6]), f("y", 4, 6)], "Reshape", newShape=[4, 6]),
    "int8 reshape": one("RESHAPE", [q("x", 2, 3), constant("s", [6]), q("y", 6)], "Reshape", newShape=[6]),
    "squeeze": one("SQUEEZE", [f("x", 1, 3, 1), f("y", 3)], "Squeeze", squeezeDims=[0, 2]),
    "expand": one("EXPAND_DIMS", [f("x", 3, 2), constant("a", 1), f("y", 3, 1, 2)], "ExpandDims"),
    "transpose": one("TRANSPOSE", [f("x", 2, 3, 4), constant("p", [2, 0, 1]), f("y", 4, 2, 3)]),
    "pad": one("PAD", [IMAGE, constant("p", [[0, 0], [1, 2], [0, 1], [0, 0]]), f("y", 1, 10, 10, 4)]),
    "int8 pad": one("PAD", [q("x", 1, 3), constant("p", [[0, 0], [1, 2]]), q("y", 1, 6)]),
    "pad with a value": one("PADV2", [f("x", 1, 3), constant("p", [[0, 0], [1, 2]]), constant("v", 7, "float32"),
                                      f("y", 1, 6)]),
    "mirror": one("MIRROR_PAD", [f("x", 1, 5), constant("p", [[0, 0], [1, 2]]), f("y", 1, 8)], "MirrorPad", mode=0),
    "concat": one("CONCATENATION", [f("x", 2, 3), weights("k", 2, 1), f("y", 2, 4)], "Concatenation", axis=-1),
    "int8 concat": one("CONCATENATION", [q("x", 2, 3), q("z", 2, 2), q("y", 2, 5)], "Concatenation", axis=1),
    "slice": one("SLICE", [f("x", 4, 5), constant("b", [1, 2]), constant("s", [2, -1]), f("y", 2, 3)]),
    "int8 strided slice": one("STRIDED_SLICE", [q("x", 4, 6, 2), constant("b", [9, 1, 0]), constant("e", [3, 9, 1]),
                              constant("s", [1, 2, 1]), q("y", 3, 3)], "StridedSlice", beginMask=1, endMask=2,
                              shrinkAxisMask=4),
    "strided slice back": one("STRIDED_SLICE", [f("x", 5), constant("b", [0]), constant("e", [0]), constant("s", [-2]),
                              f("y", 3)], "StridedSlice", beginMask=1, endMask=1),
    "split": one("SPLIT", [constant("axis", 1), f("x", 2, 6), f("y1", 2, 3), f("y2", 2, 3)], "Split", numSplits=2),
    "split unevenly": one("SPLIT_V", [f("x", 2, 6), constant("s", [1, 5]), constant("axis", 1), f("y1", 2, 1),
                                      f("y2", 2, 5)], "SplitV", numSplits=2),
    "pack": one("PACK", [f("x", 2, 3), f("z", 2, 3), f("y", 2, 2, 3)], "Pack", valuesCount=2, axis=1),
    "unpack": one("UNPACK", [f("x", 2, 3), f("y1", 2), f("y2", 2), f("y3", 2)], "Unpack", num=3, axis=1),
    "gather": one("GATHER", [weights("t", 5, 3), T("x", [2, 2], "int32"), f("y", 2, 2, 3)], "Gather", axis=0),
    "tile": one("TILE", [f("x", 1, 3), constant("n", [2, 2]), f("y", 2, 6)], "Tile"),
    "broadcast": one("BROADCAST_TO", [f("x", 1, 3), constant("n", [2, 3]), f("y", 2, 3)], "BroadcastTo"),
    "depth to space": one("DEPTH_TO_SPACE", [f("x", 1, 2, 3, 8), f("y", 1, 4, 6, 2)], "DepthToSpace", blockSize=2),
    "space to depth": one("SPACE_TO_DEPTH", [f("x", 1, 4, 6, 2), f("y", 1, 2, 3, 8)], "SpaceToDepth", blockSize=2),
    "quantise": one("QUANTIZE", [f("x", 2, 9), q("y", 2, 9)], "Quantize"),
    "requantise": one("QUANTIZE", [q("x", 2, 9), q("y", 2, 9, scale=0.1, zero=-7)], "Quantize"),
    "dequantise": one("DEQUANTIZE", [q("x", 2, 9), f("y", 2, 9)], "Dequantize"),
    "cast": one("CAST", [T("x", [3], "int32"), f("y", 3)], "Cast", inDataType=2, outDataType=0),
    "greater": one("GREATER", [f("x", 2, 9), f("z", 2, 9), T("y", [2, 9], "bool")]),
    "select": one("SELECT_V2", [T("c", [2, 9], "bool"), f("x", 2, 9), f("z", 2, 9), f("y", 2, 9)]),
    "bilinear": one("RESIZE_BILINEAR", [f("x", 1, 3, 4, 2), constant("s", [7, 6]), f("y", 1, 7, 6, 2)],
                    "ResizeBilinear"),
    "bilinear half": one("RESIZE_BILINEAR", [f("x", 1, 3, 4, 2), constant("s", [7, 6]), f("y", 1, 7, 6, 2)],
                         "ResizeBilinear", halfPixelCenters=True),
    "bilinear aligned": one("RESIZE_BILINEAR", [f("x", 1, 3, 4, 2), constant("s", [7, 6]), f("y", 1, 7, 6, 2)],
                            "ResizeBilinear", alignCorners=True),
    "nearest": one("RESIZE_NEAREST_NEIGHBOR", [f("x", 1, 3, 4, 2), constant("s", [7, 6]), f("y", 1, 7, 6, 2)],
                   "ResizeNearestNeighbor"),
    "nearest half": one("RESIZE_NEAREST_NEIGHBOR", [f("x", 1, 3, 4, 2), constant("s", [7, 6]), f("y", 1, 7, 6, 2)],
                        "ResizeNearestNeighbor", halfPixelCenters=True),
    "chain": chain(),
    "shapes of shapes": shape_of(),
    "half-precision weights": half_weights(),
    "passed through": passed_through(),
    **{kind.lower(): unary(kind) for kind in (
        "ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "HARD_SWISH", "LOG_SOFTMAX", "NEG", "RELU", "RELU_N1_TO_1",
        "RELU_0_TO_1", "ROUND", "SIN", "SQUARE", "TANH", "LOGISTIC")},
    **{f"{kind.lower()} of squares": (
        [f("x", 2, 9), f("a", 2, 9), f("y", 2, 9)], [Op("SQUARE", ["x"], ["a"]), Op(kind, ["a"], ["y"])], ["x"], ["y"]
    ) for kind in ("LOG", "SQRT", "RSQRT")},
}  # fmt: skip
# TFLite multiplies by fixed-point numbers, and rounds sums and means otherwise: the neighbour is what may come out.
QUANTA = 1


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_litert_gives(tmp_path: Path, name: str) -> None:
    data = make_tflite(*CASES[name])
    (tmp_path / "m.tflite").write_bytes(data)
    model = convert_tflite(tmp_path / "m.tflite", {})
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    reference = LiteRt(data)
    assert [one.name for one in session.get_inputs()] == [one["name"] for one in reference.inputs]
    random = np.random.default_rng(5)
    for _ in range(3):
        feed = reference.random_feed(random)
        for found, wanted in zip(session.run(None, feed), reference.run(feed), strict=True):
            assert found.shape == wanted.shape
            assert found.dtype == wanted.dtype
            if found.dtype.itemsize == 1 and found.dtype.kind != "b":
                assert np.abs(found.astype(int) - wanted.astype(int)).max() <= QUANTA
            else:
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_table_is_tested() -> None:
    tested = {operator.kind for case in CASES.values() for operator in case[1]}
    assert {"ADD_N", "EQUAL"} <= set(OPERATORS) - tested  # what this test would not see, were the names misspelt
    rare = {"ADD_N", "POW", "EQUAL", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR"}
    assert set(OPERATORS) - tested - rare == {"REDUCE_MIN", "REDUCE_PROD", "ARG_MIN"}


def test_the_page_of_operators_names_them() -> None:
    page = (REPOSITORY / "docs" / "operators.md").read_text(encoding="utf-8")
    part = page.partition("## TFLite")[2].partition("##")[0]
    assert set(re.findall(r"`([A-Z0-9_]+)`", part)) == set(OPERATORS)


def test_transposes_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(make_tflite(*CASES["chain"]))
    model = convert_tflite(tmp_path / "m.tflite", {})
    kinds = [node.op_type for node in model.graph.node]
    # In for the convolution and the sum, out for the output in the middle.
    assert kinds.count("Transpose") == 2
    made = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in made:
            assert made[node.input[0]].op_type != "Transpose"


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("int8 conv", "int8 depth", "int8 dense"))])
def test_what_is_quantised_keeps_its_pattern(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.tflite").write_bytes(make_tflite(*CASES[name]))
    graph = convert_tflite(tmp_path / "m.tflite", {}).graph
    made = {output: node for node in graph.node for output in node.output}
    heavy = next(node for node in graph.node if node.op_type in ("Conv", "MatMul"))
    assert all(made[source].op_type == "DequantizeLinear" for source in heavy.input)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    assert weights[made[heavy.input[1]].input[0]].data_type == 3  # int8 still


def test_whole_weights_of_a_real_product_become_real(tmp_path: Path) -> None:
    w = T("w", [5, 12], "int8", small(5, 12), [0.01, 0.02, 0.03, 0.04, 0.05], [0] * 5, 0)
    case = one("FULLY_CONNECTED", [f("x", 2, 12), w, weights("b", 5), f("y", 2, 5)], "FullyConnected")
    (tmp_path / "m.tflite").write_bytes(make_tflite(*case))
    session = ort.InferenceSession(convert_tflite(tmp_path / "m.tflite", {}).SerializeToString())
    real = small(5, 12) * np.array(w.scale, np.float32)[:, None]
    found = session.run(None, {"x": normal(2, 12)})[0]
    np.testing.assert_allclose(found, normal(2, 12) @ real.T + normal(5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (one("PAD", [f("x", 1, 3), T("p", [2, 2], "int32"), f("y", 1, 6)]), "PAD .*padding is computed at run time"),
        (one("RELU", [q("x", 1, 3, dtype="int16"), q("y", 1, 3, dtype="int16")]), "quantised to int16"),
        (one("ADD", [f("x", 1, 3), f("z", 1, 3), f("y", 1, 4)], "Add"), "Inferred shape and existing shape differ"),
        (([f("x", 3), f("a", 4), f("y", 3)], [Op("RELU", ["x"], ["a"]), Op("RELU", ["a"], ["y"])], ["x"], ["y"]),
         r"'a' has the shape \[4\] in the file"),
        (one("STRIDED_SLICE", [f("x", 5), constant("b", [0]), constant("e", [4]), constant("s", [0]), f("y", 3)],
             "StridedSlice"), "do not fit"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_said(tmp_path: Path, case: Case, words: str) -> None:
    (tmp_path / "m.tflite").write_bytes(make_tflite(*case))
    with pytest.raises(Rejected, match=words):
        convert_tflite(tmp_path / "m.tflite", {})
