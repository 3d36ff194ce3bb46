from __future__ import annotations

from collections.abc import Iterator

import paho.mqtt.client as paho
import pytest

from lisiere.errors import Retryable
from lisiere_sim.broker import Address, EmbeddedBroker, free_port
from lisiere_sim.subscriber import Snapshot, Subscriber
from support.wire import Envelopes

BASE = "lisiere/v1/sim"


class Device:
    """Publishes what a device would; `done` waits until the subscriber has seen it all."""

    def __init__(self, address: Address, subscriber: Subscriber) -> None:
        self.make = Envelopes()
        self._subscriber = subscriber
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.connect(*address)
        self._client.loop_start()
        self._ends = 0

    def results(self, *seqs: int, pipeline: str = "dock", kind: str = "result") -> None:
        for seq in seqs:
            self.send(f"{kind}/{pipeline}", self.make.result(seq, pipeline, replay=kind == "backlog"))

    def send(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self._client.publish(f"{BASE}/{topic}", payload, qos=1, retain=retain)

    def done(self) -> None:
        self._ends += 1
        self.send("status", self.make.status())
        assert self._subscriber.wait_for(lambda seen: seen.statuses.count("online") == self._ends, 10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def subscriber(broker: Address) -> Iterator[Subscriber]:
    made = Subscriber("lisiere", "sim")
    made.start(broker)
    yield made
    made.stop()


@pytest.fixture
def device(broker: Address, subscriber: Subscriber) -> Iterator[Device]:
    made = Device(broker, subscriber)
    yield made
    made.close()


def test_counts_distinct_ids_and_duplicates(device: Device, subscriber: Subscriber) -> None:
    device.results(1, 2, 3)
    device.results(2, 3, 4, kind="backlog")
    device.results(5, pipeline="pump")
    device.done()
    dock = subscriber.seen("dock")
    assert (dock.delivered, dock.duplicates, dock.replayed) == (4, 2, 1)
    assert dock.latencies == [2.0] * 4
    assert dock.backends == {"dlr": 4}
    assert (dock.task, dock.answer["label"]) == ("classification", "7")
    assert subscriber.snapshot().delivered == {"dock": 4, "pump": 1}
    assert subscriber.holes("e1", 5) == []
    assert subscriber.seen("absent").delivered == 0


def test_order_is_judged_by_topic_and_by_first_deliveries(device: Device, subscriber: Subscriber) -> None:
    device.results(10, 11)
    device.results(1, 2, kind="backlog")  # older, but of another topic
    device.results(10, 12)  # a duplicate is no disorder
    device.done()
    assert subscriber.seen("dock").disordered == 0
    device.results(9)
    device.done()
    assert subscriber.seen("dock").disordered == 1


def test_the_answer_is_the_newest_and_not_the_last_to_arrive(device: Device, subscriber: Subscriber) -> None:
    device.results(10)
    device.make.changes = {"result": {"label": "3", "score": 0.5, "top": []}}
    device.results(4, kind="backlog")
    device.done()
    assert subscriber.seen("dock").answer["label"] == "7"
    device.results(11)
    device.done()
    assert subscriber.seen("dock").answer["label"] == "3"


def test_holes_are_what_no_gap_record_explains(device: Device, subscriber: Subscriber) -> None:
    device.results(1, 2, 8, 10)
    device.done()
    assert subscriber.holes("e1", 10) == [3, 4, 5, 6, 7, 9]
    gap = device.make.gap(9, [(3, 4), (6, 6)], {"dock": 3})
    device.send("gap", gap)
    device.send("gap", gap)  # at least once: it may come twice
    device.done()
    assert subscriber.holes("e1", 10) == [5, 7]
    assert subscriber.holes("e1", 12) == [5, 7, 11, 12]
    assert subscriber.seen("dock").evicted == 3
    assert subscriber.holes("other", 2) == [1, 2]


def test_a_watch_ends_with_the_last_of_what_it_waits_for(device: Device, subscriber: Subscriber) -> None:
    device.results(1, 2)
    device.done()
    watch = subscriber.watch("e1", [1, 2, 3, 4])
    assert (watch.size, watch.done_at) == (2, None)
    device.results(3)
    device.make.epoch = "e2"
    device.results(4)
    device.done()
    assert watch.done_at is None
    device.make.epoch = "e1"
    device.results(4)
    assert subscriber.wait_for(lambda _: watch.done_at is not None, 10)
    assert subscriber.watch("e1", [1, 2]).done_at is not None


def test_statuses_are_those_of_this_run(broker: Address, device: Device) -> None:
    device.send("status", device.make.status("stopped"), retain=True)
    device.done()
    later = Subscriber("lisiere", "sim")
    later.start(broker)
    device.send("status", device.make.status("online"), retain=True)
    assert later.wait_for(lambda seen: seen.statuses == ("online",), 10)
    later.stop()


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b'{"id": 1}'])
def test_what_is_no_envelope_is_counted(payload: bytes, device: Device, subscriber: Subscriber) -> None:
    device.send("result/dock", payload)
    device.send("reply/ping", payload)  # not the subscriber's business
    device.done()
    assert subscriber.snapshot() == Snapshot({}, ("online",), 1)


def test_waiting_has_an_end(subscriber: Subscriber) -> None:
    assert not subscriber.wait_for(lambda _: False, 0.05)


def test_a_broker_that_goes_away_ends_every_wait() -> None:
    embedded = EmbeddedBroker()
    subscriber = Subscriber("lisiere", "sim")
    subscriber.start(embedded.start())
    embedded.stop()
    assert not subscriber.wait_for(lambda _: False, 60)
    assert "connection" in str(subscriber.failure)
    subscriber.stop()


def test_stopping_is_no_failure_and_may_be_repeated(broker: Address) -> None:
    subscriber = Subscriber("lisiere", "sim")
    subscriber.start(broker)
    subscriber.stop()
    subscriber.stop()
    assert subscriber.failure is None


def test_no_broker_is_said_to_be_away() -> None:
    with pytest.raises(Retryable, match="cannot be reached"):
        Subscriber("lisiere", "sim").start(("127.0.0.1", free_port()))
