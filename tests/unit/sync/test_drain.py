"""The drain: everything arrives, in order, within the window, and leaves the spool only when acknowledged."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lisiere.clock import SystemClock
from lisiere.config import SpoolConfig
from lisiere.errors import Rejected, Retryable
from lisiere.settings.links import LinkConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.sync.drain import Drain
from lisiere.sync.topics import Topics
from lisiere.sync.transports.memory import MemoryBroker, MemoryTransport

TOPICS = Topics("lisiere", "pi-1")


class Rig:
    """A spool, a drain and a broker, with the drain run in a thread on demand."""

    def __init__(
        self,
        folder: Path,
        max_rows: int = 100_000,
        received: Callable[[str, bytes], None] = lambda _topic, _payload: None,
        aws_topics: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.broker = MemoryBroker()
        self.spool = Spool(
            SpoolConfig(path=str(folder), linger_ms=0, max_rows=max_rows),
            SystemClock(),
            lambda seq: self.drain.committed(seq),
        )
        self.drain = Drain(
            "pi-1",
            TOPICS,
            self.spool,
            lambda: SpoolReader(folder),
            lambda: MemoryTransport(self.broker),
            SystemClock(),
            LinkConfig(**{"publishes_per_s": 0, "kib_per_s": 0, **settings}),
            aws_topics,
            received,
        )
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        def body() -> None:
            try:
                self.drain.run()
            except Retryable as error:
                self.error = error

        self.error = None
        self.thread = threading.Thread(target=body)
        self.thread.start()

    def join(self) -> None:
        assert self.thread is not None
        self.thread.join(10)
        assert not self.thread.is_alive()

    def append(self, count: int, pipeline: str = "dock") -> None:
        for _ in range(count):
            self.spool.append(pipeline, b'{"x":1}')
        assert self.spool.flush(10)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.broker.changed:
            assert self.broker.changed.wait_for(condition, 10)

    def envelopes(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.broker.of(topic)]

    def seqs(self, topic: str) -> list[int]:
        return [envelope["seq"] for envelope in self.envelopes(topic)]

    def close(self) -> None:
        self.drain.stop()
        if self.thread is not None:
            self.join()
        self.spool.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def test_birth_then_live_results_then_a_clean_stop(rig: Rig) -> None:
    rig.start()
    rig.wait(lambda: bool(rig.broker.of(TOPICS.status)))
    rig.append(5)
    rig.drain.finish()
    rig.join()
    assert rig.error is None
    assert [envelope["state"] for envelope in rig.envelopes(TOPICS.status)] == ["online", "stopped"]
    assert all(message.retain for message in rig.broker.of(TOPICS.status))
    assert rig.seqs(TOPICS.live("dock")) == [1, 2, 3, 4, 5]
    assert [envelope["replay"] for envelope in rig.envelopes(TOPICS.live("dock"))] == [False] * 5
    assert rig.spool.waiting == 0


def test_what_waited_goes_to_the_backlog_topic_marked_as_replay(rig: Rig) -> None:
    rig.append(40)
    rig.start()
    rig.drain.finish()
    rig.join()
    assert rig.seqs(TOPICS.backlog("dock")) == list(range(1, 41))
    assert all(envelope["replay"] for envelope in rig.envelopes(TOPICS.backlog("dock")))
    assert rig.broker.of(TOPICS.live("dock")) == []


def test_a_lost_connection_publishes_the_will_and_raises(rig: Rig) -> None:
    rig.start()
    rig.wait(lambda: bool(rig.broker.of(TOPICS.status)))
    rig.broker.cut()
    rig.join()
    assert isinstance(rig.error, Retryable)
    assert [envelope["state"] for envelope in rig.envelopes(TOPICS.status)] == ["online", "offline"]


def test_unreachable_brokers_leave_everything_in_the_spool(rig: Rig) -> None:
    rig.broker.online = False
    rig.append(3)
    with pytest.raises(Retryable, match="away"):
        rig.drain.run()
    assert rig.spool.waiting == 3
    assert not rig.drain.connected


def test_nothing_is_lost_over_outages_and_each_topic_is_in_order(rig: Rig) -> None:
    for _ in range(3):
        seen = len(rig.broker.messages)
        rig.start()
        rig.wait(lambda seen=seen: len(rig.broker.messages) > seen)  # type: ignore[misc]
        rig.append(25)
        rig.broker.cut()
        rig.join()
        rig.append(25)
        rig.broker.restore()
    rig.start()
    rig.drain.finish()
    rig.join()
    live, late = rig.seqs(TOPICS.live("dock")), rig.seqs(TOPICS.backlog("dock"))
    assert set(live) | set(late) == set(range(1, 151))
    for seqs in (live, late):
        first = list(dict.fromkeys(seqs))
        assert first == sorted(first)
    assert rig.spool.waiting == 0


def test_a_silent_broker_gets_a_window_and_no_more_and_the_connection_is_given_up(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4, ack_timeout_s=0.3)
    rig.broker.acknowledging = False
    rig.append(100)
    rig.start()
    rig.join()
    assert "not acknowledged" in str(rig.error)
    assert rig.broker.most_unacknowledged == 4
    assert rig.spool.waiting == 100
    rig.close()


def test_live_results_do_not_wait_behind_a_backlog_and_it_moves_all_the_same(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=8)
    rig.append(500)
    rig.broker.acknowledging = False
    rig.start()
    rig.wait(lambda: len(rig.broker.messages) >= 8)
    rig.append(50)
    # From here on each acknowledgement makes room for one message.
    rig.broker.acknowledging = True
    connection = rig.broker.connections[0]
    connection.acknowledge_all()
    rig.drain.finish()
    rig.join()
    order = [message.topic for message in rig.broker.messages]
    live_done = max(at for at, topic in enumerate(order) if topic == TOPICS.live("dock"))
    late_before = sum(topic == TOPICS.backlog("dock") for topic in order[:live_done])
    assert late_before < 250, "live results waited for the backlog"
    assert late_before > 8, "the backlog stood still"
    assert len(rig.seqs(TOPICS.backlog("dock"))) == 500
    rig.close()


def test_gap_records_go_to_their_own_topic(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_rows=100)
    rig.append(400)
    rig.start()
    rig.drain.finish()
    rig.join()
    explained = {
        seq for gap in rig.envelopes(TOPICS.gap) for low, high in gap["ranges"] for seq in range(low, high + 1)
    }
    gaps = set(rig.seqs(TOPICS.gap))
    assert explained | gaps | set(rig.seqs(TOPICS.backlog("dock"))) == set(range(1, rig.spool.committed + 1))
    rig.close()


def test_ephemeral_messages_are_sent_only_while_connected(rig: Rig) -> None:
    assert rig.drain.send(TOPICS.health, b"{}") is False
    rig.start()
    rig.append(1)
    rig.wait(lambda: len(rig.broker.messages) >= 2)  # the birth message and the result
    assert rig.drain.send(TOPICS.health, b"{}") is True
    rig.wait(lambda: len(rig.broker.of(TOPICS.health)) == 1)
    assert rig.broker.of(TOPICS.health)[0].qos == 0


def test_stop_leaves_the_rest_on_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4)
    rig.broker.acknowledging = False
    rig.append(50)
    rig.start()
    rig.wait(lambda: len(rig.broker.messages) >= 4)
    rig.drain.stop()
    rig.join()
    assert rig.envelopes(TOPICS.status)[-1]["state"] == "stopped"
    assert rig.spool.waiting == 50
    rig.close()


def test_finishing_an_empty_spool_needs_no_connection(rig: Rig) -> None:
    rig.broker.online = False
    rig.drain.finish()
    rig.drain.run()
    assert rig.broker.messages == []


def test_a_message_that_is_too_large_is_told_in_a_gap_and_holds_nothing_up(rig: Rig) -> None:
    rig.broker.max_bytes = 1000
    rig.append(2)
    rig.spool.append("dock", b'{"x":"%s"}' % (b"x" * 2000))
    rig.append(2)
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.gap)) == 1)
    rig.drain.finish()
    rig.join()
    assert [json.loads(message.payload)["seq"] for message in rig.broker.of(TOPICS.backlog("dock"))] == [1, 2, 4, 5]
    gap = json.loads(rig.broker.of(TOPICS.gap)[0].payload)
    assert (gap["reason"], gap["ranges"], gap["counts"]) == ("too_large", [[3, 3]], {"dock": 1})
    assert rig.spool.waiting == 0


def test_commands_are_asked_for_and_passed_on(tmp_path: Path) -> None:
    heard: list[tuple[str, bytes]] = []
    rig = Rig(tmp_path, received=lambda *message: heard.append(message))
    rig.start()
    rig.wait(lambda: bool(rig.broker.connections and rig.broker.connections[0].subscriptions))
    (connection,) = rig.broker.connections
    assert connection.subscriptions == ["lisiere/v1/pi-1/cmd/#"]
    connection.receive("lisiere/v1/pi-1/cmd/ping", b"{}")
    rig.append(1)
    rig.wait(lambda: len(rig.broker.of(TOPICS.live("dock"))) == 1)
    assert heard == [("lisiere/v1/pi-1/cmd/ping", b"{}")]
    rig.close()


def test_where_commands_are_refused_results_are_delivered_all_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_transport: MemoryTransport, _topic: str) -> None:
        raise Retryable("It is not allowed.")

    monkeypatch.setattr(MemoryTransport, "subscribe", refuse)
    rig.append(1)
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.backlog("dock"))) == 1)
    rig.drain.finish()
    rig.join()
    assert "Commands cannot be received. It is not allowed." in caplog.text


def test_commands_that_were_refused_are_asked_for_again_on_the_same_connection(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MemoryTransport.subscribe
    refused: list[str] = []

    def refuse_once(transport: MemoryTransport, topic: str) -> None:
        if not refused:
            refused.append(topic)
            raise Retryable("The cloud is away.")
        whole(transport, topic)

    monkeypatch.setattr(MemoryTransport, "subscribe", refuse_once)
    monkeypatch.setattr("lisiere.sync.drain._LISTEN_S", 0.0)
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.status)) == 1)
    rig.append(1)
    rig.wait(lambda: len(rig.broker.of(TOPICS.live("dock"))) == 1)
    (connection,) = rig.broker.connections
    rig.drain.stop()
    rig.join()
    assert connection.subscriptions == ["lisiere/v1/pi-1/cmd/#"]


def test_it_is_connected_once_its_birth_is_acknowledged(rig: Rig) -> None:
    rig.broker.acknowledging = False
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.status)) == 1)
    assert not rig.drain.connected
    rig.broker.acknowledging = True
    rig.broker.connections[0].acknowledge_all()
    rig.append(1)
    rig.wait(lambda: len(rig.broker.of(TOPICS.live("dock"))) == 1)
    assert rig.drain.connected
    rig.drain.stop(farewell=False)
    rig.join()
    assert len(rig.broker.of(TOPICS.status)) == 1


def test_a_connection_that_may_say_how_the_device_is_stays_though_its_results_are_denied(rig: Rig) -> None:
    rig.broker.denied = frozenset({TOPICS.live("dock"), TOPICS.backlog("dock")})
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.status)) == 1)
    rig.append(3)
    end = time.monotonic() + 10
    while rig.drain.denial is None and time.monotonic() < end:
        time.sleep(0.01)  # the drain's thread tells nobody but who asks
    assert rig.drain.denial == f"Not on {TOPICS.live('dock')}."
    assert rig.drain.send(TOPICS.health, b"{}")
    assert rig.thread is not None
    assert rig.thread.is_alive()
    assert rig.spool.waiting == 3


def test_a_connection_that_may_do_nothing_is_given_up(rig: Rig) -> None:
    rig.broker.denied = frozenset({TOPICS.status, TOPICS.live("dock"), TOPICS.backlog("dock")})
    rig.append(3)
    rig.start()
    rig.join()
    assert "Not on" in str(rig.error)


def test_a_renewed_connection_is_a_new_one(rig: Rig) -> None:
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.status)) == 1)
    rig.drain.renew()
    rig.join()
    assert "renewed" in str(rig.error)


def test_results_of_a_pipeline_leave_in_the_form_of_awss_sample(tmp_path: Path) -> None:
    rig = Rig(tmp_path, aws_topics={"dock": "ml/dlr/x"})
    body = {"ts": "2026-01-31T07:36:16.123Z", "result": {"top": [{"label": "7", "score": 0.981}]}}
    rig.spool.append("dock", json.dumps(body).encode())
    rig.append(1, "yard")
    rig.start()
    rig.wait(lambda: len(rig.broker.of("ml/dlr/x")) == 1 and len(rig.broker.of(TOPICS.backlog("yard"))) == 1)
    rig.drain.finish()
    rig.join()
    assert rig.spool.waiting == 0
    assert rig.broker.of(TOPICS.backlog("dock")) == []
    message = json.loads(rig.broker.of("ml/dlr/x")[0].payload)
    assert message["inference-results"] == [{"Label": "7", "Score": "0.981"}]
    rig.close()


def test_the_backlog_has_its_share_while_live_results_come(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4, backlog_share=0.5)
    rig.append(200)
    rig.broker.acknowledging = False
    rig.start()
    rig.wait(lambda: len(rig.broker.messages) >= 4)
    rig.append(60)
    rig.broker.acknowledging = True
    rig.broker.connections[0].acknowledge_all()
    rig.drain.finish()
    rig.join()
    order = [message.topic for message in rig.broker.messages]
    live_done = max(at for at, topic in enumerate(order) if topic == TOPICS.live("dock"))
    beside = sum(topic == TOPICS.backlog("dock") for topic in order[4:live_done])
    assert 40 <= beside <= 80  # as many as live ones
    rig.close()


def test_no_more_is_under_way_than_the_broker_takes(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ack_timeout_s=0.3)
    rig.broker.window = 3
    rig.broker.acknowledging = False
    rig.append(50)
    rig.start()
    rig.join()
    assert rig.broker.most_unacknowledged == 3
    rig.close()


def test_everything_keeps_the_pace(tmp_path: Path) -> None:
    rig = Rig(tmp_path, publishes_per_s=40, kib_per_s=0)
    rig.append(70)
    clock = SystemClock()
    begun = clock.monotonic()
    rig.start()
    rig.drain.finish()
    rig.join()
    # Birth, 70 results and the farewell: the 41st not before a second has passed.
    assert len(rig.broker.messages) == 72
    assert clock.monotonic() - begun > 1
    rig.close()


def test_a_message_that_ends_every_connection_is_set_aside_and_told(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4)
    rig.broker.poison = lambda message: b'"seq":6,' in message.payload
    rig.append(12)
    for _ in range(40):
        rig.start()
        rig.drain.finish()
        rig.join()
        if rig.error is None:
            break
    assert rig.error is None
    (gap,) = rig.envelopes(TOPICS.gap)
    assert (gap["reason"], gap["ranges"], gap["counts"]) == ("refused", [[6, 6]], {"dock": 1})
    assert set(rig.seqs(TOPICS.backlog("dock"))) == set(range(1, 13)) - {6}
    assert rig.spool.waiting == 0
    rig.close()


def test_a_network_that_ends_every_connection_convicts_nobody(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4)
    rig.broker.poison = lambda message: message.topic == TOPICS.backlog("dock")
    rig.append(12)
    for _ in range(30):
        rig.start()
        rig.join()
        assert isinstance(rig.error, Retryable)
    assert rig.spool.waiting == 12
    rig.broker.poison = lambda _message: False
    rig.start()
    rig.drain.finish()
    rig.join()
    if rig.error is None and rig.spool.waiting:  # one was being skipped
        rig.start()
        rig.join()
    assert set(rig.seqs(TOPICS.backlog("dock"))) == set(range(1, 13))
    assert rig.broker.of(TOPICS.gap) == []
    rig.close()


def test_the_backlog_goes_in_batches_where_it_is_asked_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, backlog_batch_kb=10)
    rig.append(100)
    rig.append(5, "yard")
    rig.start()
    rig.drain.finish()
    rig.join()
    messages = rig.envelopes(TOPICS.backlog("dock"))
    assert len(messages) < 20
    assert [one["seq"] for message in messages for one in message["results"]] == list(range(1, 101))
    assert rig.spool.waiting == 0
    rig.close()


def test_a_batch_that_is_refused_goes_one_by_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, backlog_batch_kb=10)
    whole = rig.drain._open_transport

    def claiming() -> MemoryTransport:
        transport = whole()
        assert isinstance(transport, MemoryTransport)
        transport.max_bytes = 100_000  # more than it takes
        return transport

    rig.drain._open_transport = claiming
    rig.broker.max_bytes = 1000
    rig.append(20)
    rig.start()
    rig.drain.finish()
    rig.join()
    assert sorted(set(rig.seqs(TOPICS.backlog("dock")))) == list(range(1, 21))
    assert rig.broker.of(TOPICS.gap) == []
    rig.close()


def acknowledgement(rig: Rig, *ranges: tuple[int, int]) -> bytes:
    return json.dumps({"id": "1", "epoch": rig.spool.epoch, "ranges": ranges}).encode()


def test_rows_are_kept_until_a_consumer_acknowledges_them(tmp_path: Path) -> None:
    rig = Rig(tmp_path, consumer_ack=True)
    rig.append(10)
    rig.start()
    rig.wait(lambda: len(rig.broker.of(TOPICS.backlog("dock"))) == 10)
    rig.drain.finish()  # which does not wait for consumers
    rig.join()
    assert rig.error is None
    assert rig.spool.waiting == 10
    assert rig.drain.acknowledge(acknowledgement(rig, (1, 4), (6, 1000))).acknowledged == 9
    assert rig.spool.flush(10)
    assert rig.spool.waiting == 1
    rig.close()
    again = Rig(tmp_path, consumer_ack=True)
    again.start()
    again.wait(lambda: again.seqs(TOPICS.backlog("dock")) == [5])
    again.close()


def test_what_no_consumer_acknowledges_in_time_is_sent_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, consumer_ack=True, consumer_ack_s=0.05)
    rig.start()
    rig.wait(lambda: bool(rig.broker.of(TOPICS.status)))
    rig.append(3)
    rig.wait(lambda: sorted(rig.seqs(TOPICS.live("dock"))) == [1, 2, 3])
    rig.wait(lambda: set(rig.seqs(TOPICS.backlog("dock"))) == {1, 2, 3})
    assert all(envelope["replay"] for envelope in rig.envelopes(TOPICS.backlog("dock")))
    assert rig.spool.waiting == 3
    rig.close()


def test_acknowledgements_that_are_none_are_rejected(tmp_path: Path) -> None:
    rig = Rig(tmp_path, consumer_ack=True)
    for payload in (b"{}", b'{"id":"1","epoch":"x","ranges":[]}', acknowledgement(rig, (1, 2)).replace(b"[1", b'["a"')):
        with pytest.raises(Rejected, match="JSON like"):
            rig.drain.acknowledge(payload)
    with pytest.raises(Rejected, match=rig.spool.epoch):
        rig.drain.acknowledge(b'{"id":"1","epoch":"another","ranges":[[1,2]]}')
    rig.close()
    with pytest.raises(Rejected, match="not switched on"):
        Rig(tmp_path).drain.acknowledge(b"{}")


def test_what_was_sent_is_counted_over_connections_and_restarts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, window=4, ack_timeout_s=0.1)
    rig.append(6)
    rig.broker.acknowledging = False
    rig.start()
    rig.join()  # three results beside the birth message, and no acknowledgement
    rig.broker.acknowledging = True
    rig.start()
    rig.drain.finish()
    rig.join()
    rig.close()
    reader = SpoolReader(tmp_path)
    counts = reader.counts()["dock"]
    reader.close()
    assert (counts.accepted, counts.acknowledged, counts.sent) == (6, 6, 9)
    assert counts.sent == len(rig.broker.of(TOPICS.backlog("dock")))


def test_a_message_says_until_when_it_is_wanted(rig: Rig) -> None:
    rig.spool.append("dock", b'{"x":1}', ttl_s=100)
    rig.append(1, "yard")
    rig.start()
    rig.drain.finish()
    rig.join()
    (mortal,), (lasting,) = rig.broker.of(TOPICS.backlog("dock")), rig.broker.of(TOPICS.backlog("yard"))
    assert mortal.expiry_s is not None
    assert 80 < mortal.expiry_s <= 100
    assert lasting.expiry_s is None
