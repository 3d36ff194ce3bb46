"""The book: what records and former names say, over several epochs and devices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lisiere.subscriber import Gap, Missed, NewEpoch, Result, Status
from lisiere.subscriber import book as module
from lisiere.subscriber.book import Book
from support.wire import Envelopes

SETTLE_S = 60.0


class Desk:
    """A book, and a device to make entries for."""

    def __init__(self, device: str = "sim") -> None:
        self.book = Book(SETTLE_S)
        self.make = Envelopes(device)

    def result(self, seq: int, now: float = 0.0, **changes: Any) -> bool:
        self.make.changes = changes
        return self.book.arrive(msgspec.json.decode(self.make.result(seq), type=Result), now)

    def gap(self, seq: int, ranges: list[tuple[int, int]], counts: dict[str, int], **changes: Any) -> Missed | None:
        document = {**msgspec.json.decode(self.make.gap(seq, ranges, counts)), **changes}
        record = msgspec.convert(document, Gap)
        return self.book.explain(record, 0.0) if self.book.arrive(record, 0.0) else None

    def status(self, state: str) -> None:
        self.book.hear(msgspec.json.decode(self.make.status(state), type=Status), 0.0)


def test_a_result_that_was_renamed_comes_once() -> None:
    desk = Desk()
    assert desk.result(7)
    desk.make.epoch = "e2"
    assert not desk.result(1, formerly="e1:7")
    assert desk.result(2, formerly="e1:8")
    assert desk.result(3, formerly="e0:1")  # an epoch that nobody here knows
    assert desk.book.news == [NewEpoch(device="sim", epoch="e2", before="e1")]
    assert desk.book.holes(("sim", "e1"), 7, 8) == []
    assert desk.book.holes(("sim", "e2"), 1, 3) == []


@pytest.mark.parametrize("nonsense", ["", "e1", "e1:", "e1:x", "e1:-7", "e1:0", "e1:" + "9" * 30])
def test_a_former_name_that_is_none_is_not_believed(nonsense: str) -> None:
    desk = Desk()
    desk.result(7)
    desk.make.epoch = "e2"
    assert desk.result(1, formerly=nonsense)


def test_a_renamed_record_explains_the_epoch_that_it_is_of() -> None:
    desk = Desk()
    desk.result(1)
    desk.result(9)
    desk.make.epoch = "e2"
    missed = desk.gap(1, [(2, 7)], {"dock": 6}, formerly="e1:8")
    assert missed is not None
    assert (missed.epoch, missed.ranges, missed.counts) == ("e1", [(2, 7)], {"dock": 6})
    assert desk.book.holes(("sim", "e1"), 1, 9) == []
    assert desk.gap(2, [(2, 7)], {"dock": 6}, formerly="e1:8") is None


@pytest.mark.parametrize(("lost", "count"), [(2, 2), (None, 3)])
def test_a_damaged_spool_is_told(lost: int | None, count: int) -> None:
    desk = Desk()
    desk.result(1)
    desk.result(3)
    desk.make.epoch = "e2"
    damage = {"epoch": "e1", "ranges": [(2, 5)], "salvaged": 10, "lost": lost}
    missed = desk.gap(1, [], {"dock": 2}, reason="spool_damaged", damage=damage, first_ts=None, last_ts=None)
    assert missed is not None
    assert (missed.epoch, missed.ranges, missed.count) == ("e1", [(2, 2), (4, 5)], count)
    assert missed.counts == ({"dock": 2} if lost else {})
    of = " of `dock`" if lost else ""
    assert missed.sentence == f"You missed {count} results{of} from sim, because the device's spool was damaged."


def test_a_damaged_spool_of_which_nothing_is_known_is_no_number() -> None:
    damage: dict[str, Any] = {"epoch": None, "ranges": [], "salvaged": 0, "lost": None}
    assert Desk().gap(1, [], {}, reason="spool_damaged", damage=damage) is None


def test_a_coarse_record_counts_what_went() -> None:
    desk = Desk()
    desk.result(5)
    missed = desk.gap(100, [(1, 90)], {"dock": 30}, exact=False)
    assert missed is not None
    assert (missed.count, missed.counts) == (30, {})
    assert desk.result(50)  # it lay between


def test_a_merged_record_tells_the_rest_alone() -> None:
    desk = Desk()
    desk.result(1)
    assert desk.gap(4, [(2, 3)], {"dock": 2}) is not None
    missed = desk.gap(9, [(2, 4), (6, 7)], {"dock": 4})
    assert missed is not None
    assert missed.ranges == [(6, 7)]


def test_holes_of_a_device_that_is_away_wait() -> None:
    desk = Desk()
    desk.result(1)
    desk.result(3)
    desk.status("offline")
    assert desk.book.due_at() is None
    assert desk.book.settled(1e6) == []
    desk.status("online")
    assert desk.book.due_at() == SETTLE_S
    (missed,) = desk.book.settled(SETTLE_S)
    assert (missed.reason, missed.ranges) == ("unexplained", [(2, 2)])


def test_what_is_remembered_is_what_was_taken() -> None:
    desk = Desk()
    for seq in (1, 2, 3):
        desk.result(seq)
    (seen,) = desk.book.to_remember({("sim", "e1"): [2]})
    assert seen.arrived == [(1, 1), (3, 3)]
    again = Desk()
    again.book.load([seen], 0.0)
    assert again.result(2)
    assert not again.result(3)
    again.make.epoch = "e2"
    again.result(1)
    assert again.book.news == [NewEpoch(device="sim", epoch="e2", before="e1")]


def test_so_many_devices_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEDGERS_MAX", 3)
    book = Book(SETTLE_S)
    for number in range(10):
        make = Envelopes(f"device-{number}")
        for seq in (1, 3):
            book.arrive(msgspec.json.decode(make.result(seq), type=Result), 0.0)
    assert [seen.device for seen in book.to_remember({})] == ["device-7", "device-8", "device-9"]
    assert len(book.settled(SETTLE_S)) == 3
