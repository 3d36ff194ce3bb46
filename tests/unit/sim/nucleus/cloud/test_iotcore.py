"""The bridge to the broker, against real brokers: the embedded one and Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from lisiere_sim.broker import Address, EmbeddedBroker, MosquittoBroker, find_mosquitto, free_port
from lisiere_sim.nucleus.cloud.iotcore import IotCore
from lisiere_sim.nucleus.cloud.limits import UNLIMITED, Limits, Refused
from lisiere_sim.nucleus.cloud.mqtt import MqttSettings
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.proxy import Proxy
from support import require

QUICK = MqttSettings(reconnect_s=(0.05, 0.1), ack_timeout_s=0.5)
Messages = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def embedded() -> Iterator[Address]:
    broker = EmbeddedBroker()
    yield broker.start()
    broker.stop()


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    require(find_mosquitto(), "mosquitto")
    broker = MosquittoBroker(tmp_path_factory.mktemp("mosquitto"))
    yield broker.start()
    broker.stop()


@pytest.fixture(params=["embedded", "mosquitto"])
def address(request: pytest.FixtureRequest) -> Address:
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(mosquitto: Address) -> Iterator[tuple[Proxy, Address]]:
    between = Proxy(mosquitto)
    yield between, between.start()
    between.stop()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def until(condition: Callable[[], object], bound_s: float = 10) -> None:
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, "It did not come about."
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(
    address: Address,
    flavour: Flavour = CLASSIC,
    limits: Limits = UNLIMITED,
    settings: MqttSettings = QUICK,
    thing: str = "thing",
) -> AsyncIterator[IotCore]:
    core = IotCore(address, thing, flavour, limits, settings)
    await core.start()
    try:
        yield core
    finally:
        await core.stop(drain_s=0)


async def refusal(work: Awaitable[Any]) -> str:
    with pytest.raises(Refused) as caught:
        await work
    return caught.value.reason


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: flavour.name)
def test_what_is_published_arrives_in_order_and_is_acknowledged(address: Address, flavour: Flavour) -> None:
    async def work() -> None:
        got: Messages = []
        async with running(address, flavour) as core:
            await core.subscribe("t/#", lambda *message: got.append(message))
            sent = [(f"t/{number % 3}", b"%d" % number) for number in range(50)]
            for topic, payload in sent:
                await core.publish(topic, payload)
            await until(lambda: len(got) >= 50)
            assert got == sent
            await until(lambda: core.held == 0)
            assert (core.counters.published, core.counters.acknowledged) == (50, 50)

    run(work())


def test_a_retained_message_and_a_large_one(address: Address) -> None:
    async def work() -> None:
        got: Messages = []
        async with running(address) as core:
            await core.publish("kept/x", b"z" * 128 * 1024, retain=True)
            await core.publish("kept/y", b"", qos=0)
            await until(lambda: core.counters.acknowledged == 2)
        async with running(address, thing="other") as core:
            await core.subscribe("kept/#", lambda *message: got.append(message))
            await until(lambda: got)
        assert got == [("kept/x", b"z" * 128 * 1024)]

    run(work())


def test_subscriptions_share_what_is_asked_of_the_broker(address: Address) -> None:
    async def work() -> None:
        got: dict[str, int] = {"a/#": 0, "a/b": 0, "a/+": 0, "other": 0}

        def count(name: str) -> Callable[[str, bytes], None]:
            def add(_topic: str, _payload: bytes) -> None:
                got[name] += 1

            return add

        async with running(address) as core:
            ends = {name: await core.subscribe(name, count(name)) for name in ("a/b", "a/+", "a/#", "other")}
            assert core.upstream == {"a/#", "other"}
            await core.publish("a/b", b"")
            await until(lambda: got["a/#"])
            assert got == {"a/#": 1, "a/b": 1, "a/+": 1, "other": 0}
            ends["a/#"]()
            ends["a/#"]()
            await until(lambda: core.upstream == {"a/+", "other"})
            again = await core.subscribe("a/+", count("a/+"))
            ends["a/+"]()
            await core.publish("a/b", b"")
            await until(lambda: got["a/b"] == 2)
            assert got == {"a/#": 1, "a/b": 2, "a/+": 2, "other": 0}
            again()
            ends["a/b"]()
            ends["other"]()
            await until(lambda: not core.upstream)

    run(work())


def test_classic_keeps_what_it_has_accepted_across_an_outage(proxy: tuple[Proxy, Address]) -> None:
    """The promise of the spooler: what was stored arrives, in order, whatever the link does meanwhile."""
    between, address = proxy

    async def work() -> None:
        loop = asyncio.get_running_loop()
        got: Messages = []
        async with running(address) as core, running(between._target, thing="other") as other:
            await other.subscribe("out/#", lambda *message: got.append(message))
            number = 0
            for change in (between.cut, between.heal, between.stall, between.cut, between.heal):
                for _ in range(40):
                    await core.publish("out/x", b"%d" % number)
                    number += 1
                    await asyncio.sleep(0)
                await loop.run_in_executor(None, change)
            await core.publish("out/x", b"last")
            await until(lambda: got[-1:] == [("out/x", b"last")])
            await until(lambda: core.held == 0)
            first = list(dict.fromkeys(payload for _, payload in got))
            assert first == [b"%d" % at for at in range(number)] + [b"last"]
            assert core.counters.dropped == {}
            assert core.counters.connects >= 2

    run(work())


def test_a_broker_that_acknowledges_nothing_is_given_up(proxy: tuple[Proxy, Address]) -> None:
    between, address = proxy

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with running(address) as core:
            await loop.run_in_executor(None, between.stall)
            await core.publish("x", b"1")
            await until(lambda: not core.connected)
            await loop.run_in_executor(None, between.heal)
            await until(lambda: core.held == 0)
            assert core.counters.acknowledged == 1

    run(work())


def test_after_so_many_tries_a_publish_is_dropped_and_counted(proxy: tuple[Proxy, Address]) -> None:
    between, address = proxy

    async def work() -> None:
        loop = asyncio.get_running_loop()
        settings = MqttSettings(reconnect_s=(0.01, 0.01), ack_timeout_s=0.2, retries=0)
        async with running(address, settings=settings) as core:
            await loop.run_in_executor(None, between.stall)
            await core.publish("x", b"1")
            await until(lambda: core.counters.dropped["retries"] == 1)
            assert core.held == 0

    run(work())


def test_offline_on_command_classic_stores_and_lite_refuses_at_once(address: Address) -> None:
    async def work() -> None:
        async with running(address) as core:
            core.online(False)
            await until(lambda: not core.connected)
            await core.publish("x", b"1")
            assert await refusal(core.publish("x", b"0", qos=0)) == "offline"
            assert await refusal(core.subscribe("x", lambda *_: None)) == "offline"
            assert (core.held, core.connected, core.status()["online"]) == (1, False, False)
            core.online(True)
            await until(lambda: core.held == 0)
            assert core.counters.connects == 2
        async with running(address, LITE) as core:
            core.online(False)
            await until(lambda: not core.connected)
            begun = time.monotonic()
            assert await refusal(core.publish("x", b"1")) == "offline"
            assert time.monotonic() - begun < 0.1
            assert core.counters.refused == {"offline": 1}

    run(work())


def test_subscriptions_come_back_with_the_connection(address: Address) -> None:
    async def work() -> None:
        got: Messages = []
        async with running(address) as core:
            for number in range(10):  # more than one packet may carry
                await core.subscribe(f"s/{number}", lambda *message: got.append(message))
            core.online(False)
            await until(lambda: not core.connected)
            core.online(True)
            await until(lambda: len(core.upstream) == 10)
            await core.publish("s/9", b"1")
            await until(lambda: got == [("s/9", b"1")])

    run(work())


def test_without_a_broker_it_starts_and_stores() -> None:
    port = free_port()

    async def work() -> None:
        async with running(("127.0.0.1", port)) as core:
            assert not core.connected
            await core.publish("x", b"1")
            assert core.held == 1

    run(work())


def test_a_full_spooler_refuses_the_new_message(address: Address) -> None:
    async def work() -> None:
        settings = MqttSettings(reconnect_s=(0.05, 0.1), spool_bytes=100)
        async with running(address, settings=settings) as core:
            core.online(False)
            await until(lambda: not core.connected)
            await core.publish("x", b"1" * 60)
            assert await refusal(core.publish("x", b"2" * 60)) == "spooler_full"
            assert core.counters.refused == {"spooler_full": 1}
            core.online(True)
            await until(lambda: core.held == 0)

    run(work())


def test_classic_waits_for_the_rate_and_lite_is_told_what_would_be_discarded(address: Address) -> None:
    async def work() -> None:
        async with running(address, limits=Limits(publishes_per_s=20)) as core:
            begun = time.monotonic()
            for _ in range(30):
                await core.publish("x", b"1")
            await until(lambda: core.held == 0)
            assert time.monotonic() - begun > 0.4  # 20 at once, 10 more at 20 a second
            assert core.counters.acknowledged == 30
        async with running(address, LITE, Limits(publishes_per_s=0.01)) as core:
            await core.publish("x", b"1")
            assert await refusal(core.publish("x", b"1")) == "throttled"
            assert core.counters.refused["throttled"] == 1

    run(work())


def test_lite_refuses_more_than_its_window(proxy: tuple[Proxy, Address]) -> None:
    between, address = proxy

    async def work() -> None:
        async with running(address, LITE) as core:
            await asyncio.get_running_loop().run_in_executor(None, between.stall)
            waiting = [asyncio.ensure_future(core.publish("x", b"1")) for _ in range(10)]
            await until(lambda: core.held == 10)
            assert await refusal(core.publish("x", b"1")) == "in_flight"
            for one in waiting:  # nothing acknowledges them, so the connection is given up
                assert await refusal(one) == "unacknowledged"

    run(work())


def test_too_many_subscriptions_and_wrong_ones_are_refused_and_leave_nothing(address: Address) -> None:
    async def work() -> None:
        async with running(address, LITE, Limits(subscriptions=2)) as core:
            await core.subscribe("a", lambda *_: None)
            await core.subscribe("b", lambda *_: None)
            assert await refusal(core.subscribe("c", lambda *_: None)) == "too_many_subscriptions"
            assert await refusal(core.subscribe("a/#/b", lambda *_: None)) == "invalid_filter"
            assert core.upstream == {"a", "b"}
            await core.subscribe("#", lambda *_: None)  # covers the others
            await until(lambda: core.upstream == {"#"})

    run(work())


def test_stopping_waits_a_while_for_what_is_held_and_says_what_it_drops(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        core = IotCore(address, "thing", CLASSIC, Limits(publishes_per_s=20), QUICK)
        await core.start()
        for _ in range(25):
            await core.publish("x", b"1")
        assert await core.stop(drain_s=5) == 0
        assert core.counters.acknowledged == 25
        core = IotCore(address, "thing", CLASSIC, UNLIMITED, QUICK)
        await core.start()
        core.online(False)
        await until(lambda: not core.connected)
        await core.publish("x", b"1")
        assert await core.stop(drain_s=5) == 1
        assert core.counters.dropped == {"nucleus_stopped": 1}

    run(work())
    assert "1 accepted publishes are dropped" in caplog.text


def test_with_a_disk_spooler_what_was_accepted_outlives_the_nucleus(address: Address, tmp_path: Path) -> None:
    async def work() -> None:
        settings = MqttSettings(reconnect_s=(0.05, 0.1), spool_file=tmp_path / "spooler.db")
        got: Messages = []
        async with running(address, thing="cloud") as cloud:
            await cloud.subscribe("t/#", lambda *message: got.append(message))
            async with running(address, settings=settings) as core:
                core.online(False)
                await until(lambda: not core.connected)
                await core.publish("t/x", b"1")
                await core.publish("t/x", b"2")
            assert core.counters.dropped == {}
            async with running(address, settings=settings) as core:
                await until(lambda: len(got) == 2)
                await until(lambda: not core.held)
        assert got == [("t/x", b"1"), ("t/x", b"2")]

    run(work())
