"""Integer kernels that keep channels apart: depthwise convolutions and pools, one vector of channels at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.kernels import emit
from lisiere_compile.kernels.int8 import Kernel, Result, Source, Window, convert, kernel, requantise, stage
from lisiere_compile.target import Target

_COLUMNS = 8
_UNROLLED = 16  # taps of a window that are written out


def depthwise(
    window: Window,
    source: Source,
    weights: NDArray[np.int32],
    bias: NDArray[np.int64],
    scale: NDArray[np.float32],
    result: Result,
    target: Target,
) -> Kernel:
    """Write a depthwise convolution; the arguments are those of `convolution`."""
    width = _filled(window.channels, target)
    taps = weights[..., 0].transpose(1, 2, 0)
    sums = bias - source.zero * weights.sum((1, 2, 3), dtype=np.int64)
    constants = (
        np.pad(taps, ((0, 0), (0, 0), (0, width - window.channels))).astype(np.int16),
        np.pad(sums, (0, width - window.channels)).astype(np.int32),
        np.pad(scale, (0, width - window.channels)).astype(np.float32),
    )

    def body(data: Any, packed: Any, first: Any, scales: Any, out: Any) -> None:
        def start(channel: Any, lanes: int) -> Any:
            return emit.span(first, channel, lanes)

        def add(total: Any, value: Any, tap: Any, channel: Any, lanes: int) -> Any:
            weight = emit.cast(emit.span(packed, tap * width + channel, lanes), "int32", lanes)
            return total + emit.cast(value, "int32", lanes) * weight

        def end(total: Any, channel: Any, lanes: int) -> Any:
            scaled = emit.cast(total, "float32", lanes) * emit.span(scales, channel, lanes)
            return requantise(scaled, result, lanes)

        _windows(window, data, out, source, source.zero, target, "int32", start, add, end)

    return kernel("depthwise", (source.tensor,), constants, result.tensor, body)


def average_pool(window: Window, source: Source, scale: float, result: Result, target: Target) -> Kernel:
    """Write an average pool without a border; `scale` is that of the source in units of the result's."""
    area = window.kernel[0] * window.kernel[1]

    def body(data: Any, out: Any) -> None:
        def start(_channel: Any, lanes: int) -> Any:
            return emit.number(-source.zero * area, "int32", lanes)

        def add(total: Any, value: Any, _tap: Any, _channel: Any, lanes: int) -> Any:
            return total + emit.cast(value, "int32", lanes)

        def end(total: Any, _channel: Any, lanes: int) -> Any:
            factor = emit.number(scale / area, "float32", lanes)
            return requantise(emit.cast(total, "float32", lanes) * factor, result, lanes)

        _windows(window, data, out, source, 0, target, "int32", start, add, end)

    return kernel("average_pool", (source.tensor,), (), result.tensor, body)


def max_pool(window: Window, source: Source, result: Result, target: Target) -> Kernel:
    """Write a maximum pool; source and result have one scale, zero point and type."""
    dtype = source.tensor.dtype
    least = 0 if dtype == "uint8" else -128

    def body(data: Any, out: Any) -> None:
        from tvm import tirx

        def start(_channel: Any, lanes: int) -> Any:
            return emit.number(least, dtype, lanes)

        def add(total: Any, value: Any, _tap: Any, _channel: Any, _lanes: int) -> Any:
            return tirx.max(total, value)

        def end(total: Any, _channel: Any, lanes: int) -> Any:
            return convert(total, dtype, result.tensor.dtype, lanes)

        _windows(window, data, out, source, least, target, dtype, start, add, end)

    return kernel("max_pool", (source.tensor,), (), result.tensor, body)


def _filled(channels: int, target: Target) -> int:
    """How many channels the vectors of a target reach over."""
    return sum(lanes * count for _, lanes, count, _ in _vectors(channels, target))


def _vectors(channels: int, target: Target) -> list[tuple[int, int, int, int]]:
    """Runs of vectors of channels: where it starts, its lanes, how many there are, how many lanes of the last count.

    Narrow machines take several registers at once, so that bytes are read by the register.
    """
    widest = max(target.vector, 8)
    full, rest = divmod(channels, widest)
    found = [(0, widest, full, widest)] if full else []
    if rest:
        lanes = min(lanes for lanes in (4, 8, 16) if lanes >= rest)
        found.append((full * widest, lanes, 1, rest))
    return found


def _windows(
    window: Window,
    data: Any,
    out: Any,
    source: Source,
    border: int,
    target: Target,
    dtype: str,
    start: Callable[..., Any],
    add: Callable[..., Any],
    end: Callable[..., Any],
) -> None:
    """Write the loops over a window: `start` a total, `add` each tap to it, `end` with what is stored."""
    spare = _filled(window.channels, target) - window.channels
    if any(window.padding) or spare:
        data = stage(data, window, source.tensor.dtype, border, spare, target)
    height, width = window.padded
    written: Callable[[int], Iterable[Any]] = range if math.prod(window.kernel) <= _UNROLLED else emit.each

    def tile(image: Any, row: Any, column: Any, wide: int, channel: Any, lanes: int, valid: int) -> None:
        begin = ((image * height + row * window.strides[0]) * width + column * window.strides[1]) * window.channels
        totals = [emit.local(lanes, dtype) for _ in range(wide)]
        for held in totals:
            emit.put(held, 0, start(channel, lanes), lanes)

        def tap(line: Any, at: Any) -> None:
            inside = (line * window.dilation[0] * width + at * window.dilation[1]) * window.channels
            for x, held in enumerate(totals):
                place = begin + inside + x * window.strides[1] * window.channels + channel
                value = emit.span(data, place, lanes)
                number = line * window.kernel[1] + at
                emit.put(held, 0, add(emit.span(held, 0, lanes), value, number, channel, lanes), lanes)

        for line in written(window.kernel[0]):
            for at in written(window.kernel[1]):
                tap(line, at)
        goal = ((image * window.rows + row) * window.columns + column) * window.channels + channel
        for x, held in enumerate(totals):
            value = end(emit.span(held, 0, lanes), channel, lanes)
            emit.put_some(out, goal + x * window.channels, value, lanes, valid)

    for first, lanes, vectors, valid in _vectors(window.channels, target):
        most = max(1, min(_COLUMNS, (target.registers - 4) * target.vector // (2 * lanes)))
        whole = -(-window.columns // -(-window.columns // most))
        for at in emit.each(vectors):
            for column, wide, count in emit.runs(window.columns, whole):
                for image in emit.each(window.batch):
                    for row in emit.each(window.rows):
                        for x in emit.each(count):
                            tile(image, row, column + x * wide, wide, first + at * lanes, lanes, valid)
