"""Questions about the blocks of a kernel: what they read, how they reduce, how long their loops are."""

from __future__ import annotations

from typing import Any


def blocks(sch: Any) -> list[Any]:
    """Return the blocks of a kernel in the order they run."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def name(sch: Any, block: Any) -> str:
    """Return the name of a block."""
    return str(sch.get(block).name_hint)


def kinds(sch: Any, block: Any) -> str:
    """Return `S` for a spatial axis and `R` for a reduced one, in order."""
    letters = {0: "S", 2: "R"}
    return "".join(letters.get(int(axis.iter_type), "?") for axis in sch.get(block).iter_vars)


def extent(sch: Any, loop: Any) -> int:
    """Return how often a loop runs."""
    return int(sch.get(loop).extent)


def axes(sch: Any, block: Any, kind: str) -> list[Any]:
    """Return the variables of the axes of a kind, in order."""
    pairs = zip(sch.get(block).iter_vars, kinds(sch, block), strict=True)
    return [axis.var for axis, found in pairs if found == kind]


def loads(sch: Any, block: Any) -> list[Any]:
    """Return every load in a block's body, the one of the accumulator included."""
    import tvm
    import tvm_ffi

    found: list[Any] = []
    tvm_ffi.structural_walk(sch.get(block).body, [(tvm.ir.TensorLoad, found.append)])
    return found


def stores(sch: Any, block: Any) -> list[Any]:
    """Return every store in a block's body."""
    import tvm
    import tvm_ffi

    found: list[Any] = []
    tvm_ffi.structural_walk(sch.get(block).body, [(tvm.tirx.BufferStore, found.append)])
    return found


def coefficient(index: Any, axis: Any) -> int | None:
    """Return what an index is multiplied by along an axis, or None when it is not linear in it."""
    import tvm

    # [coefficient, rest], or nothing when the index is not linear in the axis.
    found = tvm.sym.detect_linear_equation(index, [axis])
    if not found or not isinstance(found[0], tvm.tirx.IntImm):
        return None
    return int(found[0])


def contiguous(sch: Any, block: Any) -> bool:
    """Whether the last spatial axis is contiguous, or absent, in all that the block reads and writes."""
    spatial = axes(sch, block, "S")
    if not spatial:
        return False
    for access in (*loads(sch, block), *stores(sch, block)):
        for place, index in enumerate(access.indices):
            allowed = (0, 1) if place == len(access.indices) - 1 else (0,)
            if coefficient(index, spatial[-1]) not in allowed:
                return False
    return True


def depends(access: Any, axis: Any) -> bool:
    """Whether a load or store is at another place for another value of an axis."""
    return any(coefficient(index, axis) != 0 for index in access.indices)


def is_identity(sch: Any, block: Any) -> bool:
    """Whether a block only copies, as a pad that pads nothing does."""
    import tvm

    body = sch.get(block).body
    if not isinstance(body, tvm.tirx.BufferStore) or not isinstance(body.value, tvm.ir.TensorLoad):
        return False
    pairs = zip(body.indices, body.value.indices, strict=False)
    return len(body.indices) == len(body.value.indices) and all(a.same_as(b) for a, b in pairs)
