"""Writing a kernel loop by loop: what the kernels that are not scheduled but written have in common.

A written kernel sees its tensors flat, as bytes in a row, so that the layout is its own business. Vectors are built
by `span` and `every`; what has a constant position is unrolled here, in Python, and stays in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WRITTEN = "lisiere.written"
# TVM asks the host for memory otherwise, even for a single vector.
_ON_STACK = {"disable_lower_builtin": True}
_STACK_BYTES = 64 << 10
_OPAQUE = 8  # TVM's OpPatternKind: not to be fused


@dataclass(frozen=True, slots=True)
class Tensor:
    """A parameter of a kernel: `dtype` is NumPy's name."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def written(parameters: Sequence[Tensor], body: Callable[..., None]) -> Any:
    """Return the PrimFunc that `body` writes; it is given a flat buffer for each parameter, outputs last."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T  # noqa: N812 - the name that every TVM script has

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        handles = [T.arg(f"p{index}", T.handle()) for index in range(len(parameters))]
        T.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE, _WRITTEN: True})
        buffers = [
            T.match_buffer(handle, one.shape or (1,), one.dtype)
            for handle, one in zip(handles, parameters, strict=True)
        ]
        body(
            *(
                T.decl_buffer((max(one.size, 1),), one.dtype, data=buffer.data)
                for buffer, one in zip(buffers, parameters, strict=True)
            )
        )
    return builder.get()


def is_written(function: Any) -> bool:
    """Whether the loops of a PrimFunc are as they should be, so that no schedule applies."""
    return function.attrs is not None and _WRITTEN in function.attrs


def each(count: int) -> Iterator[Any]:
    """Write a loop around what the body of the `for` over this writes; it is run once, with the index.

    None is written for a count of 0, and the body alone for 1.
    """
    from tvm.tirx.script.builder import ir as T  # noqa: N812

    if count == 1:
        yield 0
    elif count > 1:
        with T.serial(0, count) as index:
            yield index


def local(size: int, dtype: str) -> Any:
    """Return a buffer that lives in registers when every index into it is constant."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812

    return T.alloc_buffer((size,), dtype, annotations=_ON_STACK)


def scratch(size: int, dtype: str) -> Any:
    """Return a buffer in memory for the time of one call: on the stack when it is small, else from the host."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812

    small = size * np.dtype(dtype).itemsize <= _STACK_BYTES
    return T.alloc_buffer((size,), dtype, annotations=_ON_STACK if small else {})


def span(buffer: Any, start: Any, lanes: int) -> Any:
    """Read `lanes` neighbours as a vector."""
    return buffer[_index(start, lanes)]


def put(buffer: Any, start: Any, value: Any, lanes: int) -> None:
    """Store a vector to `lanes` neighbours."""
    from tvm.tirx.script.builder import ir as T  # noqa: N812

    T.buffer_store(buffer, value, [_index(start, lanes)])


def put_some(buffer: Any, start: Any, value: Any, lanes: int, valid: int) -> None:
    """Store the first `valid` lanes of a vector."""
    if valid >= lanes:
        put(buffer, start, value, lanes)
        return
    held = local(lanes, buffer.dtype)
    put(held, 0, value, lanes)
    for lane in range(valid):
        put(buffer, start + lane, held[lane], 1)


def every(value: Any, lanes: int) -> Any:
    """Return a vector with one scalar in every lane."""
    from tvm import tirx

    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def number(value: float, dtype: str, lanes: int = 1) -> Any:
    """Return a constant, in every lane of a vector."""
    from tvm import tirx

    return every(tirx.const(value, dtype), lanes)


def cast(value: Any, dtype: str, lanes: int = 1) -> Any:
    """Return a value with each lane converted."""
    return value.astype(of(dtype, lanes))


def bits(value: Any, dtype: str, lanes: int = 1) -> Any:
    """Return the same bits read as another type."""
    from tvm import tirx

    return tirx.call_intrin(of(dtype, lanes), "tirx.reinterpret", value)


def of(dtype: str, lanes: int) -> str:
    """Name a vector type as TVM does."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spans(total: int, sizes: Sequence[int]) -> Iterator[tuple[Any, int]]:
    """Write loops over `total` neighbours by vectors: yields where a vector starts, and its lanes."""
    for start, lanes, count in chunks(total, sizes):
        for at in each(count):
            yield start + at * lanes, lanes


def chunks(total: int, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
    """Split `total` neighbours into runs of equal pieces.

    Args:
        total: how many there are.
        sizes: the pieces to use, largest first; the last must be 1.

    Returns:
        For each size that is used: where its run starts, the size, and how many there are.
    """
    found, start = [], 0
    for size in sizes:
        if count := (total - start) // size:
            found.append((start, size, count))
            start += count * size
    return found


def runs(total: int, size: int) -> list[tuple[int, int, int]]:
    """Split `total` into pieces of one size and a smaller last one: where a run starts, its piece, how many."""
    whole = total // size
    found = [(0, size, whole)] if whole else []
    return [*found, (whole * size, total % size, 1)] if total % size else found


def _index(start: Any, lanes: int) -> Any:
    from tvm import tirx

    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)
