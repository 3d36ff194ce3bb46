"""Integer kernels with weights over all channels: convolutions and dense layers of 8-bit numbers, summed in 32 bits.

A tile of `columns` by `vectors` sums stays in registers over the whole reduction. Each step of it takes a `group` of
neighbouring numbers of one column, as one word in every lane, and a vector of weights that was packed for it, and adds
their products by the best instruction of the target (`Dot`). All zero points are folded into the first value of a sum:
sum((x - zx)(w - zw)) = bias - zx sum(w) + sum(x w), and the border is padded with zx, so that it is so there too.

Weights that 8 bits cannot hold without their zero point are lifted by a constant for each channel; what the lift adds
is the constant times the sum of the column's numbers, which one more vector of sums counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.kernels import emit
from lisiere_compile.kernels.int8 import Dot, Kernel, Result, Source, Window, dot_of, kernel, requantise, shift, stage
from lisiere_compile.target import Target

_LATENCY = 8  # sums that must be under way for a product every half cycle, when one takes four cycles


@dataclass(frozen=True, slots=True)
class _Channels:
    """A run of equal tiles of output channels of one group: where it starts, how many vectors of how many lanes."""

    start: int
    lanes: int
    vectors: int
    count: int
    valid: int

    @property
    def width(self) -> int:
        return self.lanes * self.vectors


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a convolution is cut up: see `_plan`."""

    taps: int
    run: int
    steps: int
    columns: int
    channels: tuple[_Channels, ...]

    @property
    def width(self) -> int:
        """The output channels of a group, with those that fill the last vector."""
        last = self.channels[-1]
        return last.start + last.width * last.count


