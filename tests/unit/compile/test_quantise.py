"""Integer inference: quantised models give what ONNX Runtime gives, by integer kernels alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.backends import Tensor, open_model
from lisiere.models import open_package
from lisiere_compile.compiler import compile_job
from support import shared_data
from support.quantised import Quantised

from .conftest import make_job, parse

# Every way of multiplying: what this machine has (VNNI where it has it), 16 bits by 256 and by 128, the dot product of
# ARM, its widening multiplication, and this in 32-bit code.
MACHINES: tuple[dict[str, str], ...] = (
    {},
    {"mcpu": "x86-64-v3"},
    {"mcpu": "x86-64-v2"},
    {"device": "rasp5"},
    {"device": "rasp4b"},
    {"device": "rasp3b"},
)


def machines(some: Sequence[dict[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", some, ids=lambda machine: next(iter(machine.values()), "native"))


def check(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every number is within one quantum, and few are not exact: those that lie between two."""
    assert found.keys() == wanted.keys()
    for name, reference in wanted.items():
        off = np.abs(found[name].astype(int) - reference.astype(int))
        assert found[name].dtype == reference.dtype
        assert off.max(initial=0) <= 1, name
        assert off.mean() < 0.02, name
        assert reference.size < 8 or reference.std() > 1, f"{name} is nearly constant, which tests nothing"


