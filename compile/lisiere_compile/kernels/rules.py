"""Schedules: how the loops of one kernel are ordered, split, vectorised and unrolled.

One rule serves convolutions, depthwise convolutions, dense layers and pools, because with channels last they are one
shape of loop nest: the last spatial axis is contiguous in every tensor that it indexes. The tile of accumulators
stays in registers over the whole reduction, and weights lie in the order in which the tile reads them. A kernel that no
rule fits is left as it is: every step is one that TVM checks, so a schedule may be slow but not wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.kernels.blocks import (
    axes,
    blocks,
    contiguous,
    depends,
    extent,
    is_identity,
    kinds,
    loads,
    name,
)
from lisiere_compile.kernels.tiles import channelwise_tile, outer_product_tile
from lisiere_compile.program import Call, Program, Value
from lisiere_compile.target import Target

Pack = Callable[[NDArray[Any]], NDArray[Any]]
_MOST_UNROLLED = 400  # multiply-adds of one tile over the reduced axes that are unrolled
_STACK_BYTES = 128 << 10  # of a padded block that lives on the stack


@dataclass
class Scheduled:
    """A kernel after its schedule: the PrimFunc, and how the constants that it reads are to be laid out."""

    function: Any
    packs: dict[int, Pack] = field(default_factory=dict)


def schedule(program: Program, target: Target) -> dict[str, Scheduled]:
    """Return the kernels that a rule fits, scheduled, by name; the others run as lowering gave them."""
    constant = _constant_arguments(program)
    found = {
        kernel: schedule_one(function, target, constant.get(kernel, frozenset()))
        for kernel, function in program.functions.items()
    }
    return {kernel: done for kernel, done in found.items() if done is not None}


def schedule_one(function: Any, target: Target, constant: frozenset[int] = frozenset()) -> Scheduled | None:
    """Return the scheduled kernel, or None when no rule fits.

    Args:
        function: a PrimFunc.
        target: the machine.
        constant: which parameters are constants in every call, so that their layout is ours to choose.
    """
    import tvm

    for rule in (_tile_reduction, _inline_only):
        sch = tvm.s_tir.Schedule(tvm.IRModule({"main": function}), error_render_level="none")
        packs: dict[int, Pack] = {}
        try:
            if rule(sch, target, constant, packs):
                return Scheduled(sch.mod["main"], packs)
        except RuntimeError:  # a primitive refused this nest; ScheduleError is one of them
            continue
    return None


def _constant_arguments(program: Program) -> dict[str, frozenset[int]]:
    """Which arguments of each kernel are constants in every call of it."""
    found: dict[str, set[int]] = {}
    for call in program.calls:
        here = {index for index, value in enumerate(call.arguments) if value in program.constants}
        found[call.kernel] = found[call.kernel] & here if call.kernel in found else here
    return {kernel: frozenset(indices) for kernel, indices in found.items()}


def pack_weights(program: Program, packs: Mapping[str, Mapping[int, Pack]]) -> Program:
    """Give each call constants in the layout that its kernel reads; one constant in two layouts becomes two.

    Args:
        program: with constants as lowering gave them.
        packs: kernel name -> argument -> how to lay it out.
    """
    constants = dict(program.constants)
    calls: list[Call] = []
    made: dict[tuple[Value, str, int], Value] = {}
    key = 1 + max(
        (value.key for call in program.calls for value in (*call.tensors, *call.outputs)),
        default=0,
    )
    for call in program.calls:
        arguments = list(call.arguments)
        for index, pack in packs.get(call.kernel, {}).items():
            value = arguments[index]
            assert isinstance(value, Value)  # noqa: S101 - a constant
            known = made.get((value, call.kernel, index))
            if known is None:
                data = np.ascontiguousarray(pack(program.constants[value]))
                known = made[value, call.kernel, index] = Value(key, data.shape, value.dtype)
                constants[known] = data
                key += 1
            arguments[index] = known
        calls.append(replace(call, arguments=tuple(arguments)))
    used = {value for call in calls for value in call.tensors}
    kept = {value: data for value, data in constants.items() if value in used}
    return replace(program, calls=tuple(calls), constants=kept)


def _tile_reduction(sch: Any, target: Target, constant: frozenset[int], packs: dict[int, Pack]) -> bool:
    """Tile the one reduction of a kernel in registers, with its epilogue inside the tile."""
    every = blocks(sch)
    reductions = [block for block in every if "R" in kinds(sch, block)]
    if len(reductions) != 1:
        return False
    main = reductions[0]
    position = next(index for index, block in enumerate(every) if name(sch, block) == name(sch, main))
    prologue, epilogue = every[:position], every[position + 1 :]
    if not contiguous(sch, main):
        return False
    pads = []
    for block in prologue:
        if is_identity(sch, block):
            sch.compute_inline(block)
        else:
            pads.append(block)
    for block in epilogue[:-1]:
        sch.compute_inline(block)
    if epilogue:
        last = epilogue[-1]
    else:
        last, main = main, sch.cache_write(main, 0, "global")
        main, last = last, main
    if not pads:
        _join_pixels(sch, main, last)
    sch.set_scope(main, 0, "local")
    loops = sch.get_loops(main)
    letters = kinds(sch, main)
    spatial = [loop for loop, kind in zip(loops, letters, strict=True) if kind == "S"]
    reduced = [loop for loop, kind in zip(loops, letters, strict=True) if kind == "R"]
    rows = extent(sch, spatial[-2]) if len(spatial) > 1 else 1
    channels = extent(sch, spatial[-1])
    weights = _weights(sch, main)
    outer_product = weights is not None
    choose = outer_product_tile if outer_product else channelwise_tile
    tile = choose(rows, channels, target.vector, target.registers)
    if tile is None:
        return False
    weight_bytes = 0
    if weights is not None and weights.parameter in constant:
        packs[weights.parameter] = _pack(sch, main, weights, tile.channels)
        weight_bytes = weights.elements * 4
    elif weights is not None:
        weight_bytes = weights.elements * 4
    c_outer, c_vector, c_lane = sch.split(spatial[-1], [None, tile.vectors, tile.lanes])
    outer, inner = spatial[:-1], [c_vector, c_lane]
    if len(spatial) > 1:
        x_outer, x_inner = sch.split(spatial[-2], [None, tile.rows])
        outer, inner = [*spatial[:-2], x_outer], [x_inner, c_vector, c_lane]
    # Weights that the second cache does not hold are read once: they go round outermost.
    weights_first = outer_product and weight_bytes > target.l2_bytes // 2
    if weights_first:
        order = [c_outer, *outer]
    elif len(outer) > 1 and outer_product:
        order = [*outer[:-1], c_outer, outer[-1]]
    else:
        order = [*outer, c_outer]
    sch.reorder(*order, *reduced, *inner)
    _emit(sch, inner)
    sch.reverse_compute_at(last, order[-1])
    tail = sch.get_loops(last)[len(order) :]
    if not tail or extent(sch, tail[-1]) != tile.channels:
        return False
    _emit(sch, [*tail[:-1], *sch.split(tail[-1], [None, tile.lanes])])
    _place_pads(sch, pads, order, weights_first, target)
    if not outer_product:
        _unroll_small(sch, reduced, tile.rows * tile.vectors)
    first = next((loop for loop in reduced), None)
    if first is not None:
        sch.decompose_reduction(main, first)
    return True


def _emit(sch: Any, loops: list[Any]) -> None:
    """Write the loops of a tile out: the last as one vector, the others one after the other."""
    sch.vectorize(loops[-1])
    for loop in loops[:-1]:
        sch.unroll(loop)


def _join_pixels(sch: Any, main: Any, last: Any) -> None:
    """Make one axis of the rows and columns of an image when the kernel never tells them apart, as in 1x1."""
    spatial = axes(sch, main, "S")
    if len(spatial) != 4 or len(axes(sch, last, "S")) != 4:
        return
    loops = [extent(sch, loop) for loop in sch.get_loops(main)]
    height, width = loops[1], loops[2]
    if height == 1:
        return
    for block in (main, last):
        _, y, x, _ = axes(sch, block, "S")
        for load in loads(sch, block):
            indices = load.indices
            if not (depends(load, y) or depends(load, x)):
                continue
            shape = [int(dim) for dim in load.source.ty.shape]
            if (
                len(indices) != 4
                or not indices[1].same_as(y)
                or not indices[2].same_as(x)
                or shape[1:3] != [height, width]
            ):
                return
    sch.transform_layout(main, ("write", 0), lambda n, y, x, c: (n, y * width + x, c))
    sch.transform_block_layout(main, lambda n, y, x, c, *rest: (n, y * width + x, c, *rest))
    sch.transform_block_layout(last, lambda n, y, x, c: (n, y * width + x, c))


@dataclass(frozen=True)
class _Weights:
    """The parameter that a reduction multiplies its data with: its place, its read in the block, its shape."""

    parameter: int
    read: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def _weights(sch: Any, main: Any) -> _Weights | None:
    """Find what is read by channel and not by position, where the data is read by position and not by channel."""
    spatial = axes(sch, main, "S")
    channel, positions = spatial[-1], spatial[:-1]
    found, data = None, False
    function = sch.mod["main"]
    buffers = list(function.params)
    for load in loads(sch, main):
        by_channel = depends(load, channel)
        by_position = any(depends(load, axis) for axis in positions)
        if not by_channel:
            data = True
        elif not by_position or len(spatial) == 1 or all(_one(sch, main, axis) for axis in positions):
            read = next((i for i, region in enumerate(sch.get(main).reads) if region.source.same_as(load.source)), None)
            place = next((i for i, buffer in enumerate(buffers) if buffer.same_as(load.source)), None)
            if read is not None and place is not None:
                found = _Weights(place, read, tuple(int(dim) for dim in load.source.ty.shape))
    return found if data else None


def _one(sch: Any, block: Any, axis: Any) -> bool:
    return any(it.var.same_as(axis) and int(it.dom.extent) == 1 for it in sch.get(block).iter_vars)


def _pack(sch: Any, main: Any, weights: _Weights, channels: int) -> Pack:
    """Lay weights [..., c] out as [c_outer, ..., c_inner], so that a tile reads them from first to last."""
    rank = len(weights.shape)

    def mapping(*index: Any) -> tuple[Any, ...]:
        return (index[-1] // channels, *index[:-1], index[-1] % channels)

    sch.transform_layout(main, ("read", weights.read), mapping)

    def pack(array: NDArray[Any]) -> NDArray[Any]:
        split = array.reshape(*array.shape[:-1], -1, channels)
        return np.moveaxis(split, rank - 1, 0)

    return pack


def _place_pads(sch: Any, pads: list[Any], order: list[Any], whole: bool, target: Target) -> None:
    """Compute what is padded a row of tiles at a time, where it stays in the cache; or at once before everything."""
    for pad in pads:
        if not whole and len(order) > 2:
            sch.compute_at(pad, order[-3])
        loop = sch.get_loops(pad)[-1]
        for width in (4 * target.vector, 2 * target.vector, target.vector):
            if extent(sch, loop) % width == 0:
                _, inner = sch.split(loop, [None, width])
                sch.vectorize(inner)
                break


def _unroll_small(sch: Any, reduced: list[Any], each: int) -> None:
    """Unroll reduced loops from the innermost while the code stays small, so that loads are shared between steps."""
    size = each
    for loop in reversed(reduced):
        size *= extent(sch, loop)
        if size > _MOST_UNROLLED:
            return
        sch.unroll(loop)


def _inline_only(sch: Any, target: Target, constant: frozenset[int], packs: dict[int, Pack]) -> bool:
    """Make one loop nest of a chain of elementwise blocks, so that nothing between them goes to memory."""
    del constant, packs
    every = blocks(sch)
    if any("R" in kinds(sch, block) for block in every):
        return False
    for block in every[:-1]:
        sch.compute_inline(block)
    if contiguous(sch, every[-1]):
        _vectorise_last(sch, every[-1], target)
    return True


def _vectorise_last(sch: Any, block: Any, target: Target) -> None:
    """Vectorise the innermost loop of a block where its extent allows."""
    loops = sch.get_loops(block)
    if not loops:  # a scalar
        return
    loop = loops[-1]
    for width in (4 * target.vector, 2 * target.vector, target.vector):
        if extent(sch, loop) % width == 0:
            _, inner = sch.split(loop, [None, width])
            sch.vectorize(inner)
            return
