"""Deployments: replacing, going back, configuration, and what the next nucleus in a root brings back."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere_sim.nucleus.administration import Administration
from lisiere_sim.nucleus.components.deployments import ConfigurationUpdate, Deployment
from lisiere_sim.nucleus.components.processes import find_user
from lisiere_sim.nucleus.components.surroundings import Settings
from support.nuclei import PATIENTLY, A, B, Bench, bench, write_recipe

FOREVER = "exec sleep 600"
Scene = Callable[[Bench], Awaitable[None]]


def play(folder: Path, *scenes: Scene) -> None:
    """Play scenes in the same folder, each in a nucleus of its own."""

    async def whole(scene: Scene) -> None:
        async with bench(folder) as made:
            await scene(made)

    for scene in scenes:
        asyncio.run(whole(scene))


def test_a_new_version_replaces_the_old_one_and_keeps_folder_and_configuration(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        for version, word in (("1.0.0", "old"), ("1.1.0", "new")):
            write_recipe(
                made.recipes,
                A,
                version,
                defaults={"word": word, "set": "by default"},
                lifecycle={"install": f"echo {version} >> installs", "run": f"echo {word}; {FOREVER}"},
            )
        changes = {A: ConfigurationUpdate(merge={"set": "by deployment"})}
        assert (await made.deploy(configuration=changes)).status == "SUCCEEDED"
        old = made[A]
        assert (await made.deploy({A: "1.1.0"})).status == "SUCCEEDED"
        assert old.state == "FINISHED"
        assert made[A].recipe.version == "1.1.0"
        assert made.store.read(A) == {"word": "new", "set": "by deployment"}
        assert (made.layout.work(A) / "installs").read_text().split() == ["1.0.0", "1.1.0"]
        await made.deploy({A: "1.1.0"}, configuration={A: ConfigurationUpdate(reset=["/set"])})
        assert made.store.read(A) == {"word": "new", "set": "by default"}

    play(tmp_path, scene)


def test_a_version_that_breaks_gives_way_to_the_one_before_with_its_configuration(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, A, defaults={"a": 1}, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        await made.deploy({A: "1.0.0", B: "1.0.0"})
        other = made[B]
        write_recipe(made.recipes, A, "2.0.0", defaults={"b": 2}, lifecycle={"run": "exit 3"})
        write_recipe(made.recipes, "com.example.C", lifecycle={"run": FOREVER})
        outcome = await made.deploy(
            {A: "2.0.0", "com.example.C": "1.0.0"}, breaks=True, configuration={A: ConfigurationUpdate(merge={"a": 5})}
        )
        assert outcome.status == "ROLLED_BACK"
        assert "com.example.A 2.0.0 is BROKEN" in outcome.why
        assert "exit code 3" in outcome.why
        assert (made[A].recipe.version, made[A].state) == ("1.0.0", "RUNNING")
        assert made.store.read(A) == {"a": 1}
        assert made.deployments.roots == {A: "1.0.0", B: "1.0.0"}
        assert "com.example.C" not in made.store.components()
        assert made[B] is other
        assert other.restarts == 0

    async def later(made: Bench) -> None:
        await made.deployments.resume()
        assert made[A].recipe.version == "1.0.0"

    play(tmp_path, scene, later)


def test_without_rollback_the_broken_one_stays(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, A, lifecycle={"run": FOREVER})
        await made.deploy()
        write_recipe(made.recipes, A, "2.0.0", lifecycle={"run": "exit 3"})
        assert (await made.deploy({A: "2.0.0"}, breaks=True, go_back=False)).status == "FAILED"
        assert (made[A].recipe.version, made[A].state) == ("2.0.0", "BROKEN")

    play(tmp_path, scene)


def test_other_files_under_the_same_version_are_deployed_but_leave_no_way_back(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"install": "echo i", "run": f"echo one; {FOREVER}"})
        await made.deploy()
        before = made[A]
        await made.deploy()
        assert made[A] is before
        write_recipe(made.recipes, lifecycle={"install": "echo i", "run": f"echo two; {FOREVER}"})
        await made.deploy()
        await made.until_output("two")
        assert made.output().count("stdout: i") == 2
        write_recipe(made.recipes, lifecycle={"run": "exit 1"})
        outcome = await made.deploy(breaks=True)
        assert outcome.status == "FAILED"
        assert "There is no way back" in outcome.why

    play(tmp_path, scene)


def test_removal_stops_and_forgets(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, B, defaults={"x": 1}, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, needs={B: "*"}, lifecycle={"run": FOREVER})
        await made.deploy()
        gone = made[B]
        with pytest.raises(ConfigError, match="is not a root component"):
            await made.deploy({}, remove=[B])
        assert gone.ready
        assert (await made.deploy({}, remove=[A])).status == "SUCCEEDED"
        assert made.deployments.components == {}
        assert gone.state == "FINISHED"
        assert B not in made.store.components()

    play(tmp_path, scene)


def test_only_scripts_that_ask_for_changed_configuration_are_restarted(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, defaults={"x": 1}, lifecycle={"run": "echo x={configuration:/x}; " + FOREVER})
        write_recipe(made.recipes, B, defaults={"x": 1}, lifecycle={"run": FOREVER})
        await made.deploy({A: "1.0.0", B: "1.0.0"})
        listening = made[B]
        heard: list[tuple[str, ...]] = []
        made.store.watch(B, ("x",), heard.append)
        change = ConfigurationUpdate(merge={"x": 2})
        await made.deploy({}, configuration={A: change, B: change})
        await made.until_output("x=2")
        assert made[B] is listening
        assert heard == [("x",)]

    play(tmp_path, scene)


def test_what_cannot_work_is_refused_before_anything_changes(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": FOREVER})
        await made.deploy()
        running = made[A]
        write_recipe(made.recipes, A, "2.0.0", needs={B: "*"}, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, B, needs={A: "*"}, lifecycle={"run": FOREVER})
        with pytest.raises(ConfigError, match=f"circle: {A} -> {B} -> {A}"):
            await made.deploy({A: "2.0.0"})
        artifacts = [{"Uri": "s3://B/evil.zip", "Unarchive": "ZIP"}]
        write_recipe(made.recipes, A, "3.0.0", artifacts=artifacts, lifecycle={"run": FOREVER})
        folder = made.artifacts / A / "3.0.0"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
            archive.writestr("../../evil", "x")
        with pytest.raises(Rejected, match="which leads out of its folder"):
            await made.deploy({A: "3.0.0"})
        assert not list(tmp_path.rglob("evil"))
        with pytest.raises(ConfigError, match="is configured but not deployed"):
            await made.deploy({}, configuration={"com.example.Z": ConfigurationUpdate()})
        with pytest.raises(ConfigError, match="'x' is no JSON pointer"):
            await made.deploy({}, configuration={A: ConfigurationUpdate(reset=["x"])})
        assert made[A] is running
        assert (running.state, running.restarts) == ("RUNNING", 0)

    play(tmp_path, scene)


def test_running_components_are_asked_unless_the_deployment_says_otherwise(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": FOREVER})
        await made.deploy()
        await made.deploy()
        await made.deploy(notify=False)
        assert made.asked == [[], [A]]

    play(tmp_path, scene)


def test_the_next_nucleus_brings_back_what_was_deployed_without_installing_again(tmp_path: Path) -> None:
    async def first(made: Bench) -> None:
        steps = {"install": "echo installed", "run": "date +%s%N > started; echo {configuration:/x}; " + FOREVER}
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, defaults={"x": 1}, needs={B: "*"}, lifecycle=steps)
        await made.deploy(configuration={A: ConfigurationUpdate(merge={"x": 7})})

    async def second(made: Bench) -> None:
        for file in made.recipes.iterdir():
            file.unlink()
        await made.deployments.resume()
        await made.until(A, "RUNNING")
        await made.until_output("stdout: 7", times=2)
        assert made.deployments.roots == {A: "1.0.0"}
        assert made.output().count("stdout: installed") == 1

    play(tmp_path, first, second)


def test_a_deployment_that_the_nucleus_stopped_amid_goes_on_with_the_next(tmp_path: Path) -> None:
    async def first(made: Bench) -> None:
        write_recipe(made.recipes, defaults={"x": 1}, lifecycle={"install": FOREVER, "run": "echo {configuration:/x}"})
        deploying = asyncio.ensure_future(made.deploy(configuration={A: ConfigurationUpdate(merge={"x": 7})}))
        assert await made.around.board.until(lambda: A in made.deployments.components, PATIENTLY)
        assert not deploying.done()
        deploying.cancel()  # as the end of the nucleus' loop does
        await asyncio.gather(deploying, return_exceptions=True)

    async def second(made: Bench) -> None:
        await made.deployments.resume()
        assert made.deployments.roots == {A: "1.0.0"}
        assert made.store.read(A) == {"x": 7}

    play(tmp_path, first, second)


def test_a_disk_that_fills_amid_a_deployment_leads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Bench) -> None:
        for version in ("1.0.0", "2.0.0"):
            write_recipe(made.recipes, A, version, lifecycle={"run": FOREVER})
        await made.deploy()
        whole, full = made.store.defaults, iter([OSError(28, "No space left on device")])

        def defaults(*arguments: Any) -> None:
            for error in full:
                raise error
            whole(*arguments)

        monkeypatch.setattr(made.store, "defaults", defaults)
        outcome = await made.deploy({A: "2.0.0"})
        assert outcome.status == "ROLLED_BACK"
        assert "No space left" in outcome.why
        assert (made[A].recipe.version, made[A].state) == ("1.0.0", "RUNNING")

    play(tmp_path, scene)


def test_what_cannot_be_brought_back_is_said_with_a_way_out(tmp_path: Path) -> None:
    async def first(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": FOREVER})
        await made.deploy()

    async def second(made: Bench) -> None:
        (kept,) = made.layout.recipes.iterdir()
        kept.write_text(kept.read_text().replace("run:", "Run:"))
        with pytest.raises(ConfigError, match=r"cannot be brought back: .* Remove .*deployment\.json to go on"):
            await made.deployments.resume()

    play(tmp_path, first, second)


def test_root_is_refused_to_who_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": {"Script": "id", "RequiresPrivilege": True}})
        with pytest.raises(ConfigError, match="wants to be root here") as caught:
            await made.deploy()
        assert caught.value.path == "$.Manifests[0].Lifecycle.run.RequiresPrivilege"

    play(tmp_path, scene)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_scripts_run_as_the_component_user_unless_they_require_privilege() -> None:
    async def scene(folder: Path) -> None:
        made = Bench(folder, settings=Settings(user=find_user("nobody")))
        artifacts = [{"Uri": "s3://B/x.txt"}]
        (made.artifacts / A / "1.0.0").mkdir(parents=True)
        (made.artifacts / A / "1.0.0" / "x.txt").write_text("mine\n")
        write_recipe(
            made.recipes,
            artifacts=artifacts,
            lifecycle={
                "install": {"Script": "echo install as $(id -un)", "RequiresPrivilege": True},
                "run": "echo run as $(id -un) $(id -Gn); touch here; cat {artifacts:path}/x.txt; " + FOREVER,
            },
        )
        try:
            await made.deploy()
            await made.until_output("mine")
            assert made.output()[0] == "stdout: install as root"
            assert made.output()[1].startswith("stdout: run as nobody no")
            assert (made.layout.work(A) / "here").owner() == "nobody"
        finally:
            await made.deployments.stop()

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        asyncio.run(scene(Path(folder)))


def test_leftovers_of_a_killed_nucleus_are_ended_and_nobody_else(tmp_path: Path) -> None:
    """The nucleus is a process of its own here, so that it can be killed."""
    program = (
        "import asyncio, sys, pathlib\n"
        "from support.nuclei import A, Bench\n"
        "async def scene():\n"
        "    made = Bench(pathlib.Path(sys.argv[1]))\n"
        "    await made.deploy()\n"
        "    await made.until_output('daemon')\n"
        "    print('up', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(scene())\n"
    )
    script = "setsid sh -c 'echo $$ > daemon; echo daemon; exec sleep 600' & echo $$ > self; " + FOREVER
    write_recipe(tmp_path / "recipes", lifecycle={"run": script})
    with (
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as child,
        subprocess.Popen(["sleep", "600"]) as stranger,
    ):
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        work = tmp_path / "root" / "work" / A
        left = [psutil.Process(int((work / name).read_text())) for name in ("self", "daemon")]
        assert all(one.is_running() for one in left)
        # A stranger has got the number of a process that was recorded.
        record = tmp_path / "root" / "config" / "processes.json"
        known = json.loads(record.read_text())
        record.write_text(json.dumps([*known, {**known[0], "pid": stranger.pid, "started": 1, "token": "0" * 64}]))

        async def scene(made: Bench) -> None:
            await made.around.end_leftovers()
            assert not any(one.is_running() and one.status() != "zombie" for one in left)
            assert stranger.poll() is None
            assert not record.exists()

        play(tmp_path, scene)
        stranger.kill()


def test_a_folder_of_recipes_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        made.recipes = tmp_path / ("r" * 300)
        with pytest.raises(ConfigError, match="The recipes cannot be read: File name too long"):
            await made.deploy()

    play(tmp_path, scene)


def test_a_dependency_that_broke_or_was_refused_is_not_chosen_again(tmp_path: Path) -> None:
    other = "com.example.C"

    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, A, lifecycle={"run": FOREVER}, needs={B: "^1.0.0"})
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        await made.deploy()
        write_recipe(made.recipes, other, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, B, "1.1.0", lifecycle={"install": "exit 3", "run": FOREVER})
        assert (await made.deploy({other: "1.0.0"}, breaks=True)).status == "ROLLED_BACK"
        # Refused because of an artifact of the last one that would be copied.
        write_recipe(made.recipes, other, lifecycle={"run": FOREVER}, artifacts=[{"Uri": "s3://B/missing"}])
        with pytest.raises(ConfigError, match="missing"):
            await made.deploy({other: "1.0.0"})
        made.recipes = tmp_path / "of another"
        write_recipe(made.recipes, "com.example.D", lifecycle={"run": FOREVER})
        assert (await made.deploy({"com.example.D": "1.0.0"})).status == "SUCCEEDED"
        assert made[B].recipe.version == "1.0.0"

    async def later(made: Bench) -> None:
        await made.deployments.resume()
        assert made[B].recipe.version == "1.0.0"
        assert other not in made.deployments.components

    play(tmp_path, scene, later)


def test_a_component_that_removes_its_artifact_does_not_keep_the_others_from_coming_back(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, artifacts=[{"Uri": "s3://B/x.sh"}], lifecycle={"run": "sh {artifacts:path}/x.sh"})
        (made.artifacts / A / "1.0.0").mkdir(parents=True)
        (made.artifacts / A / "1.0.0" / "x.sh").write_text(FOREVER)
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        assert (await made.deploy({A: "1.0.0", B: "1.0.0"})).status == "SUCCEEDED"
        (made.layout.artifacts(A, "1.0.0") / "x.sh").unlink()

    async def later(made: Bench) -> None:
        await made.deployments.resume()
        await made.until(A, "BROKEN")
        assert made[B].state == "RUNNING"

    play(tmp_path, scene, later)


def test_configuration_that_a_deployment_cannot_set_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": FOREVER}, defaults={"a": {"b": 1}})
        await made.deploy()
        made.store.merge(A, ("a",), {"b": 2}, time.time() + 3600)
        await made.deploy(configuration={A: ConfigurationUpdate(merge={"a": {"b": 3}})})
        assert "com.example.A: /a/b stays as it is" in caplog.text
        await made.deploy(configuration={A: ConfigurationUpdate(reset=["/a/b"], merge={"a": {"b": 3}})})
        assert made.store.read(A) == {"a": {"b": 3}}

    play(tmp_path, scene)


def test_a_deployment_that_the_disk_does_not_take_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": FOREVER})
        await made.deploy()
        write_recipe(made.recipes, A, "2.0.0", lifecycle={"run": FOREVER})
        administration = Administration(made.deployments, made.store)

        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(made.store, "save", full)
        with pytest.raises(Permanent, match="No space left on device"):
            await administration.run(Deployment(components={A: "2.0.0"}, recipes=str(made.recipes)))
        (told,) = administration.deployments()
        assert told.status == "FAILED"
        assert "No space left on device" in told.cause

    play(tmp_path, scene)


def test_what_the_disk_has_garbled_is_set_aside(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"install": "echo i", "run": FOREVER})
        await made.deploy()

    async def later(made: Bench) -> None:
        files = [made.layout.config / name for name in ("deployment.json", "installed.json", "processes.json")]
        for file in (*files, made.layout.artifacts(A, "1.0.0").parent / ".1.0.0.sha256"):
            assert file.exists()
            file.write_bytes(b'{"roots": "\xff"}')
        await made.around.end_leftovers()
        await made.deployments.resume()
        assert (await made.deploy()).status == "SUCCEEDED"
        assert {file.stem for file in made.layout.config.glob("*.damaged")} == {file.name for file in files}

    play(tmp_path, scene, later)
