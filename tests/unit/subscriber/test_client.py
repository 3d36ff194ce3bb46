"""The subscriber over a real broker: each result once, and a sentence for whatever does not come."""

from __future__ import annotations

import doctest
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import lisiere.subscriber
from lisiere.clock import ManualClock
from lisiere.config import SpoolConfig
from lisiere.errors import Rejected, Retryable
from lisiere.reports import Reports
from lisiere.spool import Spool
from lisiere.subscriber import (
    Classification,
    Event,
    Link,
    Missed,
    NewEpoch,
    Result,
    Status,
    Subscriber,
    Unreadable,
)
from lisiere_sim.broker import Address, EmbeddedBroker, free_port
from support.brokers import running_mosquitto
from support.publisher import Device

BASE = "lisiere/v1/sim"


@pytest.fixture
def broker() -> Iterator[Address]:
    embedded = EmbeddedBroker()
    yield embedded.start()
    embedded.stop()


@pytest.fixture
def device(broker: Address) -> Iterator[Device]:
    made = Device(broker)
    yield made
    made.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def take(subscriber: Subscriber, number: int) -> list[Event]:
    events = [subscriber.next(10) for _ in range(number)]
    assert None not in events
    return [event for event in events if event is not None]


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events if isinstance(event, Result)]


def test_what_is_exported() -> None:
    assert set(lisiere.subscriber.__all__) == {
        "Anomaly", "Classification", "Counts", "Detection", "Event", "Forecast", "Gap", "Health", "Link", "Metrics",
        "Missed", "NewEpoch", "Occurrence", "Result", "Score", "Status", "Subscriber", "Unreadable",
    }  # fmt: skip
    for name in lisiere.subscriber.__all__:
        assert getattr(lisiere.subscriber, name) is not None


@pytest.mark.parametrize("module", ["lisiere.subscriber", "lisiere.subscriber.client"])
def test_the_examples_in_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(__import__(module, fromlist=["x"]))
    assert found.attempted > 0
    assert found.failed == 0


def test_results_come_once_and_typed(broker: Address, device: Device) -> None:
    with Subscriber(*broker) as subscriber:
        device.results(1, 2)
        device.results(2, 3, kind="backlog")
        device.results(4, pipeline="pump")
        events = take(subscriber, 4)
        assert seqs(events) == [1, 2, 3, 4]
        assert isinstance(events[0], Result)
        assert events[0].result == Classification(label="7", score=0.981, top=[])
        assert subscriber.counts.results == {("sim", "dock"): 3, ("sim", "pump"): 1}
        assert subscriber.counts.duplicates == {("sim", "dock"): 1}


def test_an_eviction_is_told_with_its_reason(broker: Address, device: Device) -> None:
    with Subscriber(*broker) as subscriber:
        device.results(1, 45)
        gap = device.make.gap(44, [(2, 43)], {"dock": 42})
        device.send("gap", gap)
        device.send("gap", gap)  # at least once
        device.results(46)
        missed = take(subscriber, 4)[2]
        assert isinstance(missed, Missed)
        assert missed.sentence == (
            "You missed 42 results of `dock` from sim between 2026-01-31T07:36:16.123Z and 2026-01-31T07:36:16.123Z, "
            "because the device's spool was full."
        )
        assert subscriber.counts.missed == {"spool_full": 42}


def test_an_eviction_of_what_came_all_the_same_is_told_for_the_rest(broker: Address, device: Device) -> None:
    with Subscriber(*broker) as subscriber:
        device.results(1, 2)
        device.send("gap", device.make.gap(5, [(2, 4)], {"dock": 2, "pump": 1}))
        missed = take(subscriber, 3)[2]
        assert isinstance(missed, Missed)
        assert (missed.ranges, missed.count, missed.counts) == ([(3, 4)], 2, {})
        assert "2 results from sim" in missed.sentence


def test_a_hole_that_nothing_explains_is_told_after_a_while(
    broker: Address, device: Device, clock: ManualClock
) -> None:
    with Subscriber(*broker, clock=clock, settle_s=60) as subscriber:
        device.results(1, 2, 6)
        take(subscriber, 3)
        clock.advance(59)
        assert subscriber.next(0) is None
        clock.advance(1)
        (missed,) = take(subscriber, 1)
        assert isinstance(missed, Missed)
        assert missed.sentence == "You missed 3 results from sim (seq 3 to 5), and no gap record says why."
        assert subscriber.next(0) is None


def test_a_device_that_is_away_may_still_have_it(broker: Address, device: Device, clock: ManualClock) -> None:
    with Subscriber(*broker, clock=clock, settle_s=60) as subscriber:
        device.results(1, 3)
        device.send("status", device.make.status("offline"))
        take(subscriber, 3)
        clock.advance(10_000)
        assert subscriber.next(0) is None
        device.send("status", device.make.status("online"))
        device.results(2, kind="backlog")
        events = take(subscriber, 2)
        assert isinstance(events[0], Status)
        assert seqs(events) == [2]
        clock.advance(10_000)
        assert subscriber.next(0) is None


