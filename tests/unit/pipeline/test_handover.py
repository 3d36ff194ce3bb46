"""The queue between source and model: bounded, and what it drops is counted."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from lisiere.pipeline.handover import BoundedQueue


@given(st.lists(st.integers(), max_size=60), st.integers(1, 10))
def test_latest_keeps_the_newest(items: list[int], size: int) -> None:
    queue: BoundedQueue[int] = BoundedQueue(size, "latest")
    kept = [queue.put(item) for item in items]
    assert kept.count(False) == max(0, len(items) - size)
    queue.close()
    taken: list[int] = []
    while got := queue.take():
        assert len(got) == 1
        taken += got
    assert taken == items[-size:]


def test_all_makes_the_source_wait_and_drops_nothing() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, "all")
    taken: list[int] = []
    most = 0

    def consume() -> None:
        nonlocal most
        while got := queue.take():
            most = max(most, len(got))
            taken.extend(got)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert all(queue.put(at) for at in range(1000))
    queue.close()
    consumer.join(10)
    assert taken == list(range(1000))
    assert most <= 2


def test_closing_lets_a_waiting_source_go() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, "all")
    assert queue.put(1)
    outcome: list[bool] = []
    producer = threading.Thread(target=lambda: outcome.append(queue.put(2)))
    producer.start()
    queue.close()
    producer.join(10)
    assert outcome == [False]
    assert queue.take() == [1]
    assert queue.take() == []


def test_taking_gives_up_after_a_while_when_nothing_comes() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, "all")
    assert queue.take(0.01) is None
    queue.put(1)
    assert queue.take(0.01) == [1]
    queue.close()
    assert queue.take(0.01) == []
