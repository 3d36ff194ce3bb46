"""Clients that break the protocol or take more than their part: the nucleus lives, and other clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lisiere_sim.nucleus.call import Call
from lisiere_sim.nucleus.flavour import CLASSIC, LITE
from lisiere_sim.nucleus.ipc import frames
from lisiere_sim.nucleus.ipc.server import Limits
from support.nucleus import Ipc, Raw, hello, ipc, refused

PUBSUB = "aws.greengrass.ipc.pubsub"
QUICK = Limits(linger_s=0.05)


@contextlib.contextmanager
def unnoticed(nucleus: Ipc) -> Iterator[Any]:
    """Have another client with a subscription, for which everything is as it was at the end."""
    heard: queue.Queue[Any] = queue.Queue()
    nucleus.run(lambda: nucleus.store.merge("other", (), {"x": 0}, 1.0))
    with nucleus.client("other") as other:
        other.subscribe_to_configuration_update(key_path=["x"], on_stream_event=heard.put)
        yield other
        nucleus.run(lambda: nucleus.store.merge("other", (), {"x": 1}, 2.0))
        assert heard.get(timeout=5).configuration_update_event.key_path == ["x"]
        assert other.get_configuration(key_path=["x"]).value == {"x": 1}


def until(condition: Callable[[], bool], bound: float = 5.0) -> None:
    end = time.monotonic() + bound
    while not condition():
        assert time.monotonic() < end, "It did not come to be."
        time.sleep(0.005)


def records(nucleus: Ipc, outcome: str) -> list[str]:
    return [entry.reason for entry in list(nucleus.journal.entries) if entry.outcome == outcome]


def with_checksum(total: int, headers: int) -> bytes:
    prelude = struct.pack(">II", total, headers)
    return prelude + struct.pack(">I", zlib.crc32(prelude))


GOOD = frames.encode(frames.MESSAGE, 0, 1, {"operation": "aws.greengrass#GetConfiguration"}, b"{}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "checksum"),
        (GOOD[:9] + b"\x00" + GOOD[10:], "checksum"),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "checksum of a frame is wrong"),
        (GOOD[:40] + b"?" + GOOD[41:], "checksum of a frame is wrong"),
        (with_checksum(0xFFFFFFFF, 0), "are taken"),
        (with_checksum(20, 10), "cannot have"),
        (frames.encode_raw(b"\x05short", b""), "header"),
        (frames.encode_raw(b"", b""), ":message-type"),
        (frames.encode(frames.MESSAGE, 0, 1, {}, b"{}"), "names no operation"),
        (frames.encode(frames.MESSAGE, 0, 0, {"operation": "aws.greengrass#GetConfiguration"}), "not expected"),
        (frames.encode(frames.MESSAGE, 0, -1, {"operation": "aws.greengrass#GetConfiguration"}), "not expected"),
        (frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, b'{"authToken": "x"}'), "not expected"),
        (frames.encode(frames.CONNECT_ACK, frames.ACCEPTED, 0), "not expected"),
        (frames.encode(frames.ERROR, frames.TERMINATE, 1), "not expected"),
    ],
)
def test_what_is_not_the_protocol_ends_that_connection_alone(data: bytes, says: str) -> None:
    with ipc(limits=QUICK) as nucleus, unnoticed(nucleus), Raw(nucleus, "bad") as bad:
        bad.send(data)
        answer = bad.next()
        assert answer is not None
        assert answer.type == frames.PROTOCOL_ERROR
        assert says.encode() in answer.payload
        with contextlib.suppress(BrokenPipeError):
            bad.send(b"what comes now is not even looked at")
        assert bad.next() is None
        (reason,) = records(nucleus, "disconnected")
        assert says in reason


def test_a_stream_takes_one_message_only() -> None:
    with ipc(limits=QUICK) as nucleus, unnoticed(nucleus), Raw(nucleus, "other") as bad:
        bad.call("SubscribeToConfigurationUpdate", 1)
        answer = bad.next()
        assert answer is not None
        assert answer.headers["service-model-type"] == "aws.greengrass#SubscribeToConfigurationUpdateResponse"
        bad.call("SubscribeToConfigurationUpdate", 1)
        answer = bad.next()
        assert answer is not None
        assert answer.type == frames.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GOOD,
        frames.encode(frames.PING, 0, 0),
        frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, bytes(5000)),
    ],
    ids=["http", "request", "ping", "long"],
)
def test_who_has_shown_no_token_can_do_nothing(data: bytes) -> None:
    with ipc(limits=QUICK) as nucleus, unnoticed(nucleus), Raw(nucleus) as bad:
        bad.send(data)
        answer = bad.next()
        assert answer is not None
        assert answer.type == frames.PROTOCOL_ERROR
        assert bad.next() is None


@pytest.mark.parametrize(
    "data",
    [
        hello("F00"),
        hello(""),
        frames.encode(frames.CONNECT, 0, 0, {":version": "0.2.0"}, b"{}"),
        frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, b"\xff"),
        frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, b"[" * 3000),
        frames.encode(frames.CONNECT, 0, 0, {":version": "0.1.0"}, b'{"authToken": 5}'),
    ],
)
def test_a_connection_without_a_good_token_is_not_accepted(data: bytes) -> None:
    with ipc(limits=QUICK) as nucleus, unnoticed(nucleus), Raw(nucleus) as bad:
        bad.send(data + GOOD)
        assert bad.next() == frames.Frame(frames.CONNECT_ACK, 0, 0, {}, b"")
        assert bad.next() is None
        assert len(records(nucleus, "refused")) == 1
        assert records(nucleus, "disconnected") == []


def test_a_token_is_worth_nothing_once_it_is_replaced() -> None:
    with ipc(limits=QUICK) as nucleus:
        old = nucleus.token("a")
        with Raw(nucleus, "a") as first:
            nucleus.run(lambda: nucleus.tokens.issue("a"))
            nucleus.run(lambda: nucleus.server.disconnect("a"))
            assert first.next() is None
        with Raw(nucleus) as second:
            second.send(hello(old))
            assert second.next() == frames.Frame(frames.CONNECT_ACK, 0, 0, {}, b"")


@pytest.mark.parametrize("data", [b"", hello("F00")[:20]], ids=["silent", "half"])
def test_a_client_that_does_not_go_on_is_let_go(data: bytes) -> None:
    with ipc(limits=Limits(connect_s=0.05, linger_s=0.05)) as nucleus, unnoticed(nucleus), Raw(nucleus) as bad:
        bad.send(data)
        assert bad.next() is None
        assert "did not show a token" in records(nucleus, "disconnected")[0]


def test_an_unknown_operation_is_a_service_error() -> None:
    with ipc() as nucleus, unnoticed(nucleus) as other:
        with refused("ServiceError", "PauseComponent"):
            other.pause_component(component_name="x")
        with Raw(nucleus, "other") as raw:
            for stream, name in enumerate(["aws.greengrass#Nope", "other#GetConfiguration", "x" * 60_000], 1):
                raw.send(frames.encode(frames.MESSAGE, 0, stream, {"operation": name}, b"{}"))
                answer = raw.next()
                assert answer is not None
                assert (answer.type, answer.flags) == (frames.ERROR, frames.TERMINATE)
                assert answer.headers["service-model-type"] == "aws.greengrass#ServiceError"


@pytest.mark.parametrize("body", [b"{", b"[]", b"5", b"\xff", b"[" * 5000, b'{"a":' * 50_000, b'{"a": NaN}'])
def test_a_body_that_is_no_object_is_an_invalid_argument(body: bytes) -> None:
    with ipc() as nucleus, unnoticed(nucleus), Raw(nucleus, "bad") as bad:
        bad.call("GetConfiguration", 1, body)
        answer = bad.next()
        assert answer is not None
        assert answer.headers["service-model-type"] == "aws.greengrass#InvalidArgumentsError"
        bad.send(frames.encode(frames.PING, 0, 0, {}, b"still here"))
        assert bad.next() == frames.Frame(frames.PING_RESPONSE, 0, 0, {}, b"still here")


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_a_message_that_is_too_long_is_refused_with_what_is_allowed(flavour: Any) -> None:
    with ipc(flavour) as nucleus, unnoticed(nucleus), Raw(nucleus, "other") as raw:
        for stream, length in enumerate((flavour.ipc_payload_max, flavour.ipc_payload_max + 1), 1):
            raw.call("GetConfiguration", stream, b"{}" + b" " * (length - 2))
            answer = raw.next()
            assert answer is not None
            assert answer.type == (frames.ERROR if length > flavour.ipc_payload_max else frames.MESSAGE)
            assert answer.flags == frames.TERMINATE
            assert (b"nucleus takes %d" % flavour.ipc_payload_max in answer.payload) == (answer.type == frames.ERROR)


def test_a_defect_of_an_operation_is_a_service_error() -> None:
    async def broken(call: Call) -> dict[str, Any]:
        raise ZeroDivisionError("by design")

    async def nonsense(call: Call) -> dict[str, Any]:
        return {"x": object()}

    with ipc(more={"UpdateState": broken, "ListComponents": nonsense}) as nucleus, unnoticed(nucleus) as other:
        with refused("ServiceError", "UpdateState failed in the nucleus: ZeroDivisionError"):
            other.update_state(state="RUNNING")
        with refused("ServiceError", "ListComponents failed in the nucleus"):
            other.list_components()


def test_a_hundred_clients_at_once() -> None:
    from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup, SocketDomain, SocketOptions
    from awsiot.eventstreamrpc import Connection, LifecycleHandler, MessageAmendment
    from awsiot.greengrasscoreipc.client import GreengrassCoreIPCClient
    from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2

    group = EventLoopGroup(1)
    options = SocketOptions()
    options.domain = SocketDomain.Local
    with ipc() as nucleus, unnoticed(nucleus):
        connections = []
        for number in range(100):
            name = f"c{number}"
            nucleus.run(functools.partial(nucleus.store.merge, name, (), {"me": name}, 1.0))
            connections.append(
                Connection(
                    host_name=str(nucleus.server.socket),
                    port=0,
                    bootstrap=ClientBootstrap(group, DefaultHostResolver(group)),
                    socket_options=options,
                    connect_message_amender=MessageAmendment.create_static_authtoken_amender(nucleus.token(name)),
                )
            )
        for made in [connection.connect(LifecycleHandler()) for connection in connections]:
            made.result(10)
        clients = [GreengrassCoreIPCClientV2(GreengrassCoreIPCClient(one), executor=None) for one in connections]
        asked: list[Future[Any]] = [
            client.get_configuration_async(key_path=["me"]) for client in clients for _ in range(5)
        ]
        assert [one.result(10).value["me"] for one in asked] == [f"c{n}" for n in range(100) for _ in range(5)]
        for closed in [client.close() for client in clients]:
            closed.result(10)
        until(lambda: len(nucleus.server.connections) == 1)


def test_connections_are_bounded() -> None:
    with ipc(limits=Limits(connections=2, linger_s=0.05)) as nucleus, unnoticed(nucleus):
        with Raw(nucleus, "a"), Raw(nucleus) as third:
            assert third.next() is None
            assert "2 connections" in records(nucleus, "refused")[0]
        until(lambda: len(nucleus.server.connections) == 1)
        with Raw(nucleus, "a"):
            pass


def test_one_component_does_not_take_all_connections() -> None:
    with ipc(limits=Limits(each=1, linger_s=0.05)) as nucleus, unnoticed(nucleus), Raw(nucleus, "a"):
        with Raw(nucleus) as second:
            second.send(hello(nucleus.token("a")))
            assert second.next() == frames.Frame(frames.CONNECT_ACK, 0, 0, {}, b"")
            assert "1 connections of a" in records(nucleus, "refused")[0]
        with Raw(nucleus, "b"):
            pass


def test_who_shows_no_token_does_not_take_all_connections() -> None:
    with ipc(limits=Limits(strangers=1, linger_s=0.05)) as nucleus, unnoticed(nucleus), Raw(nucleus) as first:
        until(lambda: len(nucleus.server.connections) == 2)
        with Raw(nucleus) as second:
            assert second.next() is None
        assert "1 clients" in records(nucleus, "refused")[0]
        first.send(hello(nucleus.token("a")))
        assert first.next() == frames.Frame(frames.CONNECT_ACK, frames.ACCEPTED, 0, {}, b"")
        with Raw(nucleus, "b"):
            pass


def test_a_subscription_that_is_flooded_before_it_is_answered_is_cut_off() -> None:
    async def flooded(call: Call) -> dict[str, Any]:
        for _ in range(1001):
            call.stream.send("SubscriptionResponseMessage", {})
        return {}

    with ipc(more={"SubscribeToTopic": flooded}) as nucleus, unnoticed(nucleus), Raw(nucleus, "a") as raw:
        raw.call("SubscribeToTopic", 1)
        assert raw.next() is None
        assert "1000 events" in records(nucleus, "disconnected")[0]


def test_names_that_a_client_makes_up_do_not_fill_the_journal() -> None:
    from lisiere_sim.nucleus.ipc.journal import Journal

    journal = Journal()
    for number in range(6000):
        journal.record("a", f"Made{number}", "", "ServiceError", "x" * 5000)
    assert len(journal.counts) == 5001
    assert journal.counts["a", "other", "ServiceError"] == 1000
    assert len(journal.entries[-1].reason) == 2000


def test_streams_are_bounded() -> None:
    with ipc(limits=Limits(streams=2)) as nucleus, unnoticed(nucleus) as other:
        _, first = other.subscribe_to_configuration_update(on_stream_event=print)
        with refused("ServiceError", "2 streams are open"):
            other.subscribe_to_configuration_update(on_stream_event=print)
        first.close().result(5)


def test_calls_under_way_are_bounded_and_none_is_lost() -> None:
    running, most = 0, 0
    go = asyncio.Event()

    async def slow(call: Call) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return {}

    count, body = 300, b'{"x": "%s"}' % (b"x" * 20_000)
    with (
        ipc(limits=Limits(calls=8), more={"UpdateState": slow}) as nucleus,
        unnoticed(nucleus) as other,
        Raw(nucleus, "a") as raw,
    ):
        flood = b"".join(
            frames.encode(frames.MESSAGE, 0, stream, {"operation": "aws.greengrass#UpdateState"}, body)
            for stream in range(1, count + 1)
        )
        sender = threading.Thread(target=raw.send, args=(flood,))
        sender.start()
        until(lambda: running >= 8)
        for _ in range(100):  # time enough for the server to read all of it, if it did
            other.get_configuration()
        nucleus.run(go.set)
        answered = [raw.next() for _ in range(count)]
        sender.join(10)
        assert sorted(one.stream for one in answered if one is not None) == list(range(1, count + 1))
        # What one read of the socket brings may be more than the bound; asyncio reads 256 KiB at most.
        assert most <= 8 + 256 * 1024 // len(body) + 1


def test_a_client_that_does_not_read_is_let_go_and_holds_nobody_up() -> None:
    from awsiot.greengrasscoreipc.model import BinaryMessage, PublishMessage

    heard: queue.Queue[Any] = queue.Queue()
    with ipc(limits=Limits(unsent=256 * 1024)) as nucleus, unnoticed(nucleus) as other, Raw(nucleus, "deaf") as deaf:
        for component in ("other", "deaf"):
            nucleus.allow(component, PUBSUB, ["*"], ["*"])
        other.subscribe_to_topic(topic="t", on_stream_event=heard.put)
        deaf.call("SubscribeToTopic", 1, b'{"topic": "t"}')
        until(lambda: nucleus.journal.counts["deaf", "SubscribeToTopic", "ok"] == 1)
        message = PublishMessage(binary_message=BinaryMessage(message=bytes(50_000)))
        sent = 0
        while "bytes unread" not in "".join(records(nucleus, "disconnected")):
            assert sent < 100
            other.publish_to_topic(topic="t", publish_message=message)
            sent += 1
        assert [len(heard.get(timeout=5).binary_message.message) for _ in range(sent)] == [50_000] * sent
        until(lambda: len(nucleus.server.connections) == 1)


def test_a_client_that_vanishes_leaves_no_subscription() -> None:
    closed: queue.Queue[str] = queue.Queue()

    async def subscribe(call: Call) -> dict[str, Any]:
        call.stream.on_close(lambda: closed.put(call.component))
        return {}

    with ipc(more={"SubscribeToComponentUpdates": subscribe}) as nucleus, unnoticed(nucleus):
        with Raw(nucleus, "a") as raw:
            raw.call("SubscribeToComponentUpdates", 1)
            assert raw.next() is not None
            raw.call("SubscribeToComponentUpdates", 2)
            assert raw.next() is not None
            raw.send(frames.encode(frames.MESSAGE, frames.TERMINATE, 1))
            assert raw.next() == frames.Frame(frames.MESSAGE, frames.TERMINATE, 1, {}, b"")
            assert closed.get(timeout=5) == "a"
            assert closed.empty()
        assert closed.get(timeout=5) == "a"


def test_a_client_that_leaves_during_a_call_is_no_trouble() -> None:
    started, ended = threading.Event(), threading.Event()

    async def endless(call: Call) -> dict[str, Any]:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return {}

    with ipc(more={"UpdateState": endless}) as nucleus, unnoticed(nucleus):
        with Raw(nucleus, "a") as raw:
            raw.call("UpdateState", 1)
            assert started.wait(5)
        assert ended.wait(5)


def test_chance_finds_nothing_that_harms() -> None:
    chance = random.Random(4)
    with ipc(limits=QUICK) as nucleus, unnoticed(nucleus):
        for _ in range(40):
            raw = bytearray()
            for stream in range(1, 4):
                name = chance.choice(list(nucleus.operations))
                body = chance.choice([b"{}", b'{"topic": 5}', b'{"keyPath": [1]}', b'{"payload": "%"}', b"null"])
                raw += frames.encode(
                    chance.randrange(8), chance.randrange(4), stream, {"operation": f"aws.greengrass#{name}"}, body
                )
            for _ in range(chance.choice([0, 0, 1])):
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            with Raw(nucleus, "a") as client, contextlib.suppress(OSError):
                client.send(bytes(raw))
        until(lambda: len(nucleus.server.connections) == 1)
        assert not [reason for reason in records(nucleus, "ServiceError") if "failed in the nucleus" in reason]


def test_the_socket_is_taken_over_from_a_dead_nucleus_but_not_from_a_living_one(tmp_path: Path) -> None:
    from lisiere.errors import ConfigError
    from lisiere_sim.nucleus.ipc.journal import Journal
    from lisiere_sim.nucleus.ipc.server import IpcServer

    with ipc() as nucleus, unnoticed(nucleus):
        assert nucleus.server.socket.stat().st_mode & 0o777 == 0o666

        def server(path: Path) -> IpcServer:
            return IpcServer(path, nucleus.tokens.authenticate, {}, CLASSIC, Journal())

        with pytest.raises(ConfigError, match="Another nucleus"):
            nucleus.loop.call(server(nucleus.server.socket).start())
        with pytest.raises(ConfigError, match="too long"):
            nucleus.loop.call(server(tmp_path / ("x" * 100)).start())
        stale = nucleus.server.socket.with_name("stale")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(stale))
        second = server(stale)
        nucleus.loop.call(second.start())
        nucleus.loop.call(second.stop())
        assert not stale.exists()