def health(folder: Path, rows: int, highest: int) -> bytes:
    """What a device tells of itself, with other figures of its spool."""
    clock = ManualClock()
    spool = Spool(SpoolConfig(path=str(folder)), clock)
    message = Reports("sim", [], clock).health_message(spool)
    spool.close()
    figures = {**message.spool, "rows": rows, "highest_seq": highest}
    return msgspec.json.encode(msgspec.structs.replace(message, spool=figures))


def test_health_shows_what_is_missing_at_the_end(
    broker: Address, device: Device, clock: ManualClock, tmp_path: Path
) -> None:
    with Subscriber(*broker, clock=clock, settle_s=60) as subscriber:
        device.results(1, 2)
        device.send("health", health(tmp_path, 3, 9))  # they may be under way
        device.send("health", health(tmp_path, 0, 4))
        take(subscriber, 4)
        clock.advance(60)
        (missed,) = take(subscriber, 1)
        assert isinstance(missed, Missed)
        assert missed.ranges == [(3, 4)]


def test_a_new_spool_is_told_and_expected_from_its_beginning(
    broker: Address, device: Device, clock: ManualClock
) -> None:
    with Subscriber(*broker, clock=clock) as subscriber:
        device.results(700)
        device.make.epoch = "e2"
        device.send("status", device.make.status())
        device.results(3)
        events = take(subscriber, 4)
        assert events[1] == NewEpoch(device="sim", epoch="e2", before="e1")
        assert seqs(events) == [700, 3]
        clock.advance(60)
        (missed,) = take(subscriber, 1)
        assert isinstance(missed, Missed)
        assert (missed.epoch, missed.ranges) == ("e2", [(1, 2)])


def test_devices_are_told_apart(broker: Address, device: Device) -> None:
    other = Device(broker, "other")
    with Subscriber(*broker) as both, Subscriber(*broker, device="other") as one:
        device.results(1)
        other.results(1)
        take(both, 2)
        assert both.counts.results == {("sim", "dock"): 1, ("other", "dock"): 1}
        take(one, 1)
        assert one.counts.results == {("other", "dock"): 1}
    other.close()


def test_in_order_of_seq(broker: Address, device: Device, clock: ManualClock) -> None:
    with Subscriber(*broker, order="seq", wait_s=30, clock=clock) as subscriber:
        device.results(1, 2, 5, 6)
        device.results(3, 4, kind="backlog")
        device.results(9)
        assert seqs(take(subscriber, 6)) == [1, 2, 3, 4, 5, 6]
        device.send("status", device.make.status())
        assert isinstance(take(subscriber, 1)[0], Status)
        assert subscriber.next(0) is None
        clock.advance(30)
        assert seqs(take(subscriber, 1)) == [9]


def test_what_is_held_is_handed_out_at_the_end(broker: Address, device: Device, clock: ManualClock) -> None:
    with Subscriber(*broker, order="seq", clock=clock) as subscriber:
        device.results(8, 7)
        device.send("status", device.make.status())
        take(subscriber, 1)
        subscriber.close()
        assert seqs(list(subscriber)) == [7, 8]


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b'{"id": 1}', b'{"schema": "lisiere.batch/1"}', b"\x28\xb5\x2f\xfdnonsense", b"[" * 5000],
)
def test_what_is_no_message_is_told_and_counted(payload: bytes, broker: Address, device: Device) -> None:
    with Subscriber(*broker) as subscriber:
        device.send("result/dock", payload)
        device.results(1)
        unreadable, result = take(subscriber, 2)
        assert isinstance(unreadable, Unreadable)
        assert unreadable.topic == f"{BASE}/result/dock"
        assert isinstance(result, Result)
        assert subscriber.counts.unreadable == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "other"}, "from 'other'"),
        ({"seq": 0}, "start at 1"),
        ({"task": "anomaly"}, "result"),
        ({"task": "poetry"}, "task"),
        ({"seq": 10**30}, "seq"),
    ],
)
def test_what_cannot_be_is_not_believed(changes: dict[str, Any], why: str, broker: Address, device: Device) -> None:
    device.make.changes = changes
    with Subscriber(*broker) as subscriber:
        device.results(1)
        (unreadable,) = take(subscriber, 1)
        assert isinstance(unreadable, Unreadable)
        assert why in unreadable.why
        assert subscriber.counts.results == {}


def batch(device: Device, *numbers: int) -> bytes:
    results = [msgspec.Raw(device.make.result(seq, replay=True)) for seq in numbers]
    return msgspec.json.encode({"schema": "lisiere.batch/1", "device": "sim", "epoch": "e1", "results": results})


def test_batches_are_taken_apart(broker: Address, device: Device) -> None:
    with Subscriber(*broker) as subscriber:
        device.send("backlog/dock", batch(device, 1, 2, 3))
        device.send("backlog/dock", batch(device, 3, 4))
        assert seqs(take(subscriber, 4)) == [1, 2, 3, 4]


