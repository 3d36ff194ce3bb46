"""Channels that fill no vector, and groups: through the whole compiler, whose gate compares with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from .conftest import Compile, make_model

RANDOM = np.random.default_rng(11)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    drawn: np.ndarray[Any, Any] = RANDOM.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return drawn.astype(np.float32)


@pytest.mark.parametrize(
    ("given", "made", "groups"),
    [(8, 17, 1), (4, 1, 1), (6, 3, 1), (8, 16, 8), (12, 21, 3), (8, 32, 2), (6, 6, 6)],
)
def test_any_number_of_channels_has_a_schedule(given: int, made: int, groups: int, compile_model: Compile) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, group=groups),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    constants = {"w": weights(made, given // groups, 3, 3), "b": weights(made, 1)[:, 0]}
    model = make_model(nodes, {"x": (1, given, 9, 11)}, {"y": (1, made, 9, 11)}, constants)
    _, log = compile_model(model)
    depthwise = given == made == groups  # whose odd channels run as TVM gives them
    assert depthwise or log.unscheduled == ()
    assert log.verdict.cases > 0


@pytest.mark.parametrize("made", [1, 7, 33, 1001])
def test_any_number_of_columns_has_a_schedule(made: int, compile_model: Compile) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    model = make_model(nodes, {"x": (3, 20)}, {"y": (3, made)}, {"w": weights(made, 20)})
    _, log = compile_model(model)
    assert log.unscheduled == ()


@pytest.mark.parametrize(
    ("operator", "attributes", "shape", "made"),
    [
        ("Softmax", {"axis": -1}, (3, 64), (3, 64)),
        ("Softmax", {"axis": 1}, (2, 6, 10), (2, 6, 10)),
        ("Softmax", {"axis": -1}, (1, 10), (1, 10)),
        ("ReduceMean", {"axes": [-1], "keepdims": 0}, (5, 48), (5,)),
        ("ReduceMax", {"axes": [2, 3]}, (1, 3, 8, 16), (1, 3, 1, 1)),
        ("GlobalAveragePool", {}, (1, 3, 7, 7), (1, 3, 1, 1)),
        ("Erf", {}, (4, 33), (4, 33)),
    ],
)
def test_reductions_and_functions_give_what_onnx_runtime_gives(
    operator: str, attributes: dict[str, Any], shape: tuple[int, ...], made: tuple[int, ...], compile_model: Compile
) -> None:
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    _, log = compile_model(make_model([node], {"x": shape}, {"y": made}, {}))
    assert log.verdict.cases > 0
    assert log.verdict.max_difference < 2e-6


@pytest.mark.parametrize("classes", [10, 64])
def test_the_softmax_of_few_and_of_many_classes_has_a_schedule(classes: int, compile_model: Compile) -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=-1)
    _, log = compile_model(make_model([node], {"x": (1, classes)}, {"y": (1, classes)}, {}))
    assert log.unscheduled == ()
