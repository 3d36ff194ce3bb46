"""Components that know nothing of Lisière run in the nucleus as they are: the example of docs/examples."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

from lisiere_sim.broker import EmbeddedBroker
from lisiere_sim.nucleus.cloud.iotcore import IotCore
from lisiere_sim.nucleus.components.deployments import ConfigurationUpdate, Deployment
from lisiere_sim.nucleus.components.surroundings import Settings
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.nucleus.nucleus import Nucleus, Options
from support import REPOSITORY, require

EXAMPLE = REPOSITORY / "docs" / "examples" / "greetings"


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=lambda flavour: str(flavour.name))
def test_two_components_of_somebody_else_talk_to_each_other_and_to_iot_core(tmp_path: Path, flavour: Flavour) -> None:
    require(importlib.util.find_spec("awsiot"), "awsiotsdk")
    broker = EmbeddedBroker()
    host, port = broker.start()
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    heard: list[tuple[str, bytes]] = []

    async def scene() -> None:
        nucleus = Nucleus(
            Options(tmp_path, flavour, f"{host}:{port}", Settings("thing-1", environment={"PATH": python}), settle=0.05)
        )
        cloud = IotCore((host, port), "cloud", CLASSIC)
        await nucleus.start()
        try:
            await cloud.start()
            await cloud.subscribe("heard/#", lambda *message: heard.append(message))
            outcome = await nucleus.deployments.deploy(
                Deployment(
                    components={"com.example.Greeter": "1.0.0"},
                    recipes=str(EXAMPLE / "recipes"),
                    artifacts=str(EXAMPLE / "artifacts"),
                    configuration={
                        "com.example.Greeter": ConfigurationUpdate(merge={"greeting": "bonjour", "interval_s": 0.05})
                    },
                )
            )
            assert outcome.status == "SUCCEEDED", outcome.why
            end = time.monotonic() + 20
            while len(heard) < 3 and time.monotonic() < end:
                await asyncio.sleep(0.01)
        finally:
            await cloud.stop(0)
            await nucleus.stop()

    try:
        asyncio.run(scene())
    finally:
        broker.stop()
    assert [topic for topic, _ in heard[:3]] == ["heard/thing-1"] * 3
    assert heard[0][1].startswith(b"bonjour ")
    log = (tmp_path / "logs" / "com.example.Listener.log").read_text()
    assert "heard bonjour" in log
    assert "Traceback" not in log
