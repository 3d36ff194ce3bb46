"""accessControl: who may do what, and what is said to who may not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere_sim.nucleus.access import Access, Service, covers
from lisiere_sim.nucleus.call import IpcError
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.nucleus.ipc.pubsub import matches

MQTT: Service = "aws.greengrass.ipc.mqttproxy"
LEVELS = st.sampled_from(["a", "b", "", "+"])
TAILS = st.sampled_from([[], ["#"]])
FILTERS = st.builds(lambda levels, tail: "/".join(levels + tail), st.lists(LEVELS, min_size=1, max_size=4), TAILS)
TOPICS = st.builds("/".join, st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=5))


def access(policies: Any, thing: str = "t", flavour: Flavour = CLASSIC, service: str = MQTT) -> Access:
    store = ConfigurationStore()
    store.defaults("c", {"accessControl": {service: policies}})
    return Access(store, thing, flavour)


def policy(operations: Any, resources: Any) -> dict[str, Any]:
    return {"p": {"policyDescription": "d", "operations": operations, "resources": resources}}


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "a/+", "#", "A/b"]),
        ("*", ["a", "a/b", "#", "+/x", ""], []),
        ("#", ["a", "a/b", "#", "+/x"], []),
        ("a/*", ["a/", "a/b", "a/b/c", "a/#", "a/+"], ["a", "b/a/x"]),
        ("a*c", ["ac", "a/b/c", "a/+/c"], ["a/b/d", "#"]),
        ("a/#", ["a", "a/", "a/b/c", "a/#", "a/+/c"], ["ab", "#", "b", "+/b"]),
        ("a/+/c", ["a/b/c", "a/+/c", "a//c"], ["a/b/d/c", "a/#", "a/b/#", "+/b/c"]),
        ("+", ["a", "+"], ["a/b", "#", "+/+"]),
        ("+/#", ["a", "a/b", "+/#", "+"], ["#"]),
        ("a+/b", ["a+/b"], ["ax/b"]),
        ("a/#/b", ["a/#/b"], ["a/x/b"]),
        ("a/${*}", ["a/*"], ["a/b"]),
        ("a/${+}/${#}${$}", ["a/+/#$"], ["a/b/#$"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a/${x", ["a/${x"], []),
    ],
)
def test_what_a_pattern_of_topics_covers(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    assert [one for one in covered if not covers(pattern, one, topics=True)] == []
    assert [one for one in not_covered if covers(pattern, one, topics=True)] == []


def test_outside_topics_plus_and_hash_are_characters() -> None:
    assert covers("a/+", "a/+", topics=False)
    assert not covers("a/+", "a/b", topics=False)
    assert not covers("#", "a", topics=False)
    assert covers("arn:*:db", "arn:aws:db", topics=False)


@settings(max_examples=300, deadline=None)
@given(FILTERS, FILTERS, TOPICS)
def test_who_may_subscribe_to_a_filter_gets_no_topic_that_the_pattern_does_not_have(
    pattern: str, asked: str, topic: str
) -> None:
    if covers(pattern, asked, topics=True) and matches(tuple(asked.split("/")), tuple(topic.split("/"))):
        assert matches(tuple(pattern.split("/")), tuple(topic.split("/")))


@settings(max_examples=300, deadline=None)
@given(FILTERS, TOPICS)
def test_a_pattern_covers_the_topics_that_match_it(pattern: str, topic: str) -> None:
    assert covers(pattern, topic, topics=True) == matches(tuple(pattern.split("/")), tuple(topic.split("/")))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_any_resource_is_a_pattern(pattern: str) -> None:
    assert covers(pattern, "no such topic", topics=True) in (True, False)
    assert covers("*", pattern, topics=True)


def test_the_thing_name_is_filled_in() -> None:
    here = access(policy(["aws.greengrass#PublishToIoTCore"], ["x/{iot:thingName}/#"]), thing="pump.1")
    here.check("c", MQTT, "PublishToIoTCore", "x/pump.1/y")
    with pytest.raises(IpcError):
        here.check("c", MQTT, "PublishToIoTCore", "x/pumps1/y")


def test_nucleus_lite_does_not_fill_it_in_and_says_so() -> None:
    here = access(policy(["*"], ["x/{iot:thingName}/#"]), flavour=LITE)
    with pytest.raises(IpcError, match="Nucleus lite fills in no variables in a configuration"):
        here.check("c", MQTT, "PublishToIoTCore", "x/t/y")
    with pytest.raises(IpcError, match=r"would allow it\.$"):
        access(policy(["*"], ["x"]), flavour=LITE).check("c", MQTT, "PublishToIoTCore", "y")


def test_a_refusal_says_what_was_asked_what_was_looked_at_and_what_would_help() -> None:
    here = access(policy(["aws.greengrass#SubscribeToIoTCore"], ["x/#", "y"]))
    with pytest.raises(IpcError) as caught:
        here.check("c", MQTT, "PublishToIoTCore", "x/1")
    assert caught.value.code == "UnauthorizedError"
    assert caught.value.message == (
        "Principal c is not authorized to perform aws.greengrass.ipc.mqttproxy:aws.greengrass#PublishToIoTCore on "
        "resource x/1. Policies looked at in its accessControl: p (operations aws.greengrass#SubscribeToIoTCore; "
        "resources x/#, y). One with operations [aws.greengrass#PublishToIoTCore] and resources [x/1] would allow it."
    )
    with pytest.raises(IpcError, match=r"none for aws.greengrass.ipc.pubsub"):
        here.check("c", "aws.greengrass.ipc.pubsub", "PublishToTopic", "x")
    with pytest.raises(IpcError, match="none for"):
        here.check("stranger", MQTT, "PublishToIoTCore", "x/1")


@pytest.mark.parametrize(
    "policies",
    [
        None,
        5,
        [],
        {"p": None},
        {"p": []},
        policy("*", "*"),
        policy(["*"], None),
        policy(None, ["*"]),
        policy([5], [{}]),
    ],
)
def test_a_policy_that_is_not_as_it_should_be_allows_nothing(policies: Any) -> None:
    with pytest.raises(IpcError, match="not authorized"):
        access(policies).check("c", MQTT, "PublishToIoTCore", "x")


def test_on_nucleus_lite_the_filters_of_pubsub_are_characters() -> None:
    service: Service = "aws.greengrass.ipc.pubsub"
    wanted = policy(["*"], ["a/#", "b*"])
    access(wanted, service=service).check("c", service, "PublishToTopic", "a/x")
    lite = access(wanted, flavour=LITE, service=service)
    lite.check("c", service, "SubscribeToTopic", "a/#")
    lite.check("c", service, "PublishToTopic", "b/x")
    with pytest.raises(IpcError):
        lite.check("c", service, "PublishToTopic", "a/x")
    access(policy(["*"], ["a/#"]), flavour=LITE).check("c", MQTT, "PublishToIoTCore", "a/x")


def test_operations_may_be_all() -> None:
    access(policy(["*"], ["x"])).check("c", MQTT, "PublishToIoTCore", "x")
    with pytest.raises(IpcError):
        access(policy(["PublishToIoTCore"], ["x"])).check("c", MQTT, "PublishToIoTCore", "x")


def test_a_change_holds_at_the_next_call() -> None:
    store = ConfigurationStore()
    store.defaults("c", {"accessControl": {MQTT: policy(["*"], ["x"])}})
    here = Access(store, "t", CLASSIC)
    here.check("c", MQTT, "PublishToIoTCore", "x")
    store.merge("c", ("accessControl", MQTT, "p", "resources"), [], 1.0)
    with pytest.raises(IpcError):
        here.check("c", MQTT, "PublishToIoTCore", "x")
    store.reset("c", ["/accessControl"])
    here.check("c", MQTT, "PublishToIoTCore", "x")


def test_no_topic_keeps_the_nucleus_busy() -> None:
    # In a fraction of a second: were every place for each `*` tried, this would not end.
    assert not covers("x/*/y/*/y/*/y/*/z", "x/" + "/y/" * 20_000, topics=True)
    assert covers("x/*/y/+/*a", "x/" + "/y/" * 20_000 + "a", topics=True)
