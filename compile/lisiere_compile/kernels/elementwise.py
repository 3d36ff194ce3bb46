"""Kernels without a reduction: one loop nest, vectorised."""

from __future__ import annotations

from lisiere_compile.kernels.blocks import blocks, contiguous, kinds
from lisiere_compile.kernels.nest import Nest


def inline_elementwise(nest: Nest) -> bool:
    """Make one loop nest of a chain of elementwise blocks, so that nothing between them goes to memory."""
    every = blocks(nest.sch)
    if any("R" in kinds(nest.sch, block) for block in every):
        return False
    for block in every[:-1]:
        nest.sch.compute_inline(block)
    if contiguous(nest.sch, every[-1]):
        nest.vectorise(every[-1])
    return True
