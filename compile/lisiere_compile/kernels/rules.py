"""Schedules: how the loops of one kernel are ordered, split, vectorised and unrolled.

One rule serves convolutions, depthwise convolutions, dense layers and pools, because with channels last they are one
shape of loop nest: the last spatial axis is contiguous in every tensor that it indexes. The tile of accumulators
(`columns` by `channels`) stays in registers over the whole reduction. A kernel that the rule does not fit is left as it
is: every step is one that TVM checks, so a schedule may be slow but not wrong.

What larger models still want: packed weights, cache blocking over input channels, 1x1 convolutions over all pixels at
once, tail tiles.
"""

from __future__ import annotations

from typing import Any

from lisiere_compile.target import Target

_MAX_COLUMNS = 8
_MAX_CHANNEL_VECTORS = 4


def schedule(functions: dict[str, Any], target: Target) -> tuple[dict[str, Any], list[str]]:
    """Schedule every kernel.

    Returns:
        The functions, and the names of those that were left as they were.
    """
    done, plain = {}, []
    for name, function in functions.items():
        scheduled = schedule_one(function, target)
        done[name] = scheduled or function
        if scheduled is None:
            plain.append(name)
    return done, plain


def schedule_one(function: Any, target: Target) -> Any | None:
    """Return the scheduled PrimFunc, or None when no rule fits."""
    import tvm

    for rule in (_tile_reduction, _inline_only):
        sch = tvm.s_tir.Schedule(tvm.IRModule({"main": function}), error_render_level="none")
        try:
            if rule(sch, target):
                return sch.mod["main"]
        except RuntimeError:  # a primitive refused this nest; ScheduleError is one of them
            continue
    return None


def _tile_reduction(sch: Any, target: Target) -> bool:
    """Tile the one reduction of a kernel in registers, with its epilogue inside the tile."""
    blocks = _blocks(sch)
    reductions = [block for block in blocks if "R" in _kinds(sch, block)]
    if len(reductions) != 1:
        return False
    main = reductions[0]
    position = next(index for index, block in enumerate(blocks) if _name(sch, block) == _name(sch, main))
    prologue, epilogue = blocks[:position], blocks[position + 1 :]
    if not _contiguous(sch, main):
        return False
    for block in prologue:
        if _is_identity(sch, block):
            sch.compute_inline(block)
        else:
            _vectorise_last(sch, block, target)
    for block in epilogue[:-1]:
        sch.compute_inline(block)
    if epilogue:
        last = epilogue[-1]
    else:
        last = main
        main = sch.cache_write(main, 0, "global")
        main, last = last, main
    kinds = _kinds(sch, main)
    loops = sch.get_loops(main)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "S"]
    reduce = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "R"]
    extents = [_extent(sch, loop) for loop in spatial]
    channels = _channels(extents[-1], target)
    if channels is None:
        return False
    vectors = -(-channels // target.vector)
    columns = _columns(extents[-2] if len(spatial) > 1 else 1, vectors, target)
    c_outer, c_inner = sch.split(spatial[-1], [None, channels])
    outer, inner = spatial[:-1], [c_inner]
    if len(spatial) > 1:
        x_outer, x_inner = sch.split(spatial[-2], [None, columns])
        outer, inner = [*spatial[:-2], x_outer], [x_inner, c_inner]
    sch.reorder(*outer, c_outer, *reduce, *inner)
    sch.vectorize(c_inner)
    if len(inner) > 1:
        sch.unroll(inner[0])
    sch.reverse_compute_at(last, c_outer)
    tail = sch.get_loops(last)[len(outer) + 1 :]
    if not tail or _extent(sch, tail[-1]) != channels:
        return False
    sch.vectorize(tail[-1])
    for loop in tail[:-1]:
        sch.unroll(loop)
    sch.decompose_reduction(main, reduce[0])
    return True


def _inline_only(sch: Any, target: Target) -> bool:
    """Make one loop nest of a chain of elementwise blocks, so that nothing between them goes to memory."""
    blocks = _blocks(sch)
    if any("R" in _kinds(sch, block) for block in blocks):
        return False
    for block in blocks[:-1]:
        sch.compute_inline(block)
    if _contiguous(sch, blocks[-1]):
        _vectorise_last(sch, blocks[-1], target)
    return True


def _vectorise_last(sch: Any, block: Any, target: Target) -> None:
    """Vectorise the innermost loop of a block where its extent allows."""
    loops = sch.get_loops(block)
    if not loops:  # a scalar
        return
    loop = loops[-1]
    for width in (4 * target.vector, 2 * target.vector, target.vector):
        if _extent(sch, loop) % width == 0:
            _, inner = sch.split(loop, [None, width])
            sch.vectorize(inner)
            return


def _channels(extent: int, target: Target) -> int | None:
    """How many channels a tile has: whole vectors where they fit, else all of a few, else None."""
    for count in (2, 1):
        if extent % (count * target.vector) == 0:
            return count * target.vector
    for width in (8, 4):
        if extent % width == 0:
            return width
    return extent if 1 < extent <= 2 * target.vector else None


def _columns(extent: int, vectors: int, target: Target) -> int:
    """How many columns a tile has: the most that divide the width and leave registers for weights and data."""
    most = min(_MAX_COLUMNS, max((target.registers - 4) // vectors, 1))
    return max(width for width in range(1, most + 1) if extent % width == 0)


def _blocks(sch: Any) -> list[Any]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _name(sch: Any, block: Any) -> str:
    return str(sch.get(block).name_hint)


def _kinds(sch: Any, block: Any) -> str:
    """`S` for a spatial axis and `R` for a reduced one, in order."""
    kinds = {0: "S", 2: "R"}
    return "".join(kinds.get(int(axis.iter_type), "?") for axis in sch.get(block).iter_vars)


def _extent(sch: Any, loop: Any) -> int:
    return int(sch.get(loop).extent)


def _accesses(sch: Any, block: Any) -> list[Any]:
    """The index lists of everything that a block's body reads and writes."""
    import tvm
    import tvm_ffi

    found: list[Any] = []

    def visit(node: Any) -> None:
        found.append(list(node.indices))

    tvm_ffi.structural_walk(sch.get(block).body, [(tvm.ir.TensorLoad, visit), (tvm.tirx.BufferStore, visit)])
    return found


def _contiguous(sch: Any, block: Any) -> bool:
    """Whether the last spatial axis is contiguous, or absent, in all that the block reads and writes."""
    import tvm

    axes = [axis.var for axis in sch.get(block).iter_vars if int(axis.iter_type) == 0]
    if not axes:
        return False
    for indices in _accesses(sch, block):
        for place, index in enumerate(indices):
            # [coefficient, rest], or nothing when the index is not linear in the axis.
            found = tvm.sym.detect_linear_equation(index, [axes[-1]])
            allowed = (0, 1) if place == len(indices) - 1 else (0,)
            if not found or not isinstance(found[0], tvm.tirx.IntImm) or int(found[0]) not in allowed:
                return False
    return True


def _is_identity(sch: Any, block: Any) -> bool:
    """Whether a block only copies, as a pad that pads nothing does."""
    import tvm

    body = sch.get(block).body
    if not isinstance(body, tvm.tirx.BufferStore) or not isinstance(body.value, tvm.ir.TensorLoad):
        return False
    pairs = zip(body.indices, body.value.indices, strict=False)
    return len(body.indices) == len(body.value.indices) and all(a.same_as(b) for a, b in pairs)
