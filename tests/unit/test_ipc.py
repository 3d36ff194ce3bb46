"""The connection to the nucleus: what it needs, what its errors become, and what it never says."""

from __future__ import annotations

import logging
import queue
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from lisiere.errors import ConfigError, Permanent, Rejected, Retryable
from lisiere.ipc import LITE_FRAME_BYTES, Environment, Nucleus, NucleusLost, Unauthorized
from lisiere_sim.nucleus.call import Call, IpcError, Stream
from lisiere_sim.nucleus.flavour import LITE
from support.nucleus import THING, Ipc, ipc

NAME = "io.lisiere.EdgeInference"


def connected(nucleus: Ipc) -> Nucleus:
    found = Nucleus(Environment.read(nucleus.environment(NAME)), 5)
    found.connect()
    return found


def test_the_environment_of_a_component_is_read() -> None:
    with ipc() as nucleus:
        variables = nucleus.environment(NAME)
    found = Environment.read(variables)
    assert (found.thing, found.region) == (THING, "eu-west-1")
    assert not found.is_lite
    assert found.token not in repr(found)
    assert Environment("/var/lib/greengrass/gg-ipc.socket", "x").is_lite


@pytest.mark.parametrize("missing", ["SVCUID", "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"])
def test_outside_a_nucleus_it_tells_of_the_laptops(missing: str) -> None:
    variables = {"SVCUID": "x", "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": "/s"}
    del variables[missing]
    with pytest.raises(ConfigError, match=rf"{missing}.*`lisiere nucleus run`"):
        Environment.read(variables)


def test_errors_become_ours() -> None:
    with ipc() as nucleus:
        here = connected(nucleus)
        for code, kind in (
            ("UnauthorizedError", Unauthorized),
            ("ServiceError", Retryable),
            ("ConflictError", Retryable),
            ("InvalidArgumentsError", Rejected),
            ("ResourceNotFoundError", Rejected),
        ):
            nucleus.cloud.outcome = IpcError(code, f"because of {code}")  # type: ignore[arg-type]
            error = here.publish("t/x", b"{}", 1, False).exception(10)
            assert type(error) is kind
            assert "PublishToIoTCore on t/x" in str(error)
            assert kind is Unauthorized or f"because of {code}" in str(error)
        here.close()


def test_nucleus_lites_errors_have_no_sentence_and_keep_their_kind() -> None:
    with ipc(LITE) as nucleus:
        here = connected(nucleus)
        nucleus.cloud.outcome = IpcError("ServiceError", "unreadable for the SDK")
        error = here.publish("t/x", b"{}", 1, False).exception(10)
        assert str(error) == "PublishToIoTCore on t/x failed in the nucleus (ServiceError)."
        big = here.publish("t/x", b"x" * LITE_FRAME_BYTES, 1, False).exception(10)
        assert isinstance(big, Rejected)
        here.close()


def test_a_wrong_token_is_final_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ipc() as nucleus:
        here = Nucleus(Environment(str(nucleus.server.socket), "stolen-token"), 5)
        with pytest.raises(NucleusLost, match="does not know this component's token") as raised:
            here.connect()
    assert "stolen-token" not in caplog.text + str(raised.value)


def test_payloads_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ipc() as nucleus:
        here = connected(nucleus)
        here.publish("t/x", b"very private", 1, False).result(10)
        here.close()
    assert "dmVyeSBwcml2YXRl" not in caplog.text  # in base64
    assert "very private" not in caplog.text


def test_what_is_to_be_retained_is() -> None:
    asked: list[tuple[str, Any]] = []

    async def publish(call: Call) -> dict[str, Any]:
        asked.append((call.request["qos"], call.request.get("retain")))
        return {}

    with ipc(more={"PublishToIoTCore": publish}) as nucleus:
        here = connected(nucleus)
        here.publish("t/status", b"{}", 1, True).result(10)
        here.publish("t/health", b"{}", 0, False).result(10)
        here.close()
    assert asked == [("1", True), ("0", None)]


def test_without_awsiotsdk_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "awsiot", None)
    with pytest.raises(Permanent, match=r"pip install lisiere\[greengrass\]"):
        Nucleus(Environment("/s", "x")).connect()


def test_a_nucleus_that_says_nothing_is_given_up() -> None:
    with tempfile.TemporaryDirectory(prefix="gg") as folder:
        path = str(Path(folder) / "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            with pytest.raises(Retryable, match=r"did not answer within 0\.2 s"):
                Nucleus(Environment(path, "x"), 0.2).connect()


def test_a_lost_connection_is_told_once_and_a_closed_one_never() -> None:
    with ipc() as nucleus:
        here = connected(nucleus)
        told: list[str] = []
        heard = threading.Event()
        here.on_lost(told.append)
        here.on_lost(lambda _why: heard.set())
        nucleus.run(lambda: nucleus.server.disconnect(NAME))
        assert heard.wait(10)
        assert not here.connected
        with pytest.raises(Retryable, match="no connection"):
            here.publish("t/x", b"{}", 1, False)
        here.connect()
        here.publish("t/x", b"{}", 1, True).result(10)
        here.close()
        here.close()
    assert len(told) == 1


def test_the_end_of_a_subscription_is_told_but_not_of_one_that_never_began() -> None:
    streams: list[Stream] = []

    async def subscribe(call: Call) -> dict[str, Any]:
        if call.request["topicName"] == "denied":
            raise IpcError("UnauthorizedError", "no")
        streams.append(call.stream)
        return {}

    with ipc(more={"SubscribeToIoTCore": subscribe}) as nucleus:
        here = connected(nucleus)
        over: queue.SimpleQueue[str] = queue.SimpleQueue()
        with pytest.raises(Unauthorized, match=r"SubscribeToIoTCore on denied.*aws\.greengrass\.ipc\.mqttproxy"):
            here.subscribe("denied", lambda _topic, _payload: None, lambda: over.put("denied"))
        here.subscribe("allowed", lambda _topic, _payload: None, lambda: over.put("allowed"))
        nucleus.run(lambda: nucleus.server.disconnect(NAME))
        assert over.get(timeout=10) == "allowed"
        assert over.empty()
        here.close()


def test_a_call_that_is_under_way_when_the_connection_goes_ends() -> None:
    with ipc() as nucleus:
        here = connected(nucleus)
        answers = [here.publish("t/x", b"{}", 1, False) for _ in range(20)]
        nucleus.run(lambda: nucleus.server.disconnect(NAME))
        ends = [answer.exception(10) for answer in answers]
        assert all(end is None or isinstance(end, Retryable) for end in ends)
        here.close()