@st.composite
def products(draw: Any) -> dict[str, Any]:
    """A convolution of any kind, or a matrix product."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, "depthwise"]))
    channels = draw(st.integers(1, 37))
    outputs = draw(st.integers(1, 41))
    if groups == "depthwise":
        outputs = groups = channels
    else:
        channels, outputs = channels * groups, outputs * groups
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    least = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    return {
        "dense": draw(st.integers(0, 4)) == 0,
        "batch": draw(st.integers(1, 2)),
        "shape": [draw(st.integers(size, size + 9)) for size in least],
        "channels": channels,
        "outputs": outputs,
        "groups": groups,
        "kernel": kernel,
        "strides": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "padding": draw(st.tuples(*[st.integers(0, 2)] * 4)),
        "dilation": dilation,
        "data": draw(st.sampled_from(["int8", "uint8"])),
        "weights": draw(st.sampled_from(["int8", "uint8"])),
        "each": draw(st.booleans()),  # a scale for each channel
        "bias": draw(st.booleans()),
        "end": draw(st.sampled_from(["", "Relu", "Clip"])),
        "zero": draw(st.integers(0, 40)),
    }


def write_product(model: Quantised, case: dict[str, Any]) -> None:
    data, zero = case["data"], case["zero"]
    # Unsigned weights have their zero in the middle, but not quite, so that 8 signed bits do not hold them.
    middle = 131 if case["weights"] == "uint8" else 0
    sum_of = case["channels"] if case["dense"] else case["channels"] // case["groups"] * int(np.prod(case["kernel"]))
    scale = 0.5
    result = scale * 0.01 * 74 * 74 * np.sqrt(sum_of) / 50
    if case["dense"]:
        x = model.input((case["batch"] * 3, case["channels"]), data)
        weights, scales = model.weights(
            (case["channels"], case["outputs"]), case["weights"], middle, axis=1 if case["each"] else None
        )
        y = model.node("MatMul", model.dequantised(x, scale, zero, data), weights)
    else:
        x = model.input((case["batch"], case["channels"], *case["shape"]), data)
        weights, scales = model.weights(
            (case["outputs"], case["channels"] // case["groups"], *case["kernel"]),
            case["weights"],
            middle,
            axis=0 if case["each"] else None,
        )
        y = model.dequantised(x, scale, zero, data)
    bias = model.random.integers(-3000, 3000, case["outputs"]).astype(np.int32)
    steps = np.broadcast_to(scale * scales, case["outputs"])
    held = model.dequantised(model.constant(bias), steps, np.zeros(case["outputs"]), "int32", 0)
    if case["dense"]:
        y = model.node("Add", y, held) if case["bias"] else y
    else:
        y = model.node(
            "Conv",
            *(y, weights, *([held] if case["bias"] else [])),
            kernel_shape=case["kernel"],
            strides=case["strides"],
            pads=case["padding"],
            dilations=case["dilation"],
            group=case["groups"],
        )
    if case["end"] == "Relu":
        y = model.node("Relu", y)
    elif case["end"] == "Clip":
        limits = [model.constant(np.float32(limit * result)) for limit in (-31.4, 61.6)]
        y = model.node("Clip", y, *limits)
    model.output(model.quantised(y, result, zero, data), 2 if case["dense"] else 4, data)


@machines(MACHINES)
@settings(max_examples=2, deadline=None)
@given(cases=st.lists(products(), min_size=6, max_size=6), seed=st.integers(0, 99))
def test_products_of_any_shape_are_exact(machine: dict[str, str], cases: list[dict[str, Any]], seed: int) -> None:
    model = Quantised(seed)
    for case in cases:
        write_product(model, case)
    with tempfile.TemporaryDirectory() as folder:
        found, wanted, kernels = model.run(Path(folder), **machine)
    check(found, wanted)
    # Inputs come with the channels first, and results go out so.
    assert {kernel.rstrip("0123456789_") for kernel in kernels} <= {
        "int8_convolution",
        "int8_depthwise",
        "transpose",
        "reshape",
        "int8_retype",
    }


@machines(MACHINES[::2])
def test_other_operators_are_exact(machine: dict[str, str], tmp_path: Path) -> None:
    model = Quantised(3)
    shape = (1, 19, 8, 8)

    def view(scale: float = 0.05, zero: int = 7, dtype: str = "int8", shape: tuple[int, ...] = shape) -> str:
        return model.dequantised(model.input(shape, dtype), scale, zero, dtype)

    def end(name: str, scale: float, zero: int, rank: int = 4, dtype: str = "int8") -> None:
        model.output(model.quantised(name, scale, zero, dtype), rank, dtype)

    end(model.node("Relu", model.node("Add", view(), view(0.03, -9))), 0.06, -128)
    end(model.node("Add", view(0.1, 100, "uint8"), view(0.03, -9)), 0.09, 90, dtype="uint8")
    end(model.node("Mul", view(), view(0.02, 3)), 0.05, 1)
    end(model.node("AveragePool", view(), kernel_shape=[3, 2], strides=[2, 3]), 0.02, -5)
    end(model.node("GlobalAveragePool", view(zero=-60, shape=(2, 5, 3, 7))), 0.03, -100)
    end(model.node("ReduceMean", view(zero=-60), axes=[2, 3], keepdims=0), 0.02, -100, 2)
    end(model.node("MaxPool", view(), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 0, 1]), 0.05, 7)
    end(model.node("MaxPool", view(), kernel_shape=[2, 2], strides=[1, 1]), 0.04, 0)
    end(model.node("Concat", view(), view(0.03, 5), axis=1), 0.05, 7)
    end(model.node("Concat", view(), view(), axis=2), 0.05, 7)
    end(model.node("Softmax", view(0.1, 3, shape=(3, 37)), axis=-1), 1 / 256, -128, 2)
    end(model.node("Sigmoid", view()), 1 / 256, -128)
    end(model.node("HardSwish", view(0.06, 0, "uint8")), 0.05, 12, dtype="uint8")
    end(model.node("Tanh", model.node("Mul", view(), model.constant(np.float32(0.5)))), 1 / 128, 0)
    end(view(0.05, 3), 0.08, -3)  # a change of scale alone
    found, wanted, kernels = model.run(tmp_path, **machine)
    check(found, wanted)
    assert all(kernel.startswith(("int8_", "transpose", "reshape")) for kernel in kernels), kernels


def network() -> Quantised:
    """Pixels with their channels last through a small residual network, as tf2onnx writes it."""
    model = Quantised(5)

    def convolved(view: str, weights: str, scale: float, end: str = "Relu", **attributes: Any) -> str:
        made = model.node("Conv", view, weights, **attributes)
        zero = -128 if end else 3
        whole = model.quantised(model.node(end, made) if end else made, scale, zero)
        return model.dequantised(whole, scale, zero)

    x = model.node("Transpose", model.input((1, 9, 10, 3)), perm=[0, 3, 1, 2])
    x = model.dequantised(x, 0.02, -4)
    first = convolved(x, model.weights((16, 3, 3, 3), "int8", 0, axis=0)[0], 0.09, pads=[1, 1, 1, 1])
    second = convolved(first, model.weights((16, 1, 3, 3), "int8", 0, axis=0)[0], 0.4, group=16, pads=[1, 1, 1, 1])
    third = convolved(second, model.weights((16, 16, 1, 1), "int8", 0, axis=0)[0], 0.9, "")
    y = model.node("Relu", model.node("Add", first, third))
    y = model.dequantised(model.quantised(y, 0.8, -128), 0.8, -128)
    y = model.node("AveragePool", y, kernel_shape=[9, 10])
    y = model.node("Reshape", model.quantised(y, 0.2, -128), model.constant(np.array([1, 16])))
    y = model.node("Gemm", model.dequantised(y, 0.2, -128), model.weights((10, 16), "int8", 0, axis=None)[0], transB=1)
    y = model.dequantised(model.quantised(y, 0.35, 1), 0.35, 1)
    model.output(model.quantised(model.node("Softmax", y), 1 / 256, -128), 2)
    return model


def test_a_network_is_integer_kernels_and_nothing_else(tmp_path: Path) -> None:
    found, wanted, kernels = network().run(tmp_path)
    assert [kernel.rstrip("0123456789") for kernel in kernels] == [
        *("int8_convolution", "int8_depthwise", "int8_convolution", "int8_elements", "int8_average_pool"),
        *("int8_convolution", "int8_softmax"),
    ]
    for name, reference in wanted.items():
        assert np.abs(found[name].astype(int) - reference).max() <= 2  # of 256, after seven roundings


@pytest.mark.parametrize("first", ["QuantizeLinear", "Reshape"])
def test_a_dense_layer_reads_positions_and_channels_in_the_order_of_the_model(first: str, tmp_path: Path) -> None:
    model = Quantised(7)
    view = model.dequantised(model.input((1, 3, 6, 5)), 0.02, 5)
    made = model.node("Conv", view, model.weights((4, 3, 3, 3), "int8", 0, axis=0)[0])
    flat = model.constant(np.array([1, 4 * 4 * 3]))
    if first == "Reshape":  # on bytes; else on what they stand for
        y = model.dequantised(model.node("Reshape", model.quantised(made, 0.05, 9), flat), 0.05, 9)
    else:
        y = model.node("Reshape", model.dequantised(model.quantised(made, 0.05, 9), 0.05, 9), flat)
    y = model.node("MatMul", y, model.weights((48, 12), "int8", 0, axis=1)[0])
    model.output(model.quantised(y, 0.2, -3), 2)
    found, wanted, kernels = model.run(tmp_path)
    assert sum(kernel.startswith("int8_convolution") for kernel in kernels) == 2
    check(found, wanted)


def test_what_no_pattern_takes_stays_float_and_right(tmp_path: Path) -> None:
    model = Quantised(9)
    weights, _ = model.weights((6, 4, 3, 3), "int8", 0, axis=0)
    # Read as float, and quantised for no one.
    view = model.dequantised(model.input((1, 4, 7, 7)), 0.02, 5)
    model.output(model.node("Conv", view, weights), 4, "float32")
    # A scale for each channel of the activations.
    each = model.dequantised(model.input((1, 4, 7, 7)), [0.01, 0.02, 0.03, 0.04], [0, 1, 2, 3])
    model.output(model.quantised(model.node("Conv", each, weights), 0.02, 5), 4)
    # A bias that is no whole number of the smallest steps, which are large.
    coarse = model.dequantised(model.constant(model.random.integers(-3, 4, (5, 6)).astype(np.int8)), 1.0, 0)
    product = model.node("MatMul", model.dequantised(model.input((2, 5)), 0.5, 0), coarse)
    bias = model.constant(np.array([0.2, 0.7, 1.1, -0.3, 0.25, 0.15], np.float32))
    model.output(model.quantised(model.node("Add", product, bias), 0.5, 0), 2)
    # Sums that 32 bits may not hold.
    long = model.dequantised(model.constant(np.full((70000, 1), 127, np.int8)), 0.01, 0)
    product = model.node("MatMul", model.dequantised(model.input((1, 70000)), 0.01, 0), long)
    model.output(model.quantised(product, 40.0, 0), 2)
    found, wanted, kernels = model.run(tmp_path)
    assert not any(kernel.startswith(("int8_convolution", "int8_depthwise")) for kernel in kernels)
    for name, reference in wanted.items():
        if reference.dtype == np.float32:
            np.testing.assert_allclose(found[name], reference, atol=1e-4)
        else:
            assert np.abs(found[name].astype(int) - reference).max() <= 1


def test_a_tensor_that_float_operators_read_too_is_as_the_model_has_it(tmp_path: Path) -> None:
    model = Quantised(11)
    view = model.dequantised(model.input((1, 8, 6, 6)), 0.02, 5)
    made = model.quantised(model.node("Conv", view, model.weights((8, 8, 3, 3), "int8", 0, axis=0)[0]), 0.05, 9)
    model.output(made, 4)
    again = model.dequantised(made, 0.05, 9)
    model.output(model.node("Exp", again), 4, "float32")
    more = model.node("Conv", again, model.weights((5, 8, 1, 1), "int8", 0, axis=0)[0])
    model.output(model.quantised(more, 0.2, -3), 4)
    found, wanted, kernels = model.run(tmp_path)
    assert sum(kernel.startswith("int8_convolution") for kernel in kernels) == 2
    names = list(wanted)
    assert np.abs(found[names[0]].astype(int) - wanted[names[0]]).max() <= 1
    np.testing.assert_allclose(found[names[1]], wanted[names[1]], rtol=0.06)
    assert np.abs(found[names[2]].astype(int) - wanted[names[2]]).max() <= 1


def test_a_quantised_classifier_names_photographs(tmp_path: Path) -> None:
    data = shared_data()
    shutil.copy(data / "models" / "mnv1_025_128_q.onnx", tmp_path / "mnv1.onnx")
    folder = compile_job(parse(make_job("mnv1.onnx")), tmp_path)
    model = open_model(open_package(folder)).model
    right = 0
    try:
        for line in (data / "images_ovms10" / "labels.csv").read_text().splitlines():
            name, _, label = line.partition(",")
            image = np.asarray(cv2.imread(str(data / "images_ovms10" / name)))[..., ::-1]
            size = min(image.shape[:2])
            top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
            square = np.ascontiguousarray(image[top : top + size, left : left + size])
            pixels = cv2.resize(square, (128, 128), interpolation=cv2.INTER_AREA)[None]
            (scores,) = model.run({"input": pixels}).values()
            right += int(scores.argmax()) - 1 == int(label)  # class 0 of the model is none of ImageNet's
    finally:
        model.close()
    assert right >= 7
