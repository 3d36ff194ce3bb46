"""Which tiles of accumulators a kernel may keep in registers, best first. Arithmetic alone; nothing here knows TVM.

The cost is an estimate in cycles of a core that starts two vector multiply-adds and two vector loads a cycle and whose
multiply-add takes four, which is what the cores of every target have, or a fixed multiple of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LATENCY = 8  # multiply-adds that must be under way for none to wait: two a cycle, four cycles each
_MAX_ROWS = 28
_MAX_VECTORS = 8


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of accumulators: `rows` times `vectors` vectors of `lanes` numbers."""

    rows: int
    vectors: int
    lanes: int

    @property
    def channels(self) -> int:
        """How many channels wide it is."""
        return self.vectors * self.lanes


@dataclass(frozen=True, slots=True)
class Plan:
    """How a kernel goes through its output: by which tiles, and whether those of other channels come last of all."""

    tile: Tile
    channels_first: bool


def plans(tiles: list[Tile], channels_first: bool) -> list[Plan]:
    """Return what a kernel may do, best first as its rule sees it: the best tile in either order, then the others."""
    return [
        *(Plan(tile, order) for tile in tiles[:1] for order in (channels_first, not channels_first)),
        *(Plan(tile, channels_first) for tile in tiles[1:]),
    ]


def outer_product_tiles(rows: int, channels: int, vector: int, registers: int) -> list[Tile]:
    """Rank the tiles of a kernel whose accumulators are data times weights: convolutions and matrix products.

    For each step of the reduction a tile loads its vectors of weights once and each of its rows' numbers once.

    Args:
        rows: how many positions share the weights: pixels of a row, or rows of a matrix.
        channels: how many there are; the tile's divide them.
        vector: numbers in a vector register.
        registers: vector registers.

    Returns:
        The tiles, best first; none when the channels have no divisor to vectorise by.
    """

    def fits(tile: Tile) -> bool:
        # One row needs its weights once, so they come from memory and take no registers.
        weights = 0 if tile.rows == 1 else tile.vectors
        return tile.rows * tile.vectors + weights + 1 <= registers

    def cost(tile: Tile) -> tuple[float, float]:
        steps = max(tile.rows * tile.vectors / 2, (tile.rows + tile.vectors) / 2, _LATENCY / 2)
        loads = (tile.rows + tile.vectors) / (tile.rows * tile.vectors)
        return _count(tile, rows, channels) * steps, loads

    return sorted(filter(fits, _tiles(rows, channels, vector)), key=cost)


def channelwise_tiles(
    rows: int, channels: int, vector: int, registers: int, most: int, allowed: Callable[[int], bool]
) -> list[Tile]:
    """Rank the tiles of a kernel that reduces each channel by itself: depthwise convolutions and pools.

    Args:
        rows: how many positions a row has.
        channels: how many there are; the tile's divide them.
        vector: numbers in a vector register.
        registers: vector registers.
        most: how many vectors the tile may hold, so that the code stays small; at least one is allowed.
        allowed: whether a tile may have so many rows.

    Returns:
        The tiles, best first; none when the channels have no divisor to vectorise by.
    """
    # Half of the registers: neighbouring steps share what they load.
    most = max(min(most, registers // 2 - 2), 1)

    def fits(tile: Tile) -> bool:
        return tile.rows * tile.vectors <= most and allowed(tile.rows)

    def cost(tile: Tile) -> tuple[float, float]:
        steps = max(tile.rows * tile.vectors, _LATENCY / 2)
        return _count(tile, rows, channels) * steps, tile.vectors - tile.rows

    return sorted(filter(fits, _tiles(rows, channels, vector)), key=cost)


def _count(tile: Tile, rows: int, channels: int) -> int:
    return -(-rows // tile.rows) * (channels // tile.channels)


def _tiles(rows: int, channels: int, vector: int) -> Iterator[Tile]:
    """Every tile whose channels divide the channels."""
    lanes = vector
    while lanes > 1 and channels % lanes:
        lanes //= 2
    if lanes == 1 and channels > 1:
        return
    for vectors in range(1, _MAX_VECTORS + 1):
        if (channels // lanes) % vectors == 0:
            for height in range(1, min(rows, _MAX_ROWS) + 1):
                yield Tile(height, vectors, lanes)
