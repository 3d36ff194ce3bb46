"""Kernels with one reduction: convolutions, matrix products, pools.

With channels last they are one shape of loop nest: the last spatial axis is contiguous in every tensor that it indexes.
A tile of accumulators stays in registers over the whole reduction, and what follows the reduction is computed on it
before it is stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.kernels.blocks import axes, coefficient, depends, extent, loads
from lisiere_compile.kernels.nest import Nest, Pack
from lisiere_compile.kernels.tiles import channelwise_tiles, outer_product_tiles

_MOST_UNROLLED = 400  # multiply-adds of one tile over the reduced axes that are unrolled
_STEPS = 8  # of the reduction of a single row that are written out
_WORTH_SHARING = 1 << 18  # multiply-adds that take longer than it takes to wake another thread


def outer_product(nest: Nest) -> bool:
    """Tile data times weights: dense convolutions and matrix products.

    A step of the reduction multiplies one number of each row of the tile with the vectors of weights, which lie in the
    order in which the tiles read them.
    """
    if not nest.find_reduction():
        return False
    weights = _find_weights(nest)
    if weights is None:
        return False
    sch, target = nest.sch, nest.target
    rows, channels = [1, *nest.extents("S")][-2:]
    work = math.prod(nest.extents("S")) * math.prod(nest.extents("R"))
    # Weights that the second cache does not hold are read once: they go round outermost. Others stay in it, and the
    # panel of one tile serves a whole line of pixels.
    weights_first = weights.size * 4 > target.l2_bytes // 2
    plan = nest.choose(outer_product_tiles(rows, channels, target.vector, target.registers), weights_first)
    if plan is None:
        return False
    tile, weights_first = plan.tile, plan.channels_first
    if weights.parameter in nest.constant:
        nest.packs[weights.parameter] = _pack(nest, weights, tile.channels)
    reduced = nest.loops("R")
    outer, c_outer, inner = nest.split(tile)
    place = 0 if weights_first else max(len(outer) - 1, 0)
    order = [*outer[:place], c_outer, *outer[place:]]
    if tile.rows == 1:
        reduced = _unroll_steps(nest, reduced)
    sch.reorder(*order, *reduced, *inner)
    nest.write_out(inner)
    if not nest.place_epilogue(order, tile.channels, tile.lanes):
        return False
    by_line = bool(nest.pads) and not weights_first and len(order) > 2
    for pad in nest.pads:
        if by_line:
            sch.compute_at(pad, order[-3])
        nest.vectorise(pad)
    _share(nest, work, order[:-2] if by_line else order)
    sch.decompose_reduction(nest.main, reduced[0])
    return True


def _unroll_steps(nest: Nest, reduced: list[Any]) -> list[Any]:
    """Write a few steps of the reduction out: a single row waits for its weights, so more should be under way."""
    sch, last = nest.sch, reduced[-1]
    steps = max(count for count in range(1, _STEPS + 1) if extent(sch, last) % count == 0)
    outer, inner = sch.split(last, [None, steps])
    sch.unroll(inner)
    return [*reduced[:-1], outer, inner]


def _share(nest: Nest, work: int, loops: list[Any]) -> None:
    """Let the threads of the target share the rounds of nested loops, where there is enough to do."""
    if nest.target.threads > 1 and work >= _WORTH_SHARING:
        nest.sch.parallel(nest.sch.fuse(*loops))


def channelwise(nest: Nest) -> bool:
    """Tile a reduction that keeps channels apart: depthwise convolutions and pools.

    What is padded is never written: tiles that touch the border ask where it is, and run apart from the others.
    """
    if not nest.find_reduction() or _find_weights(nest) is not None or len(nest.pads) > 1:
        return False
    bare = _inline_pad(nest) if nest.pads else None
    if nest.pads and bare is None:
        return False
    return _tile_channels(nest, bare)


def padded_channelwise(nest: Nest) -> bool:
    """As `channelwise`, where the border is too large a part of the image: what is padded is written first."""
    if not nest.find_reduction() or _find_weights(nest) is not None:
        return False
    for pad in nest.pads:
        nest.vectorise(pad)
    return _tile_channels(nest, None)


def _tile_channels(nest: Nest, bare: list[tuple[int, int]] | None) -> bool:
    """Tile by channels and columns.

    Args:
        nest: the kernel.
        bare: the first and the last row and column of the output that read no border; None when nothing is padded.
    """
    sch, target = nest.sch, nest.target
    extents = nest.extents("S")
    rows, channels = [1, *extents][-2:]
    if channels == 1:  # there is nothing to vectorise by
        return False
    steps = math.prod(nest.extents("R"))
    work = math.prod(extents) * steps
    # Threads share the channels, whose tiles are many. One thread goes through memory in its order, unless the first
    # cache holds a small image in the channels of a tile, but not the lines of all channels that a window spans.
    shared = target.threads > 1 and work >= _WORTH_SHARING
    image = 4 * math.prod(extents[:-1]) * target.vector
    lines = 4 * rows * channels * nest.extents("R")[0]
    small = 2 * image <= target.l1_bytes < 2 * lines
    tiles = channelwise_tiles(
        rows,
        channels,
        target.vector,
        target.registers,
        _MOST_UNROLLED // steps,
        lambda count: _splits(bare, rows, count),
    )
    plan = nest.choose(tiles, shared or small)
    if plan is None:
        return False
    tile = plan.tile
    reduced = nest.loops("R")
    outer, c_outer, inner = nest.split(tile)
    order = [c_outer, *outer] if plan.channels_first else [*outer, c_outer]
    sch.reorder(*order, *reduced, *inner)
    nest.write_out(inner)
    if not nest.place_epilogue(order, tile.channels, tile.lanes):
        return False
    if bare is not None:
        for loop in outer[-2:]:
            sch.annotate(loop, "pragma_loop_partition_hint", 1)
    _unroll_small(nest, reduced, tile.rows * tile.vectors)
    _share(nest, work, [c_outer])
    sch.decompose_reduction(nest.main, reduced[0])
    return True


def _splits(bare: list[tuple[int, int]] | None, columns: int, width: int) -> bool:
    """Whether a row of an image in tiles of a width has a tile that no border touches, or is one tile."""
    if bare is None or width >= columns:
        return True
    left, right = bare[1]
    return (right + 1) // width > -(-left // width)


def _inline_pad(nest: Nest) -> list[tuple[int, int]] | None:
    """Let the reduction read what is padded where it lies, or the padding where it would.

    Returns:
        The first and the last row and column of the output that read no border; None when the pad has another form.
    """
    sch = nest.sch
    (pad,) = nest.pads
    spatial, reduced = axes(sch, nest.main, "S"), axes(sch, nest.main, "R")
    source = [load for load in loads(sch, pad) if len(load.indices) == 4]
    padded = [load for load in loads(sch, nest.main) if len(load.indices) == 4 and depends(load, spatial[1])]
    padded = [load for load in padded if any(depends(load, axis) for axis in reduced)]
    if len(spatial) != 4 or len(source) != 1 or len(padded) != 1:
        return None
    extents, bare = nest.extents("S"), []
    for place in (1, 2):
        index = padded[0].indices[place]
        stride = coefficient(index, spatial[place])
        reach = sum(
            (coefficient(index, axis) or 0) * (count - 1)
            for axis, count in zip(reduced, nest.extents("R"), strict=True)
        )
        before = _shift(source[0].indices[place], axes(sch, pad, "S")[place])
        if not stride or before is None:
            return None
        length = int(source[0].source.ty.shape[place])
        last = min((length - 1 + before - reach) // stride, extents[place] - 1)
        bare.append((-(-before // stride), last))
    if bare[0][0] > bare[0][1]:  # every row touches the border
        return None
    import tvm

    # Asked for as likely, what keeps a load inside the image splits the loops into inside and border.
    sch.compute_inline(pad)
    function = _likely(sch.mod["main"])
    names = [str(sch.get(block).name_hint) for block in (nest.main, nest.last)]
    nest.sch = tvm.s_tir.Schedule(tvm.IRModule({"main": function}), error_render_level="none")
    nest.main, nest.last = (nest.sch.get_sblock(one) for one in names)
    nest.pads = []
    return bare


def _shift(index: Any, axis: Any) -> int | None:
    """How far before an axis an index reads: `axis - shift`."""
    import tvm

    found = tvm.sym.detect_linear_equation(index, [axis])
    if not found or int(found[0]) != 1 or not isinstance(found[1], tvm.tirx.IntImm):
        return None
    return -int(found[1])


def _likely(function: Any) -> Any:
    """Mark every condition of a PrimFunc that chooses between two values as likely, each comparison by itself."""
    import tvm
    import tvm_ffi

    def mark(condition: Any) -> Any:
        if isinstance(condition, tvm.tirx.And):
            return tvm.tirx.And(mark(condition.a), mark(condition.b))
        return tvm.tirx.likely(condition)

    def visit(call: Any) -> Any:
        if getattr(call.op, "name", "") != "prim.if_then_else":
            return call
        return tvm.tirx.if_then_else(mark(call.args[0]), *call.args[1:])

    return tvm_ffi.structural_map(function, [(tvm.ir.Call, visit)])


@dataclass(frozen=True)
class _Weights:
    """The parameter that a reduction multiplies its data with: its place, its read in the block, its shape."""

    parameter: int
    read: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _find_weights(nest: Nest) -> _Weights | None:
    """Find what is read by channel and not by position, where the data is read by position and not by channel."""
    sch, main = nest.sch, nest.main
    block = sch.get(main)
    spatial = axes(sch, main, "S")
    extents = {axis.var: int(axis.dom.extent) for axis in block.iter_vars}
    channel, positions = spatial[-1], [axis for axis in spatial[:-1] if extents[axis] > 1]
    found, data = None, False
    for load in loads(sch, main):
        if not depends(load, channel):
            data = True
        elif not any(depends(load, axis) for axis in positions):
            reads = [i for i, region in enumerate(block.reads) if region.source.same_as(load.source)]
            places = [i for i, one in enumerate(sch.mod["main"].params) if one.same_as(load.source)]
            if reads and places:
                found = _Weights(places[0], reads[0], tuple(int(size) for size in load.source.ty.shape))
    return found if data else None


def _pack(nest: Nest, weights: _Weights, channels: int) -> Pack:
    """Lay weights [..., c] out as [c_outer, ..., c_inner], so that a tile reads them from first to last."""
    rank = len(weights.shape)

    def mapping(*index: Any) -> tuple[Any, ...]:
        return (index[-1] // channels, *index[:-1], index[-1] % channels)

    nest.sch.transform_layout(nest.main, ("read", weights.read), mapping)

    def pack(array: NDArray[Any]) -> NDArray[Any]:
        split = array.reshape(*array.shape[:-1], -1, channels)
        return np.moveaxis(split, rank - 1, 0)

    return pack


def _unroll_small(nest: Nest, reduced: list[Any], each: int) -> None:
    """Unroll reduced loops from the innermost while the code stays small, so that loads are shared between steps."""
    size = each
    for loop in reversed(reduced):
        size *= extent(nest.sch, loop)
        if size > _MOST_UNROLLED:
            return
        nest.sch.unroll(loop)
