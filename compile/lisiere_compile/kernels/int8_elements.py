"""Integer kernels over single numbers: sums and products, tables, softmax, joining, change of type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.kernels import emit
from lisiere_compile.kernels.emit import Tensor
from lisiere_compile.kernels.int8 import Kernel, Result, Source, convert, kernel, requantise
from lisiere_compile.target import Target


def add(sources: tuple[Source, Source], scales: tuple[float, float], result: Result, target: Target) -> Kernel:
    """Write a sum of two tensors of one shape; the scales are those of the sources in units of the result's."""
    offset = -sum(source.zero * scale for source, scale in zip(sources, scales, strict=True))

    def value(numbers: list[Any], lanes: int) -> Any:
        total = emit.number(offset, "float32", lanes)
        for number, scale in zip(numbers, scales, strict=True):
            total = total + emit.cast(number, "float32", lanes) * emit.number(scale, "float32", lanes)
        return total

    return _each(sources, result, target, value)


def multiply(sources: tuple[Source, Source], scale: float, result: Result, target: Target) -> Kernel:
    """Write a product of two tensors of one shape; `scale` is that of both in units of the result's."""

    def value(numbers: list[Any], lanes: int) -> Any:
        first, second = (
            emit.cast(number, "int32", lanes) - emit.number(source.zero, "int32", lanes)
            for number, source in zip(numbers, sources, strict=True)
        )
        return emit.cast(first * second, "float32", lanes) * emit.number(scale, "float32", lanes)

    return _each(sources, result, target, value)


def _each(sources: tuple[Source, ...], result: Result, target: Target, value: Any) -> Kernel:
    """Write a kernel of one loop; `value` makes float lanes of the sources' lanes."""

    def body(*buffers: Any) -> None:
        *inputs, out = buffers
        for place, lanes in emit.spans(result.tensor.size, (4 * target.vector, 4, 1)):
            numbers = [emit.span(one, place, lanes) for one in inputs]
            emit.put(out, place, requantise(value(numbers, lanes), result, lanes), lanes)

    return kernel("elements", tuple(source.tensor for source in sources), (), result.tensor, body)


def lookup(source: Tensor, table: NDArray[Any], result: Tensor) -> Kernel:
    """Write a function of one number as a table: `table[byte]` for the byte that holds the number."""

    def body(data: Any, values: Any, out: Any) -> None:
        for place in emit.each(source.size):
            emit.put(out, place, values[_byte(data[place], source.dtype)], 1)

    return kernel("lookup", (source,), (table.astype(result.dtype),), result, body)


def _byte(value: Any, dtype: str) -> Any:
    """The byte of an 8-bit number, as an index."""
    return emit.cast(emit.bits(value, "uint8") if dtype == "int8" else value, "int32")


def softmax(source: Source, columns: int, scale: float, result: Result, result_scale: float) -> Kernel:
    """Write a softmax over each row of `columns` numbers, whose exponentials are looked up by their distance."""
    table = np.exp(-np.float64(scale) * np.arange(256)).astype(np.float32)

    def body(data: Any, powers: Any, out: Any) -> None:
        from tvm import tirx

        def distance(place: Any) -> Any:
            return most[0] - emit.cast(data[place], "int32")

        for index in emit.each(source.tensor.size // columns):
            start = index * columns
            most, total = emit.local(1, "int32"), emit.local(1, "float32")
            emit.put(most, 0, emit.number(-128, "int32"), 1)
            emit.put(total, 0, emit.number(0, "float32"), 1)
            for at in emit.each(columns):
                emit.put(most, 0, tirx.max(most[0], emit.cast(data[start + at], "int32")), 1)
            for at in emit.each(columns):
                emit.put(total, 0, total[0] + powers[distance(start + at)], 1)
            emit.put(total, 0, emit.number(1 / result_scale, "float32") / total[0], 1)
            for at in emit.each(columns):
                share = powers[distance(start + at)] * total[0]
                emit.put(out, start + at, requantise(share, result, 1), 1)

    return kernel("softmax", (source.tensor,), (table,), result.tensor, body)


def concatenate(
    sources: tuple[Source, ...],
    runs: tuple[int, ...],
    scales: tuple[float, ...],
    result: Result,
    target: Target,
) -> Kernel:
    """Write a concatenation: of each source a run of `runs` numbers in turn, in the result's scale."""
    whole = sum(runs)

    def body(*buffers: Any) -> None:
        *inputs, out = buffers
        before = 0
        for data, source, run, scale in zip(inputs, sources, runs, scales, strict=True):
            same = (scale, source.zero, source.tensor.dtype) == (1, result.zero, result.tensor.dtype)
            for line in emit.each(source.tensor.size // run):
                for place, lanes in emit.spans(run, (4 * target.vector, 16, 4, 1)):
                    value = emit.span(data, line * run + place, lanes)
                    if not same:
                        offset = emit.number(-source.zero * scale, "float32", lanes)
                        value = emit.cast(value, "float32", lanes) * emit.number(scale, "float32", lanes) + offset
                        value = requantise(value, result, lanes)
                    emit.put(out, line * whole + before + place, value, lanes)
            before += run

    return kernel("concatenate", tuple(source.tensor for source in sources), (), result.tensor, body)


def retype(source: Tensor, dtype: str, target: Target) -> Kernel:
    """Write the change between signed and unsigned bytes."""

    def body(data: Any, out: Any) -> None:
        for place, lanes in emit.spans(source.size, (4 * target.vector, 4, 1)):
            emit.put(out, place, convert(emit.span(data, place, lanes), source.dtype, dtype, lanes), lanes)

    return kernel("retype", (source,), (), Tensor(source.shape, dtype), body)
