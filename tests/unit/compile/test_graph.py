from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lisiere_compile.graph import build_graph, nbytes, peak_activation_bytes, plan_storage
from lisiere_compile.program import Call, Program, Value


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A random straight list of calls: each reads some of what is there and makes one or two values."""
    count = 0

    def value() -> Value:
        nonlocal count
        count += 1
        shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
        return Value(count, shape, draw(st.sampled_from(["float32", "int64", "bool"])))

    inputs = tuple(value() for _ in range(draw(st.integers(1, 2))))
    constants: dict[Value, Any] = {}
    for _ in range(draw(st.integers(0, 2))):
        one = value()
        constants[one] = np.zeros(one.shape, one.dtype)
    known, calls = [*inputs, *constants], []
    for index in range(draw(st.integers(1, 8))):
        sources = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
        made = tuple(value() for _ in range(draw(st.integers(1, 2))))
        calls.append(Call(f"kernel{index % 3}", sources, made))
        known += made
    made_all = [one for call in calls for one in call.outputs]
    outputs = tuple(draw(st.lists(st.sampled_from(made_all), min_size=1, max_size=3, unique=True)))
    return Program(inputs, outputs, tuple(calls), constants, {})


@given(program=programs())
def test_no_tensor_is_overwritten_while_it_is_needed(program: Program) -> None:
    storage = plan_storage(program)
    holds: dict[int, Value] = {storage[value]: value for value in (*program.inputs, *program.constants)}
    for call in program.calls:
        for source in call.tensors:
            assert holds[storage[source]] == source
        for made in call.outputs:
            assert storage[made] not in [storage[source] for source in call.tensors]
            holds[storage[made]] = made
        assert len({storage[made] for made in call.outputs}) == len(call.outputs)
    # After the last call the host reads the outputs, and the next run needs inputs and parameters again.
    for kept in (*program.inputs, *program.constants, *program.outputs):
        assert holds[storage[kept]] == kept


@given(program=programs())
def test_the_document_is_consistent(program: Program) -> None:
    graph, parameters = build_graph(program, [f"in{index}" for index in range(len(program.inputs))])
    nodes, rows, attrs = graph["nodes"], graph["node_row_ptr"], graph["attrs"]
    assert len(rows) == len(nodes) + 1
    assert rows[0] == 0
    entries = rows[-1]
    assert len(attrs["shape"][1]) == len(attrs["dltype"][1]) == len(attrs["storage_id"][1]) == entries
    assert [node["op"] for node in nodes] == ["null"] * len(graph["arg_nodes"]) + ["tvm_op"] * len(program.calls)
    assert set(parameters) <= {node["name"] for node in nodes}
    for index, node in enumerate(nodes):
        for source, output, _ in node["inputs"]:
            assert source < index
            assert output < rows[source + 1] - rows[source]
        if node["op"] == "tvm_op":
            assert int(node["attrs"]["num_inputs"]) == len(node["inputs"])
            assert int(node["attrs"]["num_outputs"]) == rows[index + 1] - rows[index]
    assert len(graph["heads"]) == len(program.outputs)
    for (node_index, output, _), value in zip(graph["heads"], program.outputs, strict=True):
        assert attrs["shape"][1][rows[node_index] + output] == list(value.shape)
    assert "bool" not in attrs["dltype"][1]


def test_memory_of_a_chain_is_reused() -> None:
    values = [Value(key, (1000,), "float32") for key in range(12)]
    calls = tuple(Call("k", (a,), (b,)) for a, b in pairwise(values))
    storage = plan_storage(Program((values[0],), (values[-1],), calls, {}, {}))
    assert len(set(storage.values())) == 4  # input, output, and two that take turns


def test_two_nodes_of_one_name_are_an_error() -> None:
    value, made = Value(1, (1,), "float32"), Value(2, (1,), "float32")
    program = Program((value,), (made,), (Call("k", (value,), (made,)),), {}, {})
    with pytest.raises(ValueError, match="one name"):
        build_graph(program, ["__k0"])


def test_sizes() -> None:
    assert nbytes(Value(1, (2, 3), "float32")) == 24
    assert nbytes(Value(1, (), "int64")) == 8
    assert nbytes(Value(1, (5,), "bool")) == math.prod((5,))


def test_peak_memory_counts_what_is_shared_once_and_no_parameters() -> None:
    values = [Value(key, (1000,), "float32") for key in range(12)]
    weight = Value(99, (50_000,), "float32")
    calls = tuple(Call("k", (a, weight), (b,)) for a, b in pairwise(values))
    program = Program((values[0],), (values[-1],), calls, {weight: np.zeros(50_000, np.float32)}, {})
    assert peak_activation_bytes(program) == 4 * 4000
