"""The nucleus whole: components as real child processes that use the real SDK, a real broker, the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lisiere.errors import ConfigError, Permanent
from lisiere_sim.nucleus.components.deployments import Deployment
from lisiere_sim.nucleus.components.surroundings import Settings
from lisiere_sim.nucleus.control import ask
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.nucleus import Nucleus, Options
from support import require
from support.nuclei import PATIENTLY, QUICK, A, B, write_recipe

FOREVER = "exec sleep 600"
CLI = {
    "accessControl": {
        "aws.greengrass.Cli": {"one": {"operations": ["aws.greengrass#RestartComponent"], "resources": ["*"]}},
    }
}
# It is up when it says so; it puts the first question off once; and it restarts itself when a file says so.
TALKS = """\
import pathlib, sys, threading
from awsiot.greengrasscoreipc.clientv2 import GreengrassCoreIPCClientV2
from awsiot.greengrasscoreipc.model import JsonMessage, PublishMessage
ipc = GreengrassCoreIPCClientV2()
questions = []
def event(message):
    asked = message.pre_update_event
    if asked is not None:
        questions.append(asked.deployment_id)
        ipc.defer_component_update_async(
            deployment_id=asked.deployment_id, recheck_after_ms=50 if len(questions) == 1 else 0)
        print("asked", flush=True)
    else:
        print("told", flush=True)
ipc.subscribe_to_component_updates(on_stream_event=event)
try:
    ipc.publish_to_topic(topic="not/mine", publish_message=PublishMessage(json_message=JsonMessage(message={})))
except Exception as error:
    print(type(error).__name__, flush=True)
ipc.update_state(state="RUNNING")
print("up", flush=True)
restart = pathlib.Path("restart")
while not restart.exists():
    threading.Event().wait(0.02)
