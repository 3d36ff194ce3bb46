"""Messages between components, sent by the real SDK client; and the journal of all this."""

from __future__ import annotations

import json
import queue
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.nucleus.flavour import LITE
from lisiere_sim.nucleus.ipc.journal import Journal, resource_of
from lisiere_sim.nucleus.ipc.pubsub import matches
from lisiere_sim.nucleus.tokens import Tokens
from support.nucleus import Raw, ipc, refused

PUBSUB = "aws.greengrass.ipc.pubsub"


def json_message(value: Any) -> Any:
    from awsiot.greengrasscoreipc.model import JsonMessage, PublishMessage

    return PublishMessage(json_message=JsonMessage(message=value))


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("+/b", "a/b", True),
        ("+", "a/b", False),
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("a/+/#", "a/b", True),
    ],
)
def test_which_topics_a_filter_has(pattern: str, topic: str, expected: bool) -> None:
    assert matches(tuple(pattern.split("/")), tuple(topic.split("/"))) is expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "", "b"]), min_size=1, max_size=5), st.data())
def test_putting_a_plus_for_a_level_and_a_hash_for_the_rest_keeps_the_match(topic: list[str], data: Any) -> None:
    pattern = [data.draw(st.sampled_from([level, "+"])) for level in topic]
    cut = data.draw(st.integers(0, len(topic)))
    assert matches(tuple(pattern), tuple(topic))
    assert matches((*pattern[:cut], "#"), tuple(topic))


def test_who_wants_no_messages_of_its_own_gets_none() -> None:
    from awsiot.greengrasscoreipc.model import ReceiveMode

    everything: queue.Queue[Any] = queue.Queue()
    others: queue.Queue[Any] = queue.Queue()
    with ipc() as nucleus, nucleus.client("a") as a, nucleus.client("b") as b:
        for component in "ab":
            nucleus.allow(component, PUBSUB, ["*"], ["*"])
        a.subscribe_to_topic(topic="t", on_stream_event=everything.put)
        mode = ReceiveMode.RECEIVE_MESSAGES_FROM_OTHERS
        _, operation = a.subscribe_to_topic(topic="#", receive_mode=mode, on_stream_event=others.put)
        a.publish_to_topic(topic="t", publish_message=json_message({"from": "a"}))
        b.publish_to_topic(topic="t", publish_message=json_message({"from": "b"}))
        assert [everything.get(timeout=5).json_message.message["from"] for _ in range(2)] == ["a", "b"]
        assert others.get(timeout=5).json_message.message == {"from": "b"}
        operation.close().result(5)
        b.publish_to_topic(topic="t", publish_message=json_message({"from": "b"}))
        assert everything.get(timeout=5).json_message.message == {"from": "b"}
        assert others.empty()


def test_nucleus_lite_gives_a_component_its_own_messages_whatever_it_wants() -> None:
    from awsiot.greengrasscoreipc.model import ReceiveMode

    heard: queue.Queue[Any] = queue.Queue()
    with ipc(LITE) as nucleus, nucleus.client("a") as client:
        nucleus.allow("a", PUBSUB, ["*"], ["*"])
        mode = ReceiveMode.RECEIVE_MESSAGES_FROM_OTHERS
        client.subscribe_to_topic(topic="t", receive_mode=mode, on_stream_event=heard.put)
        client.publish_to_topic(topic="t", publish_message=json_message({"from": "a"}))
        assert heard.get(timeout=5).json_message.message == {"from": "a"}


def test_messages_keep_their_order() -> None:
    with ipc() as nucleus, Raw(nucleus, "a") as sender, Raw(nucleus, "b") as receiver:
        for component in "ab":
            nucleus.allow(component, PUBSUB, ["*"], ["*"])
        receiver.call("SubscribeToTopic", 1, b'{"topic": "t"}')
        assert receiver.next() is not None
        for n in range(1, 201):
            message = {"jsonMessage": {"message": {"n": n}}}
            sender.call("PublishToTopic", n, json.dumps({"topic": "t", "publishMessage": message}).encode())
        heard = [receiver.next() for _ in range(200)]
        assert [json.loads(one.payload)["jsonMessage"]["message"]["n"] for one in heard if one] == list(range(1, 201))


def test_wrong_requests_are_refused() -> None:
    from awsiot.greengrasscoreipc.model import BinaryMessage, JsonMessage, PublishMessage

    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.allow("a", PUBSUB, ["*"], ["*"])
        message = json_message({})
        for topic in ("", "a/+", "#", "x" * 257):
            with refused("InvalidArgumentsError"):
                client.publish_to_topic(topic=topic, publish_message=message)
        both = PublishMessage(json_message=JsonMessage(message={}), binary_message=BinaryMessage(message=b""))
        for wrong in (None, PublishMessage(), both, PublishMessage(json_message=JsonMessage())):
            with refused("InvalidArgumentsError"):
                client.publish_to_topic(topic="t", publish_message=wrong)
        for topic, mode in (("a/#/b", None), ("t", "SOMETIMES"), ("", None)):
            with refused("InvalidArgumentsError"):
                client.subscribe_to_topic(topic=topic, receive_mode=mode, on_stream_event=print)
        client.publish_to_topic(topic="t", publish_message=message)


