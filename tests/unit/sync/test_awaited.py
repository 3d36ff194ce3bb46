"""What consumers have yet to acknowledge: bounded, taken out once, and given back when nobody came."""

from __future__ import annotations

from lisiere.clock import ManualClock
from lisiere.sync.awaited import Awaited


def test_ranges_take_out_what_is_awaited_and_ignore_the_rest() -> None:
    awaited = Awaited(60, ManualClock())
    awaited.add(range(1, 11))
    assert sorted(awaited.acknowledged([(3, 5), (9, 10**12), (5, 4), (-7, 0), (4, 4)])) == [3, 4, 5, 9, 10]
    assert awaited.acknowledged([(3, 5)]) == []
    assert (len(awaited), 6 in awaited, 3 in awaited) == (5, True, False)


def test_what_nobody_acknowledged_in_time_is_given_back_once() -> None:
    clock = ManualClock()
    awaited = Awaited(60, clock)
    assert awaited.next_s() is None
    awaited.add([1, 2])
    clock.advance(30)
    awaited.add([3, 1])  # 1 was sent again
    assert awaited.next_s() == 30
    clock.advance(30)
    assert awaited.overdue() == [2]
    assert awaited.overdue() == []
    clock.advance(30)
    assert awaited.overdue() == [3, 1]


def test_there_is_a_bound() -> None:
    awaited = Awaited(60, ManualClock())
    awaited.add(range(4095))
    assert not awaited.full
    awaited.add([4095])
    assert awaited.full
