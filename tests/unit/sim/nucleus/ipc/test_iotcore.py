"""PublishToIoTCore and SubscribeToIoTCore: the real SDK client, the real server, a real broker behind it."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lisiere_sim.broker import Address, EmbeddedBroker
from lisiere_sim.nucleus.cloud.iotcore import IotCore
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.nucleus.ipc.iotcore import SERVICE, IotCoreOperations
from support.nucleus import Ipc, ipc

BOTH = ["PublishToIoTCore", "SubscribeToIoTCore"]


@pytest.fixture(scope="module")
def broker() -> Iterator[Address]:
    embedded = EmbeddedBroker()
    yield embedded.start()
    embedded.stop()


@contextlib.contextmanager
def connected(broker: Address, flavour: Flavour) -> Iterator[tuple[Ipc, IotCore]]:
    with ipc(flavour) as nucleus:
        core = IotCore(broker, "thing-1", flavour)
        nucleus.operations.update(IotCoreOperations(core, nucleus.access, flavour).operations())
        nucleus.loop.call(core.start())
        try:
            yield nucleus, core
        finally:
            nucleus.loop.call(core.stop())


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_out_and_back_through_the_broker(broker: Address, flavour: Flavour) -> None:
    from awsiot.greengrasscoreipc.model import QOS

    heard: queue.Queue[Any] = queue.Queue()
    with connected(broker, flavour) as (nucleus, core):
        nucleus.allow("a", SERVICE, BOTH, ["t/#"])
        with nucleus.client("a") as client:
            _, first = client.subscribe_to_iot_core(topic_name="t/+", qos=QOS.AT_LEAST_ONCE, on_stream_event=heard.put)
            _, second = client.subscribe_to_iot_core(topic_name="t/#", qos=QOS.AT_MOST_ONCE, on_stream_event=heard.put)
            for payload in (b"\x00\xff", b""):
                client.publish_to_iot_core(topic_name="t/1", qos=QOS.AT_LEAST_ONCE, payload=payload)
                for _ in range(2):
                    message = heard.get(timeout=5).message
                    assert (message.topic_name, message.payload or b"") == ("t/1", payload)
            until(lambda: core.upstream == {"t/#"})
            second.close().result(5)
            until(lambda: core.upstream == {"t/+"})
            first.close().result(5)
            until(lambda: not core.upstream)
            client.subscribe_to_iot_core(topic_name="t/2", qos="1", on_stream_event=heard.put)
            assert core.upstream == {"t/2"}
        until(lambda: not core.upstream)  # whoever goes away is unsubscribed


def test_what_is_retained_comes_at_once_and_mqtt_5_fields_do_no_harm(broker: Address) -> None:
    from awsiot.greengrasscoreipc.model import PayloadFormat, UserProperty

    heard: queue.Queue[Any] = queue.Queue()
    with connected(broker, CLASSIC) as (nucleus, _):
        nucleus.allow("a", SERVICE, BOTH, ["kept"])
        with nucleus.client("a") as client:
            client.publish_to_iot_core(
                topic_name="kept",
                payload=b"x",
                retain=True,
                content_type="text/plain",
                payload_format=PayloadFormat.UTF8,
                message_expiry_interval_seconds=5,
                user_properties=[UserProperty(key="a", value="b")],
            )
            client.subscribe_to_iot_core(topic_name="kept", on_stream_event=heard.put)
            assert heard.get(timeout=5).message.payload == b"x"


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_without_a_policy_nothing_is_published_or_heard(broker: Address, flavour: Flavour) -> None:
    from awsiot.greengrasscoreipc.model import UnauthorizedError

    with connected(broker, flavour) as (nucleus, core):
        nucleus.allow("a", SERVICE, ["PublishToIoTCore"], ["t/1"])
        with nucleus.client("a") as client:
            with pytest.raises(UnauthorizedError):
                client.publish_to_iot_core(topic_name="t/2", qos="1", payload=b"")
            with pytest.raises(UnauthorizedError):
                client.subscribe_to_iot_core(topic_name="t/1", qos="1", on_stream_event=print)
        assert core.counters.published == 0
        assert not core.upstream


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_offline_classic_answers_and_lite_fails_within_milliseconds(broker: Address, flavour: Flavour) -> None:
    from awsiot.greengrasscoreipc.model import ServiceError

    with connected(broker, flavour) as (nucleus, core):
        nucleus.allow("a", SERVICE, BOTH, ["#"])
        nucleus.run(lambda: core.online(False))
        until(lambda: not core.connected)
        with nucleus.client("a") as client:
            begun = time.monotonic()
            with contextlib.nullcontext() if flavour is CLASSIC else pytest.raises(ServiceError):
                client.publish_to_iot_core(topic_name="t", qos="1", payload=b"x")
            assert time.monotonic() - begun < 1
            assert core.held == (1 if flavour is CLASSIC else 0)
            with pytest.raises(ServiceError):
                client.subscribe_to_iot_core(topic_name="t", qos="1", on_stream_event=print)
        nucleus.run(lambda: core.online(True))
        until(lambda: core.connected and not core.held)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"topic_name": "", "payload": b""}, "InvalidArgumentsError"),
        ({"topic_name": "t", "payload": b"", "qos": "2"}, "InvalidArgumentsError"),
        ({"topic_name": "t/#", "payload": b""}, "ServiceError"),
        ({"topic_name": "1/2/3/4/5/6/7/8/9", "payload": b""}, "ServiceError"),
        ({"topic_name": "t", "payload": b"x" * (128 * 1024 + 1)}, "ServiceError"),
    ],
)
def test_what_iot_core_would_not_take_is_an_error_that_says_why(
    request_: dict[str, Any], error: str, broker: Address
) -> None:
    from awsiot.greengrasscoreipc import model

    with connected(broker, CLASSIC) as (nucleus, core):
        nucleus.allow("a", SERVICE, BOTH, ["#"])
        with nucleus.client("a") as client, pytest.raises(getattr(model, error)) as caught:
            client.publish_to_iot_core(**request_)
        assert caught.value.message
        assert core.counters.published == 0
