"""Passes and rewrites on single operators: what comes out computes the same, by ONNX Runtime, and compiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lisiere.errors import Rejected
from lisiere_compile import lower
from lisiere_compile.frontends.onnx import read_onnx, to_relax
from lisiere_compile.quiet import quiet
from lisiere_compile.target import resolve_target

from ..conftest import dense, make_job, make_model, parse

node = helper.make_node
Weights = Mapping[str, Any]


def number(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def small(*shape: int, dtype: str = "int8") -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).integers(0, 100, shape, dtype)


def model_of(nodes: list[Any], shape: list[int], weights: Weights, opset: int, kind: int = 1, out: int = 1) -> Any:
    """One input `x`, one output `y`, whose shape is for others to find."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: Any, file: Path, shape: tuple[int, ...] = ()) -> Path:
    """Write a model whose output has a shape, without which ONNX's checker takes none."""
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", model.graph.output[0].type.tensor_type.elem_type, shape)
    )
    onnx.save(model, str(file))
    return file


def compiled(file: Path, feed: np.ndarray[Any, Any]) -> Any:
    """What the imported and lowered module gives, run by TVM itself."""
    import tvm
    from tvm import relax

    read = read_onnx(file, {})
    target = resolve_target(parse(make_job("m", TargetDevice="x86_64")))
    with quiet():
        module = lower.legalise(to_relax(read, file.name), read, target)
        lower.to_program(module, read)
        machine = relax.VirtualMachine(tvm.compile(module, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
        return machine["main"](tvm.runtime.tensor(feed)).numpy()


I8 = TensorProto.INT8
# What -> nodes, shape of x, weights, the opsets that write it so.
FORMS: dict[str, tuple[list[Any], list[int], Weights, tuple[int, ...]]] = {
    "clip by attributes": ([node("Clip", ["x"], ["y"], min=-0.5, max=0.5)], [2, 3], {}, (9, 10)),
    "clip by inputs": ([node("Clip", ["x", "", "h"], ["y"])], [2, 3], {"h": number(0.5)}, (11, 12, 13, 21)),
    "pad by attributes": ([node("Pad", ["x"], ["y"], pads=[0, 1, 0, 2], value=3.0)], [2, 3], {}, (9, 10)),
    "pad by inputs": ([node("Pad", ["x", "p"], ["y"], mode="reflect")], [2, 3], {"p": ints(0, 1, 0, 2)}, (11, 13, 18)),
    "pad some axes": ([node("Pad", ["x", "p", "", "a"], ["y"])], [2, 3], {"p": ints(1, 2), "a": ints(-1)}, (18, 21)),
    "slice by attributes": ([node("Slice", ["x"], ["y"], starts=[1], ends=[9], axes=[1])], [2, 5], {}, (9,)),
    "slice by inputs": ([node("Slice", ["x", "s", "e", "a", "t"], ["y"])], [2, 5],
                        {"s": ints(-1), "e": ints(-9), "a": ints(1), "t": ints(-2)}, (10, 11, 13, 21)),
    "squeeze by attribute": ([node("Squeeze", ["x"], ["y"], axes=[0])], [1, 5], {}, (9, 11, 12)),
    "squeeze by input": ([node("Squeeze", ["x", "a"], ["y"])], [1, 5, 1], {"a": ints(-1)}, (13, 21)),
    "unsqueeze by attribute": ([node("Unsqueeze", ["x"], ["y"], axes=[0, 3])], [2, 3], {}, (9, 12)),
    "unsqueeze by input": ([node("Unsqueeze", ["x", "a"], ["y"])], [2, 3], {"a": ints(0, -1)}, (13, 21)),
    "upsample": ([node("Upsample", ["x", "s"], ["y"], mode="nearest")], [1, 2, 3, 4],
                 {"s": np.array([1, 1, 2, 3], np.float32)}, (9,)),
    "upsample linear": ([node("Upsample", ["x", "s"], ["y"], mode="linear")], [1, 2, 3, 4],
                        {"s": np.array([1, 1, 2, 2], np.float32)}, (9,)),
    "resize 10": ([node("Resize", ["x", "s"], ["y"])], [1, 2, 3, 4], {"s": np.array([1, 1, 2, 2], np.float32)}, (10,)),
    "resize by scales": ([node("Resize", ["x", "r", "s"], ["y"], mode="linear")], [1, 2, 3, 4],
                         {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}, (11, 13, 18, 19)),
    "resize by sizes": ([node("Resize", ["x", "", "", "s"], ["y"], mode="linear",
                              coordinate_transformation_mode="align_corners")], [1, 2, 3, 4],
                        {"s": ints(1, 2, 5, 7)}, (13, 19)),
    "resize by crooked scales": ([node("Resize", ["x", "", "s"], ["y"], mode="linear")], [1, 2, 5, 7],
                                 {"s": np.array([1, 1, 0.6, 0.6], np.float32)}, (13, 19)),
    "resize smoothly": ([node("Resize", ["x", "", "", "s"], ["y"], mode="linear", antialias=1)], [1, 2, 8, 8],
                        {"s": ints(1, 2, 3, 3)}, (18, 19)),
    "resize some axes": ([node("Resize", ["x", "", "", "s"], ["y"], mode="cubic", axes=[2, 3])], [1, 2, 4, 4],
                         {"s": ints(6, 7)}, (18, 19)),
    "dropout": ([node("Dropout", ["x"], ["d"], ratio=0.5), node("Relu", ["d"], ["y"])], [2, 3], {}, (9, 10, 11)),
    "dropout of 12": ([node("Dropout", ["x", "r"], ["d"]), node("Relu", ["d"], ["y"])], [2, 3], {"r": number(0.5)},
                      (12, 13, 21)),
    "dropout last": ([node("Dropout", ["x"], ["y"])], [2, 3], {}, (9, 13)),
    "batch normalisation": ([node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])], [2, 3, 4],
                            {"s": normal(3), "b": normal(3), "m": normal(3), "v": np.abs(normal(3))}, (9, 14, 15, 21)),
    "softmax": ([node("Softmax", ["x"], ["y"], axis=1)], [2, 3, 4], {}, (9, 11, 12, 13, 21)),
    "softmax by default": ([node("Softmax", ["x"], ["y"])], [2, 3, 4], {}, (9, 12, 13)),
    "log softmax": ([node("LogSoftmax", ["x"], ["y"])], [2, 3, 4], {}, (9, 12, 13)),
    "hardmax": ([node("Hardmax", ["x"], ["y"])], [2, 3, 4], {}, (9, 12, 13)),
    "sum by attribute": ([node("ReduceSum", ["x"], ["y"], axes=[-1], keepdims=0)], [2, 3], {}, (9, 11, 12)),
    "sum by input": ([node("ReduceSum", ["x", "a"], ["y"])], [2, 3], {"a": ints(1)}, (13, 21)),
    "mean by attribute": ([node("ReduceMean", ["x"], ["y"], axes=[1])], [2, 3], {}, (9, 13, 17)),
    "mean by input": ([node("ReduceMean", ["x", "a"], ["y"], keepdims=0)], [2, 3], {"a": ints(-1)}, (18, 21)),
    "split by attribute": ([node("Split", ["x"], ["a", "b"], axis=1, split=[1, 2]), node("Sub", ["b", "a"], ["y"])],
                           [2, 3], {}, (9, 11, 12)),
    "split by input": ([node("Split", ["x", "s"], ["a", "b"], axis=1), node("Sub", ["b", "a"], ["y"])], [2, 3],
                       {"s": ints(1, 2)}, (13, 18, 21)),
    "split evenly": ([node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Sub", ["b", "a"], ["y"])], [2, 4],
                     {}, (18, 21)),
    "top 1": ([node("TopK", ["x"], ["y", "i"], axis=1, k=2)], [2, 5], {}, (9,)),
    "top 10": ([node("TopK", ["x", "k"], ["y", "i"], axis=0)], [5, 2], {"k": ints(3)}, (10, 11, 21)),
    "cumulative sum": ([node("CumSum", ["x", "a"], ["y"], reverse=1, exclusive=1)], [3, 4, 2], {"a": np.array(1)},
                       (11, 14, 21)),
    "one hot": ([node("ArgMax", ["x"], ["i"], axis=1, keepdims=0), node("OneHot", ["i", "d", "v"], ["y"])], [3, 4],
                {"d": ints(4), "v": np.array([-1, 2], np.float32)}, (9, 11, 21)),
    "power": ([node("Pow", ["x", "e"], ["y"])], [2, 3], {"e": ints(3)}, (12, 13, 21)),
    "norm": ([node("LpNormalization", ["x"], ["y"], axis=1, p=1)], [2, 3], {}, (9, 17, 21)),
    "celu": ([node("Celu", ["x"], ["y"], alpha=0.7)], [2, 3], {}, (12, 21)),
    "several": ([node("Max", ["x", "a", "b"], ["m"]), node("Sum", ["m", "x", "a"], ["y"])], [2, 3],
                {"a": normal(3), "b": normal(1)}, (9, 13, 21)),
    "mean of several": ([node("Mean", ["x", "a", "b"], ["y"])], [2, 3], {"a": normal(3), "b": normal(1)}, (9, 13)),
    "infinite": ([node("Log", ["z"], ["l"]), node("Add", ["x", "l"], ["a"]),
                  node("IsInf", ["a"], ["i"], detect_negative=0), node("Cast", ["i"], ["y"], to=1)], [3],
                 {"z": np.array([0, 1, np.inf], np.float32)}, (10, 20, 21)),
    "transposed to a size": ([node("ConvTranspose", ["x", "w"], ["y"], output_shape=[10, 8], strides=[3, 2],
                                   kernel_shape=[3, 3])], [1, 1, 3, 3], {"w": normal(1, 2, 3, 3)}, (9, 11, 21)),
    "layer normalisation": ([node("LayerNormalization", ["x", "s", "b"], ["y"], axis=-1)], [2, 3, 4],
                            {"s": normal(4), "b": normal(4)}, (17, 21)),
    "a shape of shapes": ([node("Shape", ["x"], ["s"]), node("Gather", ["s", "zero"], ["n"]),
                           node("Unsqueeze", ["n"], ["u"], axes=[0]), node("Concat", ["u", "m"], ["f"], axis=0),
                           node("Reshape", ["x", "f"], ["y"])], [2, 3, 4], {"zero": np.array(0), "m": ints(-1)},
                          (9, 11, 12)),
    "a constant of a shape": ([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["c"]),
                               node("Add", ["x", "c"], ["y"])], [2, 3], {}, (9, 13, 21)),
    "constants of all kinds": ([node("Constant", [], ["a"], value_float=2.0),
                                node("Constant", [], ["b"], value_ints=[1, 3]),
                                node("Mul", ["x", "a"], ["m"]), node("Reshape", ["m", "b"], ["y"])], [3], {}, (12, 21)),
    "quantised by tensor": ([node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                             node("DequantizeLinear", ["q", "s", "z"], ["y"])], [2, 3],
                            {"s": number(0.1), "z": np.array(3, np.int8)}, (10, 13, 19, 21)),
    "quantised by axis": ([node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=1), node("MatMul", ["x", "d"], ["y"])],
                          [2, 3], {"w": small(3, 4), "s": np.abs(normal(4)), "z": np.zeros(4, np.int8)}, (13, 19, 21)),
    "quantised without zero": ([node("QuantizeLinear", ["x", "s"], ["q"]), node("DequantizeLinear", ["q", "s"], ["y"])],
                               [2, 3], {"s": number(0.1)}, (10, 13, 21)),
    "convolution of integers": ([node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                                 node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "s", "z", "b"], ["c"]),
                                 node("DequantizeLinear", ["c", "s", "z"], ["y"])], [1, 2, 5, 5],
                                {"s": number(0.05), "z": np.array(130, np.uint8), "w": small(3, 2, 3, 3),
                                 "ws": np.array([0.01, 0.02, 0.03], np.float32), "wz": np.zeros(3, np.int8),
                                 "b": np.array([1, -20, 300], np.int32)}, (10, 13, 21)),
    "product of integers": ([node("QuantizeLinear", ["x", "s", "z"], ["q"]),
                             node("QLinearMatMul", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["c"]),
                             node("DequantizeLinear", ["c", "s", "z"], ["y"])], [4, 3],
                            {"s": number(0.05), "z": np.array(130, np.uint8), "w": small(3, 2, dtype="uint8"),
                             "ws": number(0.01), "wz": np.array(7, np.uint8)}, (10, 13, 21)),
    "whole numbers": ([node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
                       node("ConvInteger", ["q", "w", "z"], ["c"]), node("Cast", ["c"], ["y"], to=1)], [1, 2, 5, 5],
                      {"w": small(3, 2, 3, 3, dtype="uint8")}, (11, 13, 21)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name, form in FORMS.items() for opset in form[3]])
