from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from lisiere_sim.nucleus.cloud.limits import UNLIMITED, Bucket, Limits, Refused, covers


@pytest.mark.parametrize(
    ("topic", "payload", "reason"),
    [
        ("a/#", b"", "wildcard"),
        ("a/+/b", b"", "wildcard"),
        ("", b"", "invalid_topic"),
        ("a\0b", b"", "invalid_topic"),
        ("\ud800", b"", "invalid_topic"),
        ("a", b"x" * (128 * 1024 + 1), "payload_too_large"),
        ("é" * 129, b"", "topic_too_long"),
        ("1/2/3/4/5/6/7/8/9", b"", "topic_too_deep"),
        ("$SYS/broker", b"", "reserved_topic"),
        ("$mine", b"", "reserved_topic"),
        ("$aws/rules/r/1/2/3/4/5/6/7/8/9", b"", "topic_too_deep"),
    ],
)
def test_what_iot_core_would_not_take_is_refused_by_name(topic: str, payload: bytes, reason: str) -> None:
    with pytest.raises(Refused) as caught:
        Limits().check_publish(topic, payload)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "topic",
    [
        "é" * 128,
        "1/2/3/4/5/6/7/8",
        "$aws/rules/r/1/2/3/4/5/6/7/8",
        "$aws/things/t/shadow/name/n/update/accepted",
        "$aws/rules/" + "r" * 100 + "/" + "x" * 256,
    ],
)
def test_what_it_takes_is_let_through(topic: str) -> None:
    Limits().check_publish(topic, b"x" * 128 * 1024)


def test_limits_can_be_switched_off_and_tightened() -> None:
    UNLIMITED.check_publish("/".join("a" * 300), b"x" * 1_000_000)
    with pytest.raises(Refused, match="65535 bytes"):
        UNLIMITED.check_publish("é" * 32_768, b"")
    with pytest.raises(Refused, match="takes 5"):
        Limits(payload_bytes=5).check_publish("a", b"123456")


@pytest.mark.parametrize("text", ["a#", "a/#/b", "a+/b", "#a", "a/b+", "##"])
def test_a_wrong_filter_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        Limits().check_filter(text)
    assert caught.value.reason == "invalid_filter"


@pytest.mark.parametrize("text", ["#", "+", "a/+/b", "a/#", "+/+", "/", "a//b"])
def test_a_right_filter_is_not(text: str) -> None:
    Limits().check_filter(text)


def test_a_bucket_lets_a_second_through_and_then_the_rate() -> None:
    bucket = Bucket(10)
    taken, now = 0, 0.0
    while now < 5:
        if bucket.wait_s(now, 1) == 0:
            bucket.take(1)
            taken += 1
        else:
            now += 0.01
    assert 59 <= taken <= 61  # a burst of 10, and 10 a second
    assert Bucket(None).wait_s(0, 1e9) == 0


def test_more_than_a_burst_waits_for_a_full_bucket_and_goes_then() -> None:
    bucket = Bucket(10)
    assert bucket.wait_s(0, 25) == 0
    bucket.take(25)
    assert bucket.wait_s(0, 1) == pytest.approx(1.6)
    assert bucket.wait_s(1.61, 1) == 0


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("#", "a", True),
        ("#", "a/#", True),
        ("a/#", "a", True),
        ("a/#", "a/+/c", True),
        ("a/+", "a/b", True),
        ("a/+", "a/#", False),
        ("+/b", "a/+", False),
        ("a", "a/b", False),
        ("a/b", "a", False),
        ("#", "$aws/x", False),
        ("+/x", "$aws/x", False),
        ("$aws/#", "$aws/x", True),
    ],
)
def test_which_filter_covers_which(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


LEVELS = st.lists(st.sampled_from(["a", "b", ""]), min_size=1, max_size=4).map("/".join)
FILTERS = st.lists(st.sampled_from(["a", "b", "", "+"]), min_size=1, max_size=4).map("/".join) | st.lists(
    st.sampled_from(["a", "b", "+"]), max_size=3
).map(lambda levels: "/".join([*levels, "#"]))


@given(FILTERS, LEVELS)
def test_matching_a_topic_is_what_paho_says(text: str, topic: str) -> None:
    assert covers(text, topic) == topic_matches_sub(text, topic)


@given(FILTERS, FILTERS, LEVELS)
def test_what_the_narrow_one_matches_the_wide_one_does(wide: str, narrow: str, topic: str) -> None:
    if covers(wide, narrow) and covers(narrow, topic):
        assert covers(wide, topic)
