"""The loop nest of one kernel under a schedule: what precedes its reduction, the reduction, and what follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from lisiere_compile.kernels.blocks import blocks, contiguous, extent, is_identity, kinds, name
from lisiere_compile.kernels.tiles import Plan, Tile, plans
from lisiere_compile.target import Target

Pack = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass
class Nest:
    """A kernel under a schedule.

    Attributes:
        sch: TVM's schedule of a module whose `main` is the kernel.
        target: the machine.
        constant: which parameters are constants in every call, so that their layout is ours to choose.
        packs: parameter -> how its constant is to be laid out; a rule adds to it.
        main: the block that reduces.
        last: the block that writes the output.
        pads: blocks that prepare what the reduction reads.
        choice: which of its plans a rule follows; the first, unless another was found to be faster.
        plans: what the rule may do, best first; empty when it has nothing to choose.
    """

    sch: Any
    target: Target
    constant: frozenset[int]
    packs: dict[int, Pack] = field(default_factory=dict)
    main: Any = None
    last: Any = None
    pads: list[Any] = field(default_factory=list)
    choice: int = 0
    plans: tuple[Plan, ...] = ()

    @classmethod
    def of(cls, function: Any, target: Target, constant: frozenset[int], choice: int = 0) -> Nest:
        """Begin a schedule of a PrimFunc."""
        import tvm

        sch = tvm.s_tir.Schedule(tvm.IRModule({"main": function}), error_render_level="none")
        return cls(sch, target, constant, choice=choice)

    def find_reduction(self) -> bool:
        """Find the one reduction, and make one block of what follows it.

        Returns:
            Whether the kernel has this form, with its last spatial axis contiguous wherever the reduction uses it.
        """
        sch = self.sch
        every = blocks(sch)
        reductions = [block for block in every if "R" in kinds(sch, block)]
        if len(reductions) != 1 or not contiguous(sch, reductions[0]):
            return False
        self.main = reductions[0]
        position = next(index for index, block in enumerate(every) if name(sch, block) == name(sch, self.main))
        for block in every[:position]:
            if is_identity(sch, block):
                sch.compute_inline(block)
            else:
                self.pads.append(block)
        epilogue = every[position + 1 :]
        for block in epilogue[:-1]:
            sch.compute_inline(block)
        # Without an epilogue the accumulators are copied out.
        self.last = epilogue[-1] if epilogue else sch.cache_write(self.main, 0, "global")
        sch.set_scope(self.main, 0, "local")
        return True

    def choose(self, tiles: list[Tile], channels_first: bool) -> Plan | None:
        """Return the plan to follow.

        Args:
            tiles: best first.
            channels_first: whether the rule would have the tiles of other channels come last.

        Returns:
            None when there is no tile.
        """
        self.plans = tuple(plans(tiles, channels_first))
        return self.plans[min(self.choice, len(self.plans) - 1)] if self.plans else None

    def loops(self, kind: str) -> list[Any]:
        """Return the loops of the reduction that are spatial, `S`, or reduced, `R`."""
        pairs = zip(self.sch.get_loops(self.main), kinds(self.sch, self.main), strict=True)
        return [loop for loop, found in pairs if found == kind]

    def extents(self, kind: str) -> list[int]:
        """Return how often the loops of a kind run."""
        return [extent(self.sch, loop) for loop in self.loops(kind)]

    def split(self, tile: Tile) -> tuple[list[Any], Any, list[Any]]:
        """Split the spatial loops of the reduction by a tile: those over tiles, the one over channels, those inside."""
        *outer, channels = self.loops("S")
        c_outer, *inner = self.sch.split(channels, [None, tile.vectors, tile.lanes])
        if outer:
            x_outer, x_inner = self.sch.split(outer[-1], [None, tile.rows])
            outer, inner = [*outer[:-1], x_outer], [x_inner, *inner]
        return outer, c_outer, inner

    def write_out(self, loops: list[Any]) -> None:
        """Write the loops of a tile out: the last as one vector, the others one after the other."""
        self.sch.vectorize(loops[-1])
        for loop in loops[:-1]:
            self.sch.unroll(loop)

    def place_epilogue(self, order: list[Any], channels: int, lanes: int) -> bool:
        """Compute what follows the reduction tile by tile, while the accumulators are in registers."""
        sch = self.sch
        sch.reverse_compute_at(self.last, order[-1], preserve_unit_loops=True)
        tail = sch.get_loops(self.last)[len(order) :]
        if not tail or extent(sch, tail[-1]) > channels:
            return False
        if extent(sch, tail[-1]) < channels:  # the channels that are cut off again
            for loop in tail:
                sch.unroll(loop)
            return True
        self.write_out([*tail[:-1], *sch.split(tail[-1], [None, lanes])])
        return True

    def vectorise(self, block: Any) -> None:
        """Vectorise the innermost loop of a block where its extent allows."""
        loops = self.sch.get_loops(block)
        if not loops:  # a scalar
            return
        vector = self.target.vector
        for width in (4 * vector, 2 * vector, vector, vector // 2):
            if width > 1 and extent(self.sch, loops[-1]) % width == 0:
                _, inner = self.sch.split(loops[-1], [None, width])
                self.sch.vectorize(inner)
                return
