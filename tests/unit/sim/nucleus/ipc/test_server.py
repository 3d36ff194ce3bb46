"""The IPC server, spoken to by the real SDK client."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from lisiere_sim.nucleus.call import IpcError
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from support.nucleus import ipc

PUBSUB = "aws.greengrass.ipc.pubsub"


def test_a_leaf_comes_in_a_mapping_with_its_key() -> None:
    with ipc() as nucleus:
        nucleus.run(lambda: nucleus.store.defaults("a", {"mqtt": {"topic": "t", "qos": 1}}))
        with nucleus.client("a") as client:
            whole = client.get_configuration()
            assert whole.component_name == "a"
            assert whole.value == {"mqtt": {"topic": "t", "qos": 1}}
            assert client.get_configuration(key_path=["mqtt", "topic"]).value == {"topic": "t"}


def test_a_subscriber_hears_what_changed_and_can_read_it_then() -> None:
    heard: queue.Queue[Any] = queue.Queue()
    with ipc() as nucleus:
        nucleus.run(lambda: nucleus.store.defaults("a", {"x": 1, "y": {"z": 1}}))
        with nucleus.client("a") as client:
            _, operation = client.subscribe_to_configuration_update(
                key_path=["y"], on_stream_event=lambda event: heard.put(event.configuration_update_event)
            )
            nucleus.run(lambda: nucleus.store.merge("a", (), {"x": 2, "y": {"z": 2}}, 5.0))
            event = heard.get(timeout=5)
            assert (event.component_name, event.key_path) == ("a", ["y", "z"])
            assert client.get_configuration(key_path=["y", "z"]).value == {"z": 2}
            operation.close().result(5)
            nucleus.run(lambda: nucleus.store.merge("a", (), {"y": {"z": 3}}, 6.0))
            assert client.get_configuration(key_path=["y", "z"]).value == {"z": 3}
            assert heard.empty()


def test_components_talk_to_each_other_in_json_and_in_bytes() -> None:
    from awsiot.greengrasscoreipc.model import BinaryMessage, JsonMessage, PublishMessage

    heard: queue.Queue[Any] = queue.Queue()
    with ipc() as nucleus:
        nucleus.allow("a", PUBSUB, ["PublishToTopic"], ["out/*"])
        nucleus.allow("b", PUBSUB, ["SubscribeToTopic"], ["out/+/x"])
        with nucleus.client("a") as sender, nucleus.client("b") as receiver:
            response, _ = receiver.subscribe_to_topic(topic="out/+/x", on_stream_event=heard.put)
            assert response.topic_name == "out/+/x"
            sender.publish_to_topic(
                topic="out/1/x", publish_message=PublishMessage(json_message=JsonMessage(message={"n": [1, None]}))
            )
            event = heard.get(timeout=5)
            assert event.json_message.message == {"n": [1, None]}
            assert event.json_message.context.topic == "out/1/x"
            sender.publish_to_topic(
                topic="out/2/x", publish_message=PublishMessage(binary_message=BinaryMessage(message=b"\x00\xff"))
            )
            event = heard.get(timeout=5)
            assert event.binary_message.message == b"\x00\xff"
            assert event.binary_message.context.topic == "out/2/x"


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_errors_arrive_as_the_shapes_of_the_sdk(flavour: Flavour) -> None:
    from awsiot.greengrasscoreipc.model import QOS, ResourceNotFoundError, ServiceError

    with ipc(flavour) as nucleus, nucleus.client("a") as client:
        with pytest.raises(ResourceNotFoundError) as caught:
            client.get_configuration(component_name="nobody")
        # Nucleus lite sends the sentence under a key that the SDK does not read.
        assert ("nobody" in (caught.value.message or "")) == (flavour is CLASSIC)
        nucleus.cloud.outcome = IpcError("ServiceError", "offline")
        with pytest.raises(ServiceError):
            client.publish_to_iot_core(topic_name="t", qos=QOS.AT_LEAST_ONCE, payload=b"x")
        with pytest.raises(ServiceError):
            client.pause_component(component_name="a")
        nucleus.cloud.outcome = None
        client.publish_to_iot_core(topic_name="t", qos=QOS.AT_LEAST_ONCE, payload=b"x")
        assert nucleus.cloud.published == [("t", b"x")]


def test_who_has_no_token_gets_no_connection() -> None:
    from awsiot.eventstreamrpc import AccessDeniedError
    from awsiot.greengrasscoreipc import connect

    with ipc() as nucleus, nucleus.client("a") as other:
        with pytest.raises(AccessDeniedError):
            connect(ipc_socket=str(nucleus.server.socket), authtoken="F00", timeout=10)
        nucleus.run(lambda: nucleus.store.defaults("a", {"x": 1}))
        assert other.get_configuration(key_path=["x"]).value == {"x": 1}