def test_a_form_of_an_opset_compiles_to_what_onnx_runtime_gives(tmp_path: Path, name: str, opset: int) -> None:
    nodes, shape, weights, _ = FORMS[name]
    model = model_of(nodes, shape, weights, opset)
    feed = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    options = ort.SessionOptions()  # the more it optimises, the more activations it rounds beside whole weights
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": feed})
    found = compiled(saved(model, tmp_path / "m.onnx", wanted.shape), feed)
    assert found.shape == wanted.shape
    step = 0.05 if "integers" in name else 0.0  # a quantum of the output
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=max(1e-5, step * 1.01))


REFUSED: dict[str, tuple[list[Any], list[int], Weights, str]] = {
    "training": ([node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"], training_mode=1, name="n")], [2, 3],
                 {"s": np.ones(3, np.float32)}, r"BatchNormalization \(n\), which is in training mode"),
    "mask": ([node("Dropout", ["x"], ["d", "m"], name="n"), node("Cast", ["m"], ["y"], to=1)], [2, 3], {},
             r"Dropout \(n\), which .* its mask is used"),
    "sort": ([node("TopK", ["x", "k"], ["y", "i"], name="n")], [1, 5000], {"k": ints(1)}, "sorts 5000 numbers"),
    "two": ([node("TopK", ["x", "k"], ["a", "i"], name="n"), node("Det", ["a"], ["y"], name="d")], [1, 5000],
            {"k": ints(1)}, r"Det \(d\); TopK \(n\), which"),
    "mean": ([node("LayerNormalization", ["x", "s"], ["z", "y"], name="n")], [2, 3], {"s": np.ones(3, np.float32)},
             "gives out its mean"),
    "blocks": ([node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=2), node("Add", ["x", "d"], ["y"])], [4],
               {"w": small(4), "s": np.ones(2, np.float32)}, "DequantizeLinear .*block"),
    "huge": ([node("Expand", ["x", "s"], ["e"]), node("ReduceSum", ["e"], ["y"])], [1], {"s": ints(1 << 20, 1 << 20)},
             "which no device can hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused(tmp_path: Path, name: str) -> None:
    nodes, shape, weights, words = REFUSED[name]
    saved(model_of(nodes, shape, weights, 21), tmp_path / "m.onnx")
    with pytest.raises(Rejected, match=words):
        read_onnx(tmp_path / "m.onnx", {})


def test_quantised_weights_stay_integers(tmp_path: Path) -> None:
    nodes, shape, weights, _ = FORMS["quantised by axis"]
    saved(model_of(nodes, shape, weights, 13), tmp_path / "m.onnx")
    text = str(to_relax(read_onnx(tmp_path / "m.onnx", {}), "m"))
    assert "R.dequantize" in text


def test_weights_quantised_on_the_way_become_integers(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["y"]),
    ]
    weights = {"w": normal(3, 4), "s": number(0.1), "z": np.array(0, np.int8)}
    saved(model_of(nodes, [2, 3], weights, 13), tmp_path / "m.onnx")
    graph = read_onnx(tmp_path / "m.onnx", {}).proto.graph
    assert [one.op_type for one in graph.node] == ["DequantizeLinear", "MatMul"]
    assert {one.data_type for one in graph.initializer} == {1, 3}


@pytest.mark.parametrize("place", ["constant", "branch", "sparse"])
def test_weights_elsewhere_are_found_wherever_they_hide(tmp_path: Path, place: str) -> None:
    model = dense()
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    if place == "constant":
        model.graph.node.append(node("Constant", [], ["t"], value=tensor))
    elif place == "branch":
        branch = helper.make_graph([node("Identity", ["t"], ["b"])], "b", [], [], [tensor])
        model.graph.node.append(node("If", ["c"], ["t"], then_branch=branch, else_branch=branch))
    else:
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Rejected, match="one file"):
        read_onnx(tmp_path / "m.onnx", {})


@pytest.mark.parametrize("dims", [[1 << 40, 1 << 40], [-5, 2], [1 << 33]])
def test_weights_of_absurd_shapes_are_refused(tmp_path: Path, dims: list[int]) -> None:
    model = dense()
    model.graph.initializer[0].dims[:] = dims
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Rejected, match=r"no device can hold|not a valid"):
        read_onnx(tmp_path / "m.onnx", {})


WHOLE = make_model(
    [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c", "low"], ["r"]),
        helper.make_node("Reshape", ["r", "s"], ["y"]),
    ],
    {"x": [1, 1, 4, 4]},
    {"y": [1, 32]},
    {"w": normal(2, 1, 3, 3), "low": number(0), "s": ints(1, -1)},
).SerializeToString()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_end_in_an_error_of_ours_or_in_a_model(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    file = tmp_path_factory.getbasetemp() / "damaged.onnx"
    file.write_bytes(data)
    try:
        with quiet():
            to_relax(read_onnx(file, {}), file.name)
    except Rejected:
        return
