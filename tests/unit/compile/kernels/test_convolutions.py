"""Convolutions of any size, stride, border, dilation and grouping; the gate compares each with ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from lisiere_compile.compiler import Log, compile_job

from ..conftest import make_job, make_model, parse

# What other CPUs than this one would be given: vectors of 8 and of 4.
CPUS = ("native", "x86-64-v3", "x86-64-v2")


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    """The sizes of a convolution whose output is not empty."""
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    groups = draw(st.sampled_from([1, 1, 2, 8, 24]))
    kernel = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    dilations = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    least = [(one - 1) * step + 1 for one, step in zip(kernel, dilations, strict=True)]
    return {
        "groups": groups,
        "given": groups * draw(st.integers(1, 3)),
        "made": groups * draw(st.sampled_from([1, 1, 2, 5, 16])),
        "kernel": kernel,
        "dilations": dilations,
        "strides": draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)),
        "pads": draw(st.lists(st.integers(0, 3), min_size=2 * rank, max_size=2 * rank)),
        "size": [one + draw(st.integers(0, 17)) for one in least],
        "cpu": draw(st.sampled_from(CPUS)),
    }


def compiled(case: dict[str, Any], nodes: list[Any], weights: dict[str, Any], made: list[int]) -> Log:
    """Compile a network of one input and one output; the gate raises when its answer is not ONNX Runtime's."""
    model = make_model(nodes, {"x": (1, case["given"], *case["size"])}, {"y": made}, weights)
    changes = {} if case["cpu"] == "native" else {"CompilerOptions": f'{{"mcpu": "{case["cpu"]}"}}'}
    log = Log()
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/m.onnx")
        job = make_job(f"{folder}/m.onnx", **changes)
        if changes:
            job["OutputConfig"].pop("TargetDevice")
            job["OutputConfig"]["TargetPlatform"] = {"Os": "LINUX", "Arch": "X86_64"}
        compile_job(parse(job), Path(folder), log=log)
    return log


def output_size(case: dict[str, Any]) -> list[int]:
    rank = len(case["size"])
    pads = case["pads"]
    return [
        (size + pads[axis] + pads[axis + rank] - (kernel - 1) * dilation - 1) // stride + 1
        for axis, (size, kernel, dilation, stride) in enumerate(
            zip(case["size"], case["kernel"], case["dilations"], case["strides"], strict=True)
        )
    ]


@settings(max_examples=14, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(convolutions())
def test_any_convolution_gives_what_onnx_runtime_gives(case: dict[str, Any]) -> None:
    random = np.random.default_rng(8)
    shape = (case["made"], case["given"] // case["groups"], *case["kernel"])
    weights = {
        "w": random.normal(0, 0.3, shape).astype(np.float32),
        "b": random.normal(size=case["made"]).astype(np.float32),
    }
    attributes = {name: case[name] for name in ("dilations", "strides", "pads")}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=case["groups"], **attributes),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    assert compiled(case, nodes, weights, [1, case["made"], *output_size(case)]).verdict.cases > 0