def _plan(window: Window, dot: Dot, registers: int, extra: bool) -> _Plan:
    """Cut a convolution into tiles and its reduction into steps.

    Neighbouring columns of the kernel are one run of the input where nothing is between them, so that few channels do
    not leave a step half empty. The tile is the one that needs the fewest half cycles, if an instruction multiplies
    and another loads every half cycle.
    """
    per_group = window.outputs // window.groups
    run, taps = window.channels // window.groups, window.kernel[1]
    if window.groups == 1 and window.dilation[1] == 1:
        run, taps = run * taps, 1
    full, rest = divmod(per_group, dot.lanes[0])

    def cost(columns: int, vectors: int) -> int:
        total = 0
        for high, rows in _pieces(full, vectors):
            for wide, count in _pieces(window.columns, columns):
                # A fourth of a load is what one costs beside a product: it takes a place in the queue.
                total += rows * count * (4 * max(high * wide, high + wide, _LATENCY) + high + wide)
        return total

    busy = 1 if dot.group == 4 else 3  # the word, and what products need that another instruction adds
    best, vectors = 1, 1
    for wide in range(1, min(window.columns, registers) + 1):
        for high in range(1, min(full, registers) + 1):
            sums = wide * (high + extra)
            if sums + high + busy <= registers and cost(wide, high) < cost(best, vectors):
                best, vectors = wide, high
    if not full:
        best = min(window.columns, max(1, (registers - 1 - busy) // (1 + extra)))
    found = []
    if full // vectors:
        found.append(_Channels(0, dot.lanes[0], vectors, full // vectors, vectors * dot.lanes[0]))
    if left := full % vectors:
        found.append(_Channels((full - left) * dot.lanes[0], dot.lanes[0], left, 1, left * dot.lanes[0]))
    if rest:
        lanes = min(one for one in dot.lanes if one >= rest)
        found.append(_Channels(full * dot.lanes[0], lanes, 1, 1, rest))
    return _Plan(taps, run, -(-run // dot.group), best, tuple(found))


def _pieces(total: int, size: int) -> list[tuple[int, int]]:
    """Sizes of the pieces of `total` and how many there are of each, the last one smaller where it must be."""
    return [(piece, count) for _, piece, count in emit.runs(total, size)]


def convolution(
    window: Window,
    source: Source,
    weights: NDArray[np.int32],
    bias: NDArray[np.int64],
    scale: NDArray[np.float32],
    result: Result,
    target: Target,
) -> Kernel:
    """Write a convolution or a dense layer (a window of one pixel, a column for each row of the matrix).

    Args:
        window: where it looks.
        source: what it reads.
        weights: [outputs, rows, columns, channels of a group], less their zero point.
        bias: [outputs], in units of the sum.
        scale: [outputs], from units of the sum to those of the result.
        result: what it writes.
        target: for which machine.
    """
    window, dot = window.flat(), dot_of(target)
    zero = source.zero + shift(source.tensor.dtype, dot.data)
    lift = _lift(weights) if dot.weight == "int8" else None
    plan = _plan(window, dot, target.registers, lift is not None)
    if lift is not None:
        weights = weights + lift[:, None, None, None]
    sums = bias - zero * weights.sum((1, 2, 3), dtype=np.int64)
    constants = [_packed(window, plan, dot, weights)]
    if lift is not None:
        sums = sums + zero * lift.astype(np.int64) * weights[0].size
        ones = np.zeros(plan.steps * dot.group, dot.weight)
        ones[: plan.run] = 1
        constants += [_spread(window, plan, -lift, np.int32), ones]
    constants += [_spread(window, plan, sums, np.int32), _spread(window, plan, scale, np.float32)]
    spare = plan.steps * dot.group - plan.run

    def body(data: Any, packed: Any, *rest: Any) -> None:
        *lifted, first, scales, out = rest
        if source.tensor.dtype != dot.data or any(window.padding) or spare:
            data = stage(data, window, dot.data, zero, spare, target)
        tile = _Tile(window, plan, dot, result, data, packed, lifted, first, scales, out)

        for channels in plan.channels:
            for group in emit.each(window.groups):
                for at in emit.each(channels.count):
                    start = channels.start + at * channels.width
                    for column, wide, count in emit.runs(window.columns, plan.columns):
                        for image in emit.each(window.batch):
                            for row in emit.each(window.rows):
                                for x in emit.each(count):
                                    tile.write(image, row, column + x * wide, wide, group, channels, start)

    return kernel("convolution", (source.tensor,), tuple(constants), result.tensor, body)


def _lift(weights: NDArray[np.int32]) -> NDArray[np.int32] | None:
    """Return what brings the weights of each channel into 8 bits, or None when they are there."""
    low, high = weights.min((1, 2, 3)), weights.max((1, 2, 3))
    lift = np.where(low < -128, -128 - low, np.where(high > 127, 127 - high, 0)).astype(np.int32)
    return lift if lift.any() else None


def _packed(window: Window, plan: _Plan, dot: Dot, weights: NDArray[np.int32]) -> NDArray[Any]:
    """Weights in the order of use: group, tile, kernel row, tap, step, channel, place in the group of products."""
    per_group = window.outputs // window.groups
    steps = weights.reshape(window.outputs, window.kernel[0], plan.taps, plan.run)
    steps = np.pad(steps, ((0, 0), (0, 0), (0, 0), (0, plan.steps * dot.group - plan.run)))
    parts = []
    for group in range(window.groups):
        own = steps[group * per_group : (group + 1) * per_group]
        own = np.pad(own, ((0, plan.width - per_group), (0, 0), (0, 0), (0, 0)))
        own = own.reshape(*own.shape[:3], plan.steps, dot.group)
        for channels in plan.channels:
            for at in range(channels.count):
                start = channels.start + at * channels.width
                parts.append(own[start : start + channels.width].transpose(1, 2, 3, 0, 4).ravel())
    return np.concatenate(parts).astype(dot.weight)


def _spread(window: Window, plan: _Plan, values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """One number for each output channel, each group filled up to whole vectors."""
    grouped = values.reshape(window.groups, -1)
    return np.pad(grouped, ((0, 0), (0, plan.width - grouped.shape[1]))).astype(dtype).ravel()


@dataclass(frozen=True)
class _Tile:
    """Writes the tiles of one convolution.

    Attributes:
        data, packed, first, scales, out: flat buffers; `first` is what a sum starts from.
        lifted: the factor of each channel and the ones that sum a column, or nothing.
    """

    window: Window
    plan: _Plan
    dot: Dot
    result: Result
    data: Any
    packed: Any
    lifted: list[Any]
    first: Any
    scales: Any
    out: Any

    def write(self, image: Any, row: Any, column: Any, wide: int, group: Any, channels: _Channels, start: Any) -> None:
        """Write `wide` columns of one row in the channels from `start` of a group."""
        window, plan, lanes, size = self.window, self.plan, channels.lanes, channels.lanes * self.dot.group
        height, width = window.padded
        begin = ((image * height + row * window.strides[0]) * width + column * window.strides[1]) * window.channels
        begin += group * (window.channels // window.groups)
        place = group * plan.width + start
        weights = place * (window.kernel[0] * plan.taps * plan.steps * self.dot.group)
        sums = [[emit.local(lanes, "int32") for _ in range(channels.vectors)] for _ in range(wide)]
        totals = [emit.local(lanes, "int32") for _ in range(wide)] if self.lifted else []
        for each in sums:
            for high, held in enumerate(each):
                emit.put(held, 0, emit.span(self.first, place + high * lanes, lanes), lanes)
        for held in totals:
            emit.put(held, 0, emit.number(0, "int32", lanes), lanes)

        def step(line: Any, tap: Any, at: Any) -> None:
            inside = (line * window.dilation[0] * width + tap * window.dilation[1]) * window.channels
            base = begin + inside + at * self.dot.group
            words = [self._word(self.data, base + x * window.strides[1] * window.channels, lanes) for x in range(wide)]
            used = weights + ((line * plan.taps + tap) * plan.steps + at) * (size * channels.vectors)
            for high in range(channels.vectors):
                vector = emit.span(self.packed, used + high * size, size)
                for x in range(wide):
                    self._add(sums[x][high], words[x], vector, lanes)
            for x, held in enumerate(totals):
                self._add(held, words[x], self._word(self.lifted[1], at * self.dot.group, lanes), lanes)

        for line in emit.each(window.kernel[0]):
            for tap in emit.each(plan.taps):
                for at in emit.each(plan.steps):
                    step(line, tap, at)
        pixel = (image * window.rows + row) * window.columns + column
        goal = pixel * window.outputs + group * (window.outputs // window.groups) + start
        for high in range(channels.vectors):
            scale = emit.span(self.scales, place + high * lanes, lanes)
            for x in range(wide):
                value = emit.span(sums[x][high], 0, lanes)
                if totals:
                    factor = emit.span(self.lifted[0], place + high * lanes, lanes)
                    value = value + factor * emit.span(totals[x], 0, lanes)
                value = requantise(emit.cast(value, "float32", lanes) * scale, self.result, lanes)
                valid = min(lanes, channels.valid - high * lanes)
                emit.put_some(self.out, goal + x * window.outputs + high * lanes, value, lanes, valid)

    def _word(self, buffer: Any, start: Any, lanes: int) -> Any:
        """A group of neighbours, the same in every lane."""
        group = self.dot.group
        if group == 1:
            return emit.every(buffer[start], lanes)
        word = emit.every(emit.bits(emit.span(buffer, start, group), "int32"), lanes)
        return emit.bits(word, buffer.dtype, lanes * group)

    def _add(self, held: Any, word: Any, vector: Any, lanes: int) -> None:
        """Add a group of products to each lane of a sum."""
        from tvm import tirx

        value, name = emit.span(held, 0, lanes), self.dot.intrinsic.get(lanes)
        if name is None:
            value = value + emit.cast(word, "int32", lanes) * emit.cast(vector, "int32", lanes)
        elif self.dot.group == 2:
            value = value + tirx.call_llvm_pure_intrin(emit.of("int32", lanes), name, word, vector)
        else:
            value = tirx.call_llvm_pure_intrin(emit.of("int32", lanes), name, value, word, vector)
        emit.put(held, 0, value, lanes)
