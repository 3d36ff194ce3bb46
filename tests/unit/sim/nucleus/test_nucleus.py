"""The nucleus whole: components as real child processes, a real broker, the control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.deployments import Deployment
from lisiere_sim.nucleus.lifecycle import Patience
from lisiere_sim.nucleus.nucleus import Nucleus, Options

QUICK = Patience(install=5, startup=5, shutdown=2, recover=2, term=1, retry=0.01)


def write_recipe(folder: Path, name: str, version: str = "1.0.0", **parts: Any) -> Path:
    """Write a recipe with this lifecycle (`lifecycle`), defaults (`defaults`) and dependencies (`needs`)."""
    document = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": name,
        "ComponentVersion": version,
        "ComponentConfiguration": {"DefaultConfiguration": parts.get("defaults", {})},
        "ComponentDependencies": parts.get("needs", {}),
        "Manifests": [{"Platform": {"os": "linux", "runtime": "*"}, "Lifecycle": parts.get("lifecycle", {})}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}.yaml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    return file


def options(tmp_path: Path, **more: Any) -> Options:
    return Options(**{"root": tmp_path / "root", "patience": QUICK, "settle": 0.05, **more})


def test_a_component_runs_in_its_work_folder_with_what_greengrass_tells_it(tmp_path: Path) -> None:
    async def scene() -> None:
        nucleus = Nucleus(options(tmp_path))
        write_recipe(
            tmp_path / "r",
            "com.example.A",
            defaults={"greeting": "hello"},
            lifecycle={"run": 'echo "{configuration:/greeting} $AWS_IOT_THING_NAME $PWD" && exec sleep 600'},
        )
        await nucleus.start()
        try:
            outcome = await nucleus.administration.run(
                Deployment(components={"com.example.A": "1.0.0"}, recipes=str(tmp_path / "r"))
            )
            assert outcome.status == "SUCCEEDED"
            assert nucleus.status()["components"][0]["state"] == "RUNNING"
        finally:
            await nucleus.stop()
        log = (tmp_path / "root" / "logs" / "com.example.A.log").read_text()
        assert f"hello laptop {tmp_path}/root/work/com.example.A" in log

    asyncio.run(scene())


def test_a_component_that_breaks_while_the_deployment_looks_on_makes_it_fail(tmp_path: Path) -> None:
    async def scene() -> None:
        nucleus = Nucleus(options(tmp_path, settle=5.0))
        write_recipe(tmp_path / "r", "com.example.A", lifecycle={"run": "sleep 0.05; exit 2"})
        await nucleus.start()
        try:
            outcome = await nucleus.deployments.deploy(
                Deployment(components={"com.example.A": "1.0.0"}, recipes=str(tmp_path / "r"))
            )
            assert outcome.status == "FAILED"
            assert "ended with exit code 2" in outcome.why
        finally:
            await nucleus.stop()

    asyncio.run(scene())


def test_a_second_nucleus_in_the_same_root_is_refused(tmp_path: Path) -> None:
    async def scene() -> None:
        first, second = Nucleus(options(tmp_path)), Nucleus(options(tmp_path))
        await first.start()
        try:
            with pytest.raises(ConfigError, match="Another nucleus"):
                await second.start()
            assert first.status()["iot_core"]["connected"]
        finally:
            await first.stop()

    asyncio.run(scene())
