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
