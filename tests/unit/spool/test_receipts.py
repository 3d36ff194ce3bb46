"""Receipts: what was acknowledged is read back whole, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lisiere.spool.receipts import Receipts

FILE = "spool.acked"


def test_what_was_written_down_is_read_by_the_next_process(tmp_path: Path) -> None:
    first = Receipts(tmp_path, "e")
    first.add([3, 1], uncounted=True)
    first.add([7], uncounted=False)
    again = Receipts(tmp_path, "e")
    assert again.read() == {3: True, 1: True, 7: False}
    other = Receipts(tmp_path, "f")
    assert other.read() == {}, "An epoch's seqs mean other rows."
    for each in (first, again, other):
        each.close()


def test_the_last_8192_stay(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "e")
    for first in range(1, 20_001, 1000):
        receipts.add(range(first, first + 1000), uncounted=False)
    assert sorted(receipts.read()) == list(range(20_001 - 8192, 20_001))
    receipts.add(range(30_000, 60_000), uncounted=True)
    assert sorted(receipts.read()) == list(range(60_000 - 8192, 60_000))
    receipts.close()


@given(at=st.integers(0, 16 * 20 - 1), bit=st.integers(0, 7), length=st.integers(0, 16 * 20))
def test_a_record_that_is_torn_or_flipped_is_left_out_and_no_other_comes_of_it(
    at: int, bit: int, length: int, tmp_path_factory: object
) -> None:
    folder = tmp_path_factory.mktemp("receipts")  # type: ignore[attr-defined]
    receipts = Receipts(folder, "e")
    receipts.add(range(1, 21), uncounted=True)
    data = bytearray((folder / FILE).read_bytes())
    data[at] ^= 1 << bit
    (folder / FILE).write_bytes(data[:length])
    expected = {seq for seq in range(1, 21) if seq * 16 <= length and seq - 1 != at // 16}
    assert set(receipts.read()) == expected
    receipts.close()


def test_a_folder_that_is_gone_is_told_and_a_disk_that_refuses_is_not(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path, "e")
    receipts.close()
    receipts._descriptor = 1 << 20  # nothing can be written
    receipts.add([1], uncounted=True)
    assert receipts.read() == {}