restart.unlink()
ipc.restart_component(component_name=sys.argv[1])
threading.Event().wait(600)
"""


@contextlib.asynccontextmanager
async def running(folder: Path, **more: Any) -> AsyncIterator[Nucleus]:
    nucleus = Nucleus(Options(**{"root": folder / "root", "patience": QUICK, "settle": 0.05, **more}))
    await nucleus.start()
    try:
        yield nucleus
    finally:
        await nucleus.stop()


async def until_output(nucleus: Nucleus, text: str, times: int = 1) -> None:
    log = nucleus.layout.component_log(A)
    for _ in range(int(PATIENTLY / 0.01)):
        if log.exists() and log.read_text().count(text) >= times:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not {times} times {text!r}: {log.read_text()}")


def test_a_component_that_uses_the_sdk_is_heard_asked_and_may_restart_itself(tmp_path: Path) -> None:
    require(importlib.util.find_spec("awsiot"), "awsiotsdk")

    async def scene() -> None:
        script = f"exec {sys.executable} {tmp_path}/talks.py {A}"
        (tmp_path / "talks.py").write_text(TALKS)
        write_recipe(tmp_path / "r", defaults=CLI, lifecycle={"startup": script})
        async with running(tmp_path) as nucleus:
            wanted = Deployment(components={A: "1.0.0"}, recipes=str(tmp_path / "r"))
            outcome = await nucleus.administration.run(wanted)
            assert outcome.status == "SUCCEEDED"  # `startup` goes on, so it was UpdateState that said so
            await until_output(nucleus, "up")
            await until_output(nucleus, "UnauthorizedError")
            (denied,) = [one for one in nucleus.journal.entries if one.outcome == "UnauthorizedError"]
            assert (denied.component, denied.operation, denied.resource) == (A, "PublishToTopic", "not/mine")
            # A deployment asks, is put off, asks again, goes on, and tells.
            write_recipe(tmp_path / "r", B, lifecycle={"run": FOREVER})
            wanted = Deployment(components={B: "1.0.0"}, recipes=str(tmp_path / "r"))
            assert (await nucleus.administration.run(wanted)).status == "SUCCEEDED"
            await until_output(nucleus, "told")
            assert nucleus.layout.component_log(A).read_text().count("asked") == 2
            # Its own connection goes with the restart, which must not end the restart.
            (nucleus.layout.work(A) / "restart").touch()
            await until_output(nucleus, "up", 2)
            assert nucleus.deployments.components[A].restarts == 0
            assert [one.status for one in nucleus.administration.deployments()] == ["SUCCEEDED"] * 2

    asyncio.run(scene())


def test_a_second_nucleus_in_the_same_root_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(tmp_path) as first:
            with pytest.raises(ConfigError, match=f"Another nucleus \\(process {os.getpid()}\\)"):
                await Nucleus(Options(tmp_path / "root")).start()
            assert first.status()["iot_core"]["connected"]
        async with running(tmp_path):
            pass

    asyncio.run(scene())


def test_a_nucleus_without_its_broker_does_not_start_and_leaves_nothing(tmp_path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(Permanent, match=r"No broker answers at 127\.0\.0\.1:1"):
            await Nucleus(Options(tmp_path / "root", broker="127.0.0.1:1")).start()
        async with running(tmp_path):  # the root is free again
            pass

    asyncio.run(scene())


def test_a_root_too_deep_for_sockets_gets_them_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80) / ("e" * 80)

    async def scene() -> None:
        async with running(deep) as nucleus:
            place = nucleus.layout.sockets
            assert not place.is_relative_to(deep)
            assert nucleus.layout.socket.is_socket()
            layout = Layout(deep / "root")
            layout.find_sockets()
            status = await asyncio.to_thread(ask, layout.control, {"do": "status"}, PATIENTLY)
            assert status["root"] == str(deep / "root")
        assert not place.exists()

    asyncio.run(scene())


def test_the_control_socket_survives_nonsense(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(tmp_path) as nucleus:
            for line in (b"\n", b"[]\n", b"{}\n", b'{"do": "fly"}\n', b'{"do": []}\n', b"\xff\n"):
                reader, writer = await asyncio.open_unix_connection(nucleus.layout.control)
                writer.write(line)
                assert b"There is no such request" in await asyncio.wait_for(reader.readline(), PATIENTLY)
                writer.close()
                await writer.wait_closed()
            _, silent = await asyncio.open_unix_connection(nucleus.layout.control)
            with pytest.raises(ConfigError, match="is not deployed here"):
                await asyncio.to_thread(ask, nucleus.layout.control, {"do": "restart", "component": A}, PATIENTLY)
            with pytest.raises(ConfigError, match="This is no deployment"):
                await asyncio.to_thread(ask, nucleus.layout.control, {"do": "deploy", "deployment": 5}, PATIENTLY)
            assert oct(nucleus.layout.control.stat().st_mode & 0o777) == "0o600"
            silent.close()
            await silent.wait_closed()

    asyncio.run(scene())


def test_settings_reach_components_and_the_token_does_not_reach_the_logs(tmp_path: Path) -> None:
    async def scene() -> None:
        write_recipe(tmp_path / "r", lifecycle={"run": 'printf %s "$SVCUID" > token; echo "$EXTRA"; ' + FOREVER})
        settings = Settings("thing-7", environment={"EXTRA": "of the user"})
        async with running(tmp_path, settings=settings, log_ipc=True) as nucleus:
            await nucleus.administration.run(Deployment(components={A: "1.0.0"}, recipes=str(tmp_path / "r")))
            await until_output(nucleus, "of the user")
            token = (nucleus.layout.work(A) / "token").read_text()
            assert nucleus.tokens.authenticate(token) == A
            await nucleus.administration.stop(A)
            assert nucleus.tokens.authenticate(token) is None
        kept = [file for file in (tmp_path / "root").rglob("*") if file.is_file() and file.name != "token"]
        assert not any(token.encode() in file.read_bytes() for file in kept)

    asyncio.run(scene())


def test_the_disk_spooler_lies_in_its_component_s_work_folder_and_goes_on_with_the_next_nucleus(tmp_path: Path) -> None:
    async def scene() -> None:
        async with running(tmp_path, disk_spooler=True) as nucleus:
            assert nucleus.iotcore is not None
            nucleus.iotcore.online(False)
            await nucleus.iotcore.publish("t", b"x")
            assert (nucleus.layout.work("aws.greengrass.DiskSpooler") / "spooler.db").is_file()
        async with running(tmp_path, disk_spooler=True) as nucleus:
            core = nucleus.iotcore
            assert core is not None
            for _ in range(int(PATIENTLY / 0.01)):
                if not core.held:
                    break
                await asyncio.sleep(0.01)
            assert (core.held, core.counters.acknowledged) == (0, 1)

    asyncio.run(scene())
