from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lisiere_compile.kernels.tiles import Plan, Tile, channelwise_tiles, outer_product_tiles, plans

ROWS = st.integers(1, 300)
CHANNELS = st.integers(1, 2048)
MACHINES = st.sampled_from([(4, 16), (4, 32), (8, 16), (16, 32)])


def check(tiles: list[Tile], rows: int, channels: int, vector: int) -> None:
    """A tile divides the channels and lies within the rows; only an odd number of channels has none."""
    assert tiles or channels % 2
    assert len(set(tiles)) == len(tiles)
    for tile in tiles:
        assert channels % tile.channels == 0
        assert 1 <= tile.rows <= rows
        assert tile.lanes <= vector


@given(ROWS, CHANNELS, MACHINES)
def test_the_tile_of_an_outer_product_fits_its_registers(rows: int, channels: int, machine: tuple[int, int]) -> None:
    vector, registers = machine
    tiles = outer_product_tiles(rows, channels, vector, registers)
    check(tiles, rows, channels, vector)
    for tile in tiles:
        weights = 0 if tile.rows == 1 else tile.vectors
        assert tile.rows * tile.vectors + weights + 1 <= registers


@given(ROWS, CHANNELS, MACHINES, st.integers(1, 200))
def test_the_tile_of_a_channelwise_kernel_stays_small(
    rows: int, channels: int, machine: tuple[int, int], most: int
) -> None:
    vector, registers = machine
    tiles = channelwise_tiles(rows, channels, vector, registers, most, lambda _rows: True)
    check(tiles, rows, channels, vector)
    for tile in tiles:
        assert tile.rows * tile.vectors <= max(1, min(most, registers // 2 - 2))


@given(ROWS, CHANNELS, MACHINES)
def test_only_rows_that_are_allowed_are_taken(rows: int, channels: int, machine: tuple[int, int]) -> None:
    assert all(tile.rows == 1 for tile in channelwise_tiles(rows, channels, *machine, 100, lambda count: count == 1))


def test_a_tile_of_many_pixels_hides_latency_and_loads_less_than_it_multiplies() -> None:
    tile = outer_product_tiles(196, 256, 16, 32)[0]
    assert tile.rows * tile.vectors >= 16


def test_a_single_row_is_spread_over_enough_vectors_to_hide_latency() -> None:
    assert outer_product_tiles(1, 128, 16, 32)[0] == Tile(1, 8, 16)


def test_the_best_tile_is_offered_in_either_order_and_the_others_after_it() -> None:
    first, second = Tile(4, 2, 8), Tile(2, 4, 8)
    assert plans([first, second], True) == [Plan(first, True), Plan(first, False), Plan(second, True)]
    assert plans([], True) == []