def test_packed_batches_are_unpacked_within_a_limit(broker: Address, device: Device) -> None:
    import zstandard

    pack = zstandard.ZstdCompressor().compress
    with Subscriber(*broker) as subscriber:
        device.send("backlog/dock/zstd", pack(b" " * (17 << 20)))
        device.send("backlog/dock/zstd", pack(batch(device, 1, 2)))
        events = take(subscriber, 3)
        assert isinstance(events[0], Unreadable)
        assert seqs(events) == [1, 2]


def test_devices_are_told_what_was_taken(broker: Address, device: Device, clock: ManualClock) -> None:
    with Subscriber(*broker, acknowledge=True, clock=clock) as subscriber:
        device.results(1, 2, 4)
        device.results(2)
        take(subscriber, 3)
        assert subscriber.next(0.2) is None  # the last is taken when the next is asked for
        clock.advance(1)
        assert subscriber.next(0) is None
        (told,) = device.wait_for_commands(1)
        assert (told["epoch"], told["ranges"]) == ("e1", [[1, 2], [4, 4]])
        assert 1 <= len(told["id"]) <= 128
        device.results(5)
        take(subscriber, 1)
    assert device.wait_for_commands(2)[1]["ranges"] == [[5, 5]]
    assert {topic for topic, _ in device.heard} == {f"{BASE}/cmd/ack"}


def test_a_restart_repeats_nothing_and_knows_what_it_missed(
    broker: Address, device: Device, clock: ManualClock, tmp_path: Path
) -> None:
    file = tmp_path / "seen.json"
    with Subscriber(*broker, memory=file, clock=clock) as subscriber:
        device.results(1, 2, 3)
        take(subscriber, 2)
        device.send("status", device.make.status())
    device.results(4, 5)
    with Subscriber(*broker, memory=file, clock=clock) as subscriber:
        device.results(2, 6)
        assert seqs(take(subscriber, 1)) == [6]
        clock.advance(60)
        (missed,) = take(subscriber, 1)
        assert isinstance(missed, Missed)
        assert missed.ranges == [(3, 5)]  # 3 had come, but nobody had taken it
        assert missed.sentence.endswith("because this subscriber was not connected.")
        assert subscriber.next(0) is None


def test_a_file_that_is_no_memory_is_refused(broker: Address, tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    file.write_text("{}")
    with pytest.raises(Rejected, match="not what a subscriber wrote"), Subscriber(*broker, memory=file):
        pass


def test_it_comes_back_by_itself(clock: ManualClock) -> None:
    port = free_port()
    subscriber = Subscriber("127.0.0.1", port, clock=clock)
    with running_mosquitto(port=port):
        subscriber.open()
        device = Device(("127.0.0.1", port))
        device.results(1)
        take(subscriber, 1)
        device.close()
    gone = subscriber.next(10)
    assert isinstance(gone, Link)
    assert not gone.connected
    with running_mosquitto(port=port):
        assert subscriber.next(20) == Link(connected=True)
        device = Device(("127.0.0.1", port))
        device.results(5)
        device.close()
        assert seqs(take(subscriber, 1)) == [5]
        clock.advance(60)
        (missed,) = take(subscriber, 1)
        assert isinstance(missed, Missed)
        assert (missed.reason, missed.ranges) == ("subscriber_away", [(2, 4)])
        subscriber.close()


def test_what_was_not_taken_comes_again_with_a_client_id() -> None:
    with running_mosquitto() as port:
        address = "127.0.0.1", port
        device = Device(address)
        first = Subscriber(*address, client_id="desk")
        first.open()
        device.results(1, 2)
        assert seqs(take(first, 2)) == [1, 2]  # asking for 2 says that 1 is done
        first.close()  # without asking for more: 2 is not
        device.results(3)
        with Subscriber(*address, client_id="desk") as second:
            assert seqs(take(second, 2)) == [2, 3]
        device.close()


def test_closing_ends_an_iteration(broker: Address) -> None:
    subscriber = Subscriber(*broker)
    subscriber.open()
    seen: list[Event] = []
    thread = threading.Thread(target=lambda: subscriber.listen(seen.append))
    thread.start()
    subscriber.close()
    subscriber.close()
    thread.join(10)
    assert not thread.is_alive()
    assert list(subscriber.results()) == []


def test_no_broker_is_said_to_be_away() -> None:
    with pytest.raises(Retryable, match="cannot be reached"), Subscriber("127.0.0.1", free_port()):
        pass


def test_events_and_scores_are_numbered_with_the_results(broker: Address, device: Device) -> None:
    with Subscriber(*broker, device="sim", order="seq") as subscriber:
        device.results(1)
        device.send("score/dock", device.make.score(3))
        device.send("backlog/dock", device.make.event(2, replay=True))
        found = take(subscriber, 3)
    assert [type(event) for event in found] == [Result, lisiere.subscriber.Occurrence, lisiere.subscriber.Score]
    assert subscriber.counts.results == {("sim", "dock"): 3}
