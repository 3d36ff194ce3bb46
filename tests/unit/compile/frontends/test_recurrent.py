from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from lisiere.backends import open_backend
from lisiere.errors import Rejected
from lisiere.models import open_package
from lisiere_compile.verify import random_inputs, reference_outputs

from ..conftest import Compile, make_model

STEPS, BATCH, CHANNELS, HIDDEN = 5, 2, 3, 8


def recurrent(cell: str, direction: str = "forward", *, bias: bool = True, **attributes: Any) -> onnx.ModelProto:
    """A layer with random weights and states, all its outputs given."""
    gates, directions = {"LSTM": 4, "GRU": 3}[cell], 2 if direction == "bidirectional" else 1
    random = np.random.default_rng(3)

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return random.normal(0, 0.5, shape).astype(np.float32)

    weights = {
        "w": draw(directions, gates * HIDDEN, CHANNELS),
        "r": draw(directions, gates * HIDDEN, HIDDEN),
        "h0": draw(directions, BATCH, HIDDEN),
        "c0": draw(directions, BATCH, HIDDEN),
    }
    inputs = ["x", "w", "r", "", "", "h0", "c0"][: 7 if cell == "LSTM" else 6]
    if bias:
        weights["b"] = draw(directions, 2 * gates * HIDDEN)
        inputs[3] = "b"
    weights = {name: array for name, array in weights.items() if name in inputs}
    outputs = {
        "y": (STEPS, directions, BATCH, HIDDEN),
        "h": (directions, BATCH, HIDDEN),
        "c": (directions, BATCH, HIDDEN),
    }
    outputs = dict(list(outputs.items())[: 3 if cell == "LSTM" else 2])
    node = helper.make_node(cell, inputs, list(outputs), hidden_size=HIDDEN, direction=direction, **attributes)
    return make_model([node], {"x": (STEPS, BATCH, CHANNELS)}, outputs, weights)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("cell", "attributes"), [("LSTM", {}), ("GRU", {"linear_before_reset": 1})])
def test_a_recurrent_layer_gives_what_onnx_runtime_gives(
    cell: str, attributes: dict[str, Any], direction: str, compile_model: Compile
) -> None:
    folder, log = compile_model(recurrent(cell, direction, **attributes))
    assert log.unscheduled == ()
    package = open_package(folder)
    model = open_backend("graph", package)
    feeds = random_inputs(package.manifest.inputs)[1]
    (wanted,) = reference_outputs(package.file("model.onnx"), package.manifest, [feeds])
    for name, value in model.run(feeds).items():
        np.testing.assert_allclose(value, wanted[name], atol=2e-6, err_msg=name)


def test_a_layer_without_bias_and_states_begins_with_zeros(compile_model: Compile) -> None:
    model = recurrent("LSTM", bias=False)
    del model.graph.node[0].input[5:]
    folder, _ = compile_model(model)  # the gate compares it with ONNX Runtime
    assert open_package(folder).manifest.build is not None


@pytest.mark.parametrize(
    ("cell", "attributes", "said"),
    [
        ("GRU", {}, "`linear_before_reset` 0"),
        ("LSTM", {"clip": 1.0, "input_forget": 1}, "`clip` and `input_forget`"),
        ("LSTM", {"activations": ["Relu", "Tanh", "Tanh"]}, "the activations relu, tanh, tanh"),
    ],
)
def test_a_layer_that_has_no_kernel_is_refused_by_name(
    cell: str, attributes: dict[str, Any], said: str, compile_model: Compile
) -> None:
    with pytest.raises(Rejected, match=cell) as caught:
        compile_model(recurrent(cell, **attributes))
    assert said in str(caught.value)
