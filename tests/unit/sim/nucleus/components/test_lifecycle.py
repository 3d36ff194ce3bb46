"""One component and another: states, restarts, timeouts and stopping, with real child processes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lisiere_sim.nucleus.components.lifecycle import Patience
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from lisiere_sim.nucleus.logs import LogFile
from support.nuclei import PATIENTLY, QUICK, A, B, Bench, bench, write_recipe

FOREVER = "exec sleep 600"
Scene = Callable[[Bench], Awaitable[None]]


def play(folder: Path, scene: Scene, flavour: Flavour = CLASSIC, patience: Patience = QUICK) -> None:
    async def whole() -> None:
        async with bench(folder, flavour, patience) as made:
            await scene(made)

    asyncio.run(whole())


def test_environment_and_working_directory_are_greengrasss(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        script = 'env | sort; echo "in $PWD"'
        write_recipe(made.recipes, lifecycle={"Setenv": {"MINE": "{iot:thingName}!"}, "run": script})
        await made.deploy()
        await made.until(A, "FINISHED")
        said = dict(line.removeprefix("stdout: ").partition("=")[::2] for line in made.output())
        work = str(made.layout.work(A))
        assert f"in {work}" in said
        assert said["AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"] == str(made.layout.socket)
        assert said["AWS_IOT_THING_NAME"] == "laptop"
        assert said["AWS_REGION"] == said["AWS_DEFAULT_REGION"] == "us-east-1"
        assert said["GGC_VERSION"] == CLASSIC.version
        assert said["GG_ROOT_CA_PATH"].startswith(str(made.layout.root))
        assert said["MINE"] == "laptop!"
        assert said["PATH"] == os.environ["PATH"]
        assert len(said["SVCUID"]) >= 16
        assert said["AWS_CONTAINER_AUTHORIZATION_TOKEN"] == said["SVCUID"]

    play(tmp_path, scene)


def test_secrets_of_the_shell_do_not_reach_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the shell")

    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "env"})
        await made.deploy()
        await made.until(A, "FINISHED")
        assert not any("of the shell" in line for line in made.output())

    play(tmp_path, scene)


def test_three_errors_are_one_too_many(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "echo try; exit 7"})
        outcome = await made.deploy(breaks=True)
        assert outcome.status == "FAILED"
        assert "exit code 7" in outcome.why
        assert made[A].state == "BROKEN"
        assert made[A].restarts == 2
        assert made.output() == ["stdout: try"] * 3
        await made.deploy()  # deployed again, it gets its chances again
        assert made.output() == ["stdout: try"] * 6

    play(tmp_path, scene)


def test_errors_that_lie_far_apart_do_not_add_up(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        script = 'echo x >> tries; if [ "$(wc -l < tries)" -lt 5 ]; then exit 1; fi; exec sleep 600'
        write_recipe(made.recipes, lifecycle={"run": script})
        outcome = await made.deploy()
        assert outcome.status == "SUCCEEDED"
        assert made[A].restarts == 4

    play(tmp_path, scene, patience=replace(QUICK, within=0.005))


def test_recover_runs_before_the_next_try_on_classic_alone(tmp_path: Path) -> None:
    for flavour in (CLASSIC, LITE):

        async def scene(made: Bench, flavour: Flavour = flavour) -> None:
            write_recipe(
                made.recipes,
                lifecycle={"run": f"test -e mended && {FOREVER}; touch mended; exit 1", "recover": "echo recovering"},
            )
            await made.deploy()
            assert made[A].state == "RUNNING"
            assert ("stdout: recovering" in made.output()) == flavour.runs_shutdown

        (tmp_path / flavour.name).mkdir()
        play(tmp_path / flavour.name, scene, flavour)


def test_a_run_that_ends_well_is_finished(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "sleep 600 & echo $! > child", "shutdown": "echo down"})
        await made.deploy()
        await made.until(A, "FINISHED")
        assert made[A].restarts == 0
        assert made.output()[-1] == "stdout: down"
        child = int((made.layout.work(A) / "child").read_text())
        assert not _lives(child)
        assert A in made.released

    play(tmp_path, scene)


def test_an_install_that_hangs_is_ended_and_counted(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"install": {"Script": "sleep 600", "Timeout": 0.05}, "run": FOREVER})
        outcome = await made.deploy()
        assert "`install` did not end within 0.05 s" in outcome.why
        assert made[A].state == "BROKEN"

    play(tmp_path, scene)


def test_a_run_with_a_timeout_is_ended(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": {"Script": FOREVER, "Timeout": 0.05}})
        await made.deploy()
        assert "`run` did not end within 0.05 s" in (await made.until(A, "BROKEN")).why

    play(tmp_path, scene)


def test_a_startup_script_that_ends_well_leaves_the_component_running(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        script = "sleep 600 & echo $! > child"
        write_recipe(made.recipes, lifecycle={"startup": script, "shutdown": "echo down"})
        assert (await made.deploy()).status == "SUCCEEDED"
        child = int((made.layout.work(A) / "child").read_text())
        assert _lives(child)
        await made[A].stop()
        assert not _lives(child)
        assert made.output() == ["stdout: down"]

    play(tmp_path, scene)


def test_a_startup_script_may_stay_and_report(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"startup": "echo here; " + FOREVER})
        deploying = asyncio.create_task(made.deploy())
        await made.until_output("here")
        assert made[A].state == "STARTING"
        made[A].report("RUNNING")
        assert (await deploying).status == "SUCCEEDED"
        made[A].report("ERRORED", "the camera is gone")
        await made.until_output("here", times=2)
        await made.until(A, "STARTING")
        assert made[A].restarts == 1

    play(tmp_path, scene)


def test_a_startup_that_neither_ends_nor_reports_fails(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"startup": FOREVER})
        outcome = await made.deploy()
        assert "neither ended nor reported RUNNING within 0.05 s" in outcome.why

    play(tmp_path, scene, patience=replace(QUICK, startup=0.05))


def test_skipif_is_heeded_by_classic_alone(tmp_path: Path) -> None:
    for flavour, installed in ((CLASSIC, False), (LITE, True)):

        async def scene(made: Bench, installed: bool = installed) -> None:
            step = {"Script": "echo installing", "Skipif": "onpath sh"}
            write_recipe(made.recipes, lifecycle={"install": step, "run": "echo running"})
            await made.deploy()
            await made.until(A, "FINISHED")
            assert ("stdout: installing" in made.output()) == installed

        (tmp_path / flavour.name).mkdir()
        play(tmp_path / flavour.name, scene, flavour)


def test_an_install_only_component_never_finishes_on_lite(tmp_path: Path) -> None:
    for flavour, states in ((CLASSIC, ("FINISHED", "RUNNING")), (LITE, ("INSTALLED", "INSTALLED"))):

        async def scene(made: Bench, states: tuple[str, str] = states) -> None:
            write_recipe(made.recipes, B, lifecycle={"install": "echo once"})
            write_recipe(made.recipes, needs={B: "^1.0.0"}, lifecycle={"run": FOREVER})
            await made.deploy()
            assert (made[B].state, made[A].state) == states
            assert made[A].state == "RUNNING" or f"waits for {B}" in made[A].why

        (tmp_path / flavour.name).mkdir()
        play(tmp_path / flavour.name, scene, flavour)


def test_hard_dependents_go_and_come_with_what_they_need(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        write_recipe(made.recipes, needs={B: "^1.0.0"}, lifecycle={"run": "echo up; " + FOREVER})
        write_recipe(made.recipes, "com.example.Soft", needs={B: "^1.0.0 SOFT"}, lifecycle={"run": FOREVER})
        await made.deploy({A: "1.0.0", "com.example.Soft": "1.0.0"})
        await made[B].stop()
        waiting = await made.until(A, "INSTALLED")
        assert f"waits for {B}" in waiting.why
        assert made["com.example.Soft"].state == "RUNNING"
        made[B].start()
        await made.until(A, "RUNNING")
        assert made[A].restarts == 0  # that was no error of its own
        await made.until_output("up", times=2)

    play(tmp_path, scene)


def test_who_waits_for_a_broken_one_hears_of_its_successor(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, B, lifecycle={"run": "exit 1"})
        write_recipe(made.recipes, needs={B: "*"}, lifecycle={"run": FOREVER})
        assert (await made.deploy(breaks=True)).status == "FAILED"
        waiting = await made.until(A, "INSTALLED")
        assert f"waits for {B}, which is BROKEN" in waiting.why
        write_recipe(made.recipes, B, "1.0.1", lifecycle={"run": FOREVER})
        assert (await made.deploy()).status == "SUCCEEDED"
        assert made[A] is waiting
        await made.until(A, "RUNNING")

    play(tmp_path, scene)


def test_a_deployment_does_not_wait_for_what_was_stopped_meanwhile(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, B, lifecycle={"startup": "echo here; " + FOREVER})
        write_recipe(made.recipes, needs={B: "*"}, lifecycle={"run": FOREVER})
        deploying = asyncio.create_task(made.deploy())
        await made.until_output("here", B)
        await made[B].stop()
        assert (await deploying).status == "SUCCEEDED"
        assert made[A].state == "INSTALLED"

    play(tmp_path, scene)


def test_a_component_that_forks_and_ignores_sigterm_leaves_nothing_behind(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        daemon = "setsid sh -c 'trap \"\" TERM; echo $$ > daemon; while :; do sleep 1; done' &"
        child = "sh -c 'trap \"\" TERM; echo $$ > child; while :; do sleep 1; done' &"
        script = f"trap '' TERM; {daemon} {child} echo $$ > self; while :; do sleep 1; done"
        write_recipe(made.recipes, lifecycle={"run": script})
        write_recipe(made.recipes, B, lifecycle={"run": FOREVER})
        await made.deploy({A: "1.0.0", B: "1.0.0"})
        work = made.layout.work(A)
        pids = [int(await _content(work / name)) for name in ("daemon", "child", "self")]
        other = made[B]
        assert all(map(_lives, pids))
        await made[A].stop()
        assert not any(map(_lives, pids))
        assert other.state == "RUNNING"
        assert other.restarts == 0

    play(tmp_path, scene, patience=replace(QUICK, term=0.2))


def test_a_component_that_writes_without_end_fills_nothing_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LogFile.__init__, "__defaults__", (200_000,))

    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "exec yes 'all work and no play'"})
        write_recipe(made.recipes, B, lifecycle={"run": "while :; do echo tick; sleep 0.02; done"})
        await made.deploy({A: "1.0.0", B: "1.0.0"})
        log = made.layout.component_log(A)
        full = log.with_name(f"{log.name}.1")
        for _ in range(500):
            if full.exists():
                break
            await asyncio.sleep(0.01)
        await made.until_output("tick", B, times=len(made.output(B)) + 3)
        assert made[A].state == "RUNNING"
        assert full.stat().st_size < 400_000
        assert {file.name for file in made.layout.logs.glob("*A*")} == {log.name, full.name}
        await asyncio.wait_for(made[A].stop(), PATIENTLY)

    play(tmp_path, scene)


def test_a_line_without_end_is_cut_and_one_without_newline_is_kept(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "head -c 100000 /dev/zero | tr '\\0' x; printf '\\nlast' >&2"})
        await made.deploy()
        await made.until(A, "FINISHED")
        lines = made.output()
        assert "stderr: last" in lines
        assert max(map(len, lines)) < 20_000

    play(tmp_path, scene)


def test_a_full_disk_costs_lines_which_are_counted(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log")
    stream, log._stream = log._stream, open("/dev/full", "ab", buffering=0)  # noqa: SIM115, PTH123
    log.write("stdout", [b"one", b"two"])
    log._stream.close()
    log._stream = stream
    log.write("stdout", [b"three"])
    log.write("stdout", [b"four"])
    log.close()
    lines = [line.partition(" ")[2] for line in (tmp_path / "a.log").read_text().splitlines()]
    assert lines == [
        "nucleus: 2 lines before this one were lost: No space left on device",
        "stdout: three",
        "stdout: four",
    ]


def test_what_cannot_be_started_breaks_with_a_sentence(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": "echo {configuration:/absent}"})
        outcome = await made.deploy()
        assert "{configuration:/absent}: com.example.A has no such configuration" in outcome.why

    play(tmp_path, scene)


async def _content(file: Path) -> str:
    for _ in range(500):
        if file.exists() and file.read_text():
            return file.read_text()
        await asyncio.sleep(0.01)
    raise AssertionError(f"{file} was not written")


def _lives(pid: int) -> bool:
    try:
        return str(psutil.Process(pid).status()) != "zombie"
    except psutil.NoSuchProcess:
        return False


def test_what_no_script_can_hold_is_the_component_s_error_and_not_the_nucleus_s(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, defaults={"x": "a\0b"}, lifecycle={"run": "echo {configuration:/x}"})
        write_recipe(made.recipes, B, lifecycle={"Setenv": {"A=B": "x"}, "run": "echo"})
        outcome = await made.deploy({A: "1.0.0", B: "1.0.0"})
        assert "`run` cannot be started: embedded null byte." in outcome.why
        await made.until(B, "BROKEN")
        assert "`run` cannot be started: illegal environment variable name." in made[B].why

    play(tmp_path, scene)


def test_a_component_that_reports_errored_and_takes_it_back_is_started_again(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        write_recipe(made.recipes, lifecycle={"run": f"echo up; {FOREVER}"})
        await made.deploy()
        made[A].report("ERRORED")
        made[A].report("RUNNING")
        await made.until_output("up", times=2)
        await made.until(A, "RUNNING")
        assert made[A].restarts == 1

    play(tmp_path, scene)


def test_a_log_whose_folder_was_taken_away_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "logs.d").mkdir()
    log = LogFile(tmp_path / "logs.d" / "a.log", size=100)
    shutil.rmtree(tmp_path / "logs.d")
    log.write("stdout", [b"x" * 100])
    log.write("stdout", [b"after"])
    log.close()
    assert "after" in (tmp_path / "logs.d" / "a.log").read_text()


def test_no_recipe_sets_the_token_by_which_its_processes_are_known(tmp_path: Path) -> None:
    async def scene(made: Bench) -> None:
        for name in (A, B):
            write_recipe(
                made.recipes, name, lifecycle={"Setenv": {"SVCUID": "same"}, "run": f"echo $SVCUID; {FOREVER}"}
            )
        await made.deploy({A: "1.0.0", B: "1.0.0"})
        await made.until_output("stdout", B)
        await made[A].stop()
        assert (made[B].state, made[B].restarts) == ("RUNNING", 0)
        assert made.output(B) != ["stdout: same"]

    play(tmp_path, scene)
