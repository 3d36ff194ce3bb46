"""Kernels that reduce along rows that lie in memory one after the other: softmax, normalisations, means.

A vector of partial results goes along each row, and its lanes are joined at the end.
"""

from __future__ import annotations

import math
from typing import Any

from lisiere_compile.kernels.blocks import axes, blocks, coefficient, extent, kinds, loads
from lisiere_compile.kernels.nest import Nest

_FEW_STEPS = 64  # of one block
_FEWEST_LANES = 4  # fewer cost more to join than they save


def rowwise(nest: Nest) -> bool:
    """Vectorise every reduction of a kernel along its rows, and what stands between them.

    A kernel that is done sooner than it is called, such as the softmax of a few classes, is well as it is.
    """
    sch = nest.sch
    every = blocks(sch)
    reductions = [block for block in every if "R" in kinds(sch, block)]
    if not reductions or not all(_along_rows(sch, block) for block in reductions):
        return False
    done = [_by_lanes(nest, block) for block in reductions]
    if not any(done):
        return max(_steps(sch, block) for block in every) <= _FEW_STEPS
    for block in every:
        if block not in reductions:
            nest.vectorise(block)
    return True


def _along_rows(sch: Any, block: Any) -> bool:
    """Whether the last axis of a block is reduced and contiguous in all that it reads with it."""
    if not kinds(sch, block).endswith("R"):
        return False
    axis = axes(sch, block, "R")[-1]
    places = [coefficient(index, axis) for load in loads(sch, block) for index in load.indices[:-1]]
    return all(place == 0 for place in places)


def _steps(sch: Any, block: Any) -> int:
    """How often a block runs."""
    return math.prod(extent(sch, loop) for loop in sch.get_loops(block))


def _by_lanes(nest: Nest, block: Any) -> bool:
    """Reduce the lanes of a vector apart from each other, then across; say whether the rows are long enough."""
    sch = nest.sch
    loop = sch.get_loops(block)[-1]
    lanes = nest.target.vector
    while lanes > 1 and extent(sch, loop) % lanes:
        lanes //= 2
    pairs = zip(sch.get_loops(block), kinds(sch, block), strict=True)
    if lanes < _FEWEST_LANES or math.prod(extent(sch, one) for one, kind in pairs if kind == "R") < 2 * lanes:
        return False
    _, inner = sch.split(loop, [None, lanes])
    spatial = kinds(sch, block).count("S")
    partial = sch.rfactor(inner, spatial)
    sch.vectorize(sch.get_loops(partial)[-1])
    return True