def test_what_is_refused_is_in_the_log_with_its_reason_and_without_the_message() -> None:
    with ipc() as nucleus, nucleus.client("a") as client:
        nucleus.allow("a", PUBSUB, ["SubscribeToTopic"], ["in/#"])
        with refused("UnauthorizedError", "a:aws.greengrass.ipc.pubsub:1 (operations aws.greengrass#SubscribeToTopic"):
            client.publish_to_topic(topic="out", publish_message=json_message({"secret": "hunter2"}))
        with refused("UnauthorizedError", "on resource #"):
            client.subscribe_to_topic(topic="#", on_stream_event=print)
        client.subscribe_to_topic(topic="in/x", on_stream_event=print)
        assert len(nucleus.lines) == 2
        assert nucleus.lines[0].startswith(
            "ipc: a PublishToTopic out: UnauthorizedError: Principal a is not authorized"
        )
        nucleus.run(lambda: setattr(nucleus.journal, "verbose", True))
        client.subscribe_to_topic(topic="in/y", on_stream_event=print)
        assert nucleus.lines[2:] == ["ipc: a SubscribeToTopic in/y: ok"]
        assert "hunter2" not in repr(nucleus.journal.entries)
        assert nucleus.journal.counts["a", "SubscribeToTopic", "ok"] == 2
        with Raw(nucleus, "a"):
            assert nucleus.lines[3:] == ["ipc: a connection: ok"]


def test_failures_beyond_some_in_a_minute_are_counted_and_told_of_later() -> None:
    now = 0.0
    lines: list[str] = []
    journal = Journal(lines.append, clock=lambda: now)
    for _ in range(100):
        journal.record("noisy", "PublishToTopic", "t", "UnauthorizedError", "no")
    journal.record("other", "PublishToTopic", "t", "UnauthorizedError", "no")
    assert len(lines) == 31
    now = 61.0
    journal.record("noisy", "PublishToTopic", "t", "UnauthorizedError", "no")
    assert lines[31:] == [
        "ipc: noisy: 70 further failures were not logged.",
        "ipc: noisy PublishToTopic t: UnauthorizedError: no",
    ]
    now = -1000.0
    for _ in range(100):
        journal.record("noisy", "PublishToTopic", "t", "UnauthorizedError", "no")
    assert len(lines) == 33 + 30
    for _ in range(2000):
        journal.record("noisy", "PublishToTopic", "t")
    assert len(journal.entries) == 1000
    assert journal.counts["noisy", "PublishToTopic", "ok"] == 2000


def test_what_a_request_is_about() -> None:
    assert resource_of({"topicName": "t", "payload": "secret"}) == "t"
    assert resource_of({"keyPath": ["a", "b"], "valueToMerge": {"x": "secret"}}) == "/a/b"
    assert resource_of({"thingName": "t", "shadowName": "s"}) == "t s"
    assert resource_of({"topic": ["odd"]}) == ""
    assert len(resource_of({"topic": "x" * 1000})) == 256


def test_a_component_has_one_token() -> None:
    tokens = Tokens()
    first = tokens.issue("a")
    assert (tokens.authenticate(first), tokens.authenticate("")) == ("a", None)
    second = tokens.issue("a")
    assert second != first
    assert second.isalnum()
    assert (tokens.authenticate(first), tokens.authenticate(second)) == (None, "a")
    tokens.revoke("a")
    tokens.revoke("a")
    assert tokens.authenticate(second) is None


def test_a_message_that_would_end_a_subscriber_s_subscription_is_refused() -> None:
    with ipc() as nucleus, Raw(nucleus, "a") as sender:
        nucleus.allow("a", PUBSUB, ["*"], ["*"])
        wrong: list[dict[str, Any]] = [
            {"binaryMessage": {"message": "no base64"}},
            {"binaryMessage": {"message": 5}},
            {"jsonMessage": {"message": "no object"}},
        ]
        for number, message in enumerate(wrong, 1):
            sender.call("PublishToTopic", number, json.dumps({"topic": "t", "publishMessage": message}).encode())
            answer = sender.next()
            assert answer is not None
            assert answer.headers["service-model-type"] == "aws.greengrass#InvalidArgumentsError"


def test_what_a_client_makes_up_stays_in_one_line_of_the_log() -> None:
    lines: list[str] = []
    journal = Journal(lines.append)
    journal.record("a", "Publish\rX", "t\n2030-01-01 INFO b: \x1b[31mBROKEN", "UnauthorizedError", "of é\nand more")
    assert lines == ["ipc: a Publish\\rX t\\n2030-01-01 INFO b: \\x1b[31mBROKEN: UnauthorizedError: of é\\nand more"]
