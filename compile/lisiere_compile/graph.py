"""The graph JSON of a Neo artifact, with the plan of which tensors share memory.

Invariants: inputs, parameters and outputs have storage of their own, because the host fills or reads them between
runs; any other storage is reused only after the last reader of what it held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lisiere_compile.program import Program, Value


def parameter_name(index: int) -> str:
    """Return the name of the index-th constant. No ONNX input is called so: see `build_graph`."""
    return f"__p{index}"


def build_graph(program: Program, inputs: Sequence[str]) -> tuple[dict[str, Any], dict[str, Value]]:
    """Return the graph document and its parameters: name -> Value.

    Args:
        program: what lowering gave.
        inputs: the ONNX names of `program.inputs`.

    Raises:
        ValueError: two nodes would have one name.
    """
    storage = plan_storage(program)
    symbols = program.symbols()
    nodes: list[dict[str, Any]] = []
    entries: dict[Value, list[int]] = {}
    rows, order = [0], []

    def add(node: dict[str, Any], values: tuple[Value, ...]) -> None:
        for output, value in enumerate(values):
            entries[value] = [len(nodes), output, 0]
            order.append(value)
        nodes.append(node)
        rows.append(rows[-1] + len(values))

    for name, value in zip(inputs, program.inputs, strict=True):
        add({"op": "null", "name": name, "inputs": []}, (value,))
    parameters: dict[str, Value] = {}
    for index, value in enumerate(program.constants):
        parameters[parameter_name(index)] = value
        add({"op": "null", "name": parameter_name(index), "inputs": []}, (value,))
    arguments = len(nodes)
    for index, call in enumerate(program.calls):
        attrs = {
            "func_name": symbols[call.wrapper],
            "flatten_data": "0",
            "num_inputs": str(len(call.tensors)),
            "num_outputs": str(len(call.outputs)),
        }
        sources = [entries[value] for value in call.tensors]
        add({"op": "tvm_op", "name": f"__k{index}", "attrs": attrs, "inputs": sources}, call.outputs)
    names = [node["name"] for node in nodes]
    if len(set(names)) != len(names):
        raise ValueError("Two nodes of the graph would have one name.")
    document = {
        "nodes": nodes,
        "arg_nodes": list(range(arguments)),
        "heads": [entries[value] for value in program.outputs],
        "attrs": {
            "dltype": ["list_str", [graph_dtype(value) for value in order]],
            "shape": ["list_shape", [list(value.shape) for value in order]],
            "storage_id": ["list_int", [storage[value] for value in order]],
        },
        "node_row_ptr": rows,
    }
    return document, parameters


def graph_dtype(value: Value) -> str:
    """Return the dtype that the graph declares: bool travels as uint8, since the old format has it as one bit."""
    return "uint8" if value.dtype == "bool" else value.dtype


def nbytes(value: Value) -> int:
    """Return the size of a value in bytes."""
    return math.prod(value.shape) * np.dtype(value.dtype).itemsize


def plan_storage(program: Program) -> dict[Value, int]:
    """Give every value a storage id: first fit by liveness, the smallest free one that is large enough."""
    storage: dict[Value, int] = {}
    for value in (*program.inputs, *program.constants, *program.outputs):
        storage.setdefault(value, len(storage))
    kept = set(storage)
    last: dict[Value, int] = {}
    for index, call in enumerate(program.calls):
        for value in (*call.tensors, *call.outputs):
            last[value] = index
    sizes: dict[int, int] = {}
    free: list[int] = []
    count = len(storage)
    for index, call in enumerate(program.calls):
        for value in call.outputs:
            if value in kept:
                continue
            fitting = [one for one in free if sizes[one] >= nbytes(value)]
            # None is large enough: the largest one grows, which costs less than a new one.
            chosen = min(fitting, key=sizes.__getitem__) if fitting else max(free, key=sizes.__getitem__, default=None)
            if chosen is None:
                chosen, count = count, count + 1
            else:
                free.remove(chosen)
            sizes[chosen] = max(sizes.get(chosen, 0), nbytes(value))
            storage[value] = chosen
        # Only now: a kernel's outputs must not overlap its inputs.
        ended = {value for value in (*call.tensors, *call.outputs) if value not in kept and last[value] == index}
        free.extend(sorted(storage[value] for value in ended))
    return storage


def peak_activation_bytes(program: Program) -> int:
    """Return the bytes of inputs, outputs and what kernels hand on, as planned; parameters are not counted."""
    sizes: dict[int, int] = {}
    for value, storage in plan_storage(program).items():
        if value not in program.constants:
            sizes[storage] = max(sizes.get(storage, 0), nbytes(value))
    return sum(sizes.values())
