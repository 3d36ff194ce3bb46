"""Where transposes end up: at the inputs and outputs of an image network, and nowhere between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from lisiere_compile import lower
from lisiere_compile.frontends.onnx import read_onnx, to_relax
from lisiere_compile.quiet import quiet
from lisiere_compile.target import resolve_target

from .conftest import make_job, make_model, parse

CHANNELS = 8


def kernels(model: onnx.ModelProto, folder: Path) -> list[str]:
    """The kernels that a model is lowered to, in order."""
    file = folder / "m.onnx"
    onnx.save(model, str(file))
    read = read_onnx(file, {})
    target = resolve_target(parse(make_job(file)))
    with quiet():
        program = lower.to_program(lower.legalise(to_relax(read, file.name), read, target), read)
    return [call.kernel for call in program.calls]


def network(*between: Any, **constants: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Two convolutions and what stands between them, from `a` to `b`."""
    random = np.random.default_rng(4)
    weights = {name: random.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], pads=[1] * 4),
        *between,
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1] * 4),
    ]
    shape = (1, CHANNELS, 6, 6)
    return make_model(nodes, {"x": shape}, {"y": shape}, weights | constants)


BOUNDS = {"low": np.asarray(0, np.float32), "high": np.asarray(6, np.float32)}
SLOPES = {"slope": np.linspace(0, 1, CHANNELS, dtype=np.float32).reshape(1, -1, 1, 1)}


@pytest.mark.parametrize(
    "model",
    [
        network(helper.make_node("Relu", ["a"], ["b"])),
        network(helper.make_node("Clip", ["a", "low", "high"], ["b"]), **BOUNDS),
        network(helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1)),
        network(helper.make_node("HardSwish", ["a"], ["b"])),
        network(
            helper.make_node("Mul", ["a", "slope"], ["m"]),
            helper.make_node("Max", ["a", "m"], ["b"]),
            **SLOPES,
        ),
    ],
    ids=["Relu", "Clip", "LeakyRelu", "HardSwish", "Max"],
)
def test_nothing_is_transposed_between_two_convolutions(model: onnx.ModelProto, tmp_path: Path) -> None:
    found = kernels(model, tmp_path)
    assert sum("transpose" in name for name in found) == 2, found
    assert "transpose" in found[0]
    assert "transpose" in found[-1]
