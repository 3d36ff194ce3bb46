from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lisiere_compile.frontends.batch_norm import fold_batch_norm

from ..conftest import make_model


def normalised(*, bias: bool = False, read_twice: bool = False) -> onnx.ModelProto:
    random = np.random.default_rng(5)
    weights = {
        "w": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        **{name: random.uniform(0.5, 2, 4).astype(np.float32) for name in ("scale", "shift", "mean", "variance")},
    }
    inputs = ["x", "w"]
    if bias:
        weights["b"] = random.normal(size=4).astype(np.float32)
        inputs.append("b")
    nodes = [
        helper.make_node("Conv", inputs, ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"], epsilon=1e-3),
        helper.make_node("Add", ["n", "c"], ["y"]) if read_twice else helper.make_node("Relu", ["n"], ["y"]),
    ]
    return make_model(nodes, {"x": (1, 3, 6, 6)}, {"y": (1, 4, 4, 4)}, weights)


def run(model: onnx.ModelProto) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x = np.random.default_rng(6).normal(size=(1, 3, 6, 6)).astype(np.float32)
    return np.asarray(ReferenceEvaluator(model).run(None, {"x": x})[0])


def test_a_normalisation_goes_into_the_convolution_before_it() -> None:
    for bias in (False, True):
        model = normalised(bias=bias)
        folded = fold_batch_norm(model)
        assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu"]
        np.testing.assert_allclose(run(folded), run(model), rtol=1e-4, atol=1e-5)
        assert [node.op_type for node in model.graph.node] == ["Conv", "BatchNormalization", "Relu"]


def test_a_convolution_that_something_else_reads_keeps_its_normalisation() -> None:
    model = normalised(read_twice=True)
    assert fold_batch_norm(model) is model
