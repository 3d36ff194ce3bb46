"""`lisiere nucleus` as its users meet it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lisiere.cli import main
from lisiere.errors import ConfigError, Permanent
from lisiere_sim.nucleus.components.processes import User
from lisiere_sim.nucleus.components.recipe import read_recipe
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.console import registry
from lisiere_sim.nucleus.console.service import (
    Identity,
    closed_to,
    environment,
    kept_identity,
    read_updates,
    roots_of,
    told,
    versions,
)
from lisiere_sim.nucleus.flavour import CLASSIC
from support.nuclei import A, B, write_recipe

FOREVER = "exec sleep 600"
LIMIT_S = 20.0


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The list of running nuclei is this test's own, and so is logging, which `main` sets up."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a nucleus and wait until its component runs."""
    command = [sys.executable, "-m", "lisiere", "nucleus", "run", "--root", str(folder / "root"), *arguments]
    with (folder / "nucleus.log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    until = time.monotonic() + LIMIT_S
    while f"{A} 1.0.0: STARTING -> RUNNING" not in (folder / "nucleus.log").read_text():
        assert child.poll() is None, (folder / "nucleus.log").read_text()
        assert time.monotonic() < until, (folder / "nucleus.log").read_text()
        time.sleep(0.02)
    return child


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["nucleus", *arguments]) == code
    out = capsys.readouterr()
    return out.out + out.err


def test_a_whole_day_of_a_nucleus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "echo hello {configuration:/name}; echo $$ > pid; " + FOREVER
    write_recipe(tmp_path / "r", defaults={"name": "world"}, lifecycle={"install": "echo installed", "run": script})
    me = psutil.Process().username()
    first = start(tmp_path, "--settle", "0.2", "--recipe", str(tmp_path / "r"), "--component-user", me)
    try:
        table = said(capsys, "status")
        assert f"root    {tmp_path}/root" in table
        assert "IoT Core connected: 0 published" in table
        assert [line.split()[:3] for line in table.splitlines()[-2:]] == [
            ["component", "version", "state"],
            [A, "1.0.0", "RUNNING"],
        ]
        assert json.loads(said(capsys, "status", "--json"))["components"][0]["restarts"] == 0
        assert "stdout: hello world" in said(capsys, "logs", A)
        assert f"{A} 1.0.0: STARTING -> RUNNING" in said(capsys, "logs")
        assert f"There is no log of {B} yet; there are: {A}" in said(capsys, "logs", B, code=2)
        said(capsys, "offline")
        assert "IoT Core offline, as it was told" in said(capsys, "status")
        said(capsys, "online")
        (tmp_path / "update.yaml").write_text(f"{A}: {{MERGE: {{name: moon}}}}")
        assert said(capsys, "deploy", "--json", "--configuration", str(tmp_path / "update.yaml")).startswith("{")
        assert "stdout: hello moon" in said(capsys, "logs", "-n", "1", A)
        assert said(capsys, "logs", "-n", "0", A) == ""
        write_recipe(tmp_path / "r", B, lifecycle={"run": "echo no; exit 9"})
        asked = ["deploy", f"{B}=1.0.0", "--recipe", str(tmp_path / "r")]
        text = said(capsys, *asked, code=1)
        assert text.startswith("ROLLED_BACK: com.example.B 1.0.0 is BROKEN")
        assert f"INFO {B} 1.0.0: STARTING -> RUNNING" in text
        assert " Deployment " not in text
        assert f"COMPONENT: {B} is not deployed here; deployed are: {A}." in said(capsys, "restart", B, code=2)
        assert "Say what to deploy" in said(capsys, *asked[0::2], str(tmp_path / "r"), code=2)
        assert "There is no recipe of com.example.C 1.0.0" in said(capsys, "deploy", "com.example.C=1.0.0", code=2)
        # Killed, it takes its component with it; the next one brings it back.
        pid = int((tmp_path / "root" / "work" / A / "pid").read_text())
        first.send_signal(signal.SIGKILL)
        first.wait(LIMIT_S)
        until = time.monotonic() + LIMIT_S
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie":
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        first.kill()
        first.wait()
    (tmp_path / "nucleus.log").unlink()
    second = start(tmp_path, "--component-user", me)
    try:
        output = said(capsys, "logs", A)
        assert output.count("hello moon") == 2
        assert output.count("installed") == 1
        said(capsys, "stop", A)
        assert "It was stopped." in said(capsys, "status")
        said(capsys, "restart", A)
        said(capsys, "stop")
        assert second.wait(LIMIT_S) == 0
    finally:
        second.kill()
        second.wait()
    assert "No nucleus of yours runs" in said(capsys, "status", code=2)
    assert not (tmp_path / "root" / "ipc.socket").exists()


def test_a_log_is_followed_into_the_next_file(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / f"{A}.log"
    log.write_text("one\ntwo\n")
    command = [sys.executable, "-m", "lisiere", "nucleus", "logs", "-f", "-n", "1", "--root", str(tmp_path), A]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "two\n"
        with log.open("a") as stream:
            stream.write("three\n")
        assert child.stdout.readline() == "three\n"
        with log.open("a") as stream:
            stream.write("four\n")
        log.rename(f"{log}.1")
        log.write_text("five\n")
        assert [child.stdout.readline(), child.stdout.readline()] == ["four\n", "five\n"]
        child.send_signal(signal.SIGINT)
        assert child.wait(LIMIT_S) == 0


def test_a_recipe_that_is_wrong_ends_the_run_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_recipe(tmp_path / "r", lifecycle={"Run": "x"})
    text = said(capsys, "run", "--recipe", str(file), "--root", str(tmp_path / "root"), "--env", "A=1", code=2)
    assert "$.Manifests[0].Lifecycle.Run: There is no such key; did you mean `run`?" in text
    assert "The lite nucleus has no spooler." in said(capsys, "run", "--flavour", "lite", "--disk-spooler", code=2)
    text = said(capsys, "run", "--deploy", f"{A}=1.0.0", "--root", str(tmp_path / "root"), code=2)
    assert "give --recipe" in text
    nowhere = said(capsys, "status", "--root", str(tmp_path / "nowhere"), code=1)
    assert "No nucleus runs there: nothing answers at" in nowhere


@pytest.mark.parametrize("command", ["", "run", "deploy", "logs", "status", "stop", "restart", "offline", "log-ipc"])
def test_help_teaches(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nucleus", *([command] if command else []), "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--root" in text or "lisiere nucleus status" in text
    if command in ("", "run", "deploy", "logs"):
        assert text.count("  lisiere nucleus") >= 3


def test_roots_are_what_nobody_needs_in_the_highest_version(tmp_path: Path) -> None:
    files = [
        write_recipe(tmp_path, A, "1.9.0", needs={B: "*"}, lifecycle={"run": "x"}),
        write_recipe(tmp_path, A, "1.10.0", needs={B: "*"}, lifecycle={"run": "x"}),
        write_recipe(tmp_path, B, lifecycle={"run": "x"}),
    ]
    assert roots_of([read_recipe(file, CLASSIC) for file in files]) == {A: "1.10.0"}


def test_a_second_signal_does_not_wait_for_components(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)

    async def scene() -> None:
        stop = asyncio.Event()
        times: list[float] = []
        told(stop, times)
        told(stop, times)  # the same Ctrl-C, passed on by whoever started the nucleus
        assert stop.is_set()
        assert left == []
        times[0] -= 1
        told(stop, times)
        assert left == [1]

    asyncio.run(scene())


def test_a_root_stays_what_it_was_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    nothing = argparse.Namespace(flavour=None, thing=None, region=None)
    assert kept_identity(tmp_path, nothing) == Identity("classic", "laptop", "us-east-1")
    (tmp_path / "config" / "nucleus.json").write_text('{"flavour": "lite", "thing": "a", "region": "eu-west-1"}')
    assert kept_identity(tmp_path, nothing) == Identity("lite", "a", "eu-west-1")
    (tmp_path / "file").touch()
    with pytest.raises(Permanent, match="cannot be read: Not a directory"):
        kept_identity(tmp_path / "file", nothing)
    told_otherwise = argparse.Namespace(flavour="classic", thing="b", region=None)
    assert kept_identity(tmp_path, told_otherwise) == Identity("classic", "b", "eu-west-1")


def test_a_root_behind_a_closed_door_is_noticed(tmp_path: Path) -> None:
    stranger = User("stranger", 54321, 54321, "/")
    root = tmp_path / "closed" / "root"
    root.mkdir(parents=True)
    for folder in (tmp_path, root.parent, root):
        folder.chmod(0o755)
    outside = closed_to(tmp_path, stranger)  # pytest's own folders may be closed
    root.parent.chmod(0o750)
    assert closed_to(root, stranger) == (outside or root.parent)
    assert closed_to(root, User("root", 0, 0, "/")) is None


def test_arguments_that_are_wrong_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNOWN", "yes")
    assert environment(["KNOWN", "A=b=c", "EMPTY="]) == {"KNOWN": "yes", "A": "b=c", "EMPTY": ""}
    monkeypatch.delenv("KNOWN")
    with pytest.raises(ConfigError, match="no variable 'KNOWN'"):
        environment(["KNOWN"])
    assert versions([f"{A}=1.0.0"]) == {A: "1.0.0"}
    with pytest.raises(ConfigError, match="not of the form NAME=VERSION"):
        versions([A])
    file = tmp_path / "update.yaml"
    for text, path in (("[]", "--configuration"), (f"{A}: {{Merge: {{}}}}", f"$[{A}]"), (f"{A}: {{reset: /x}}", "")):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_updates(file)
        assert caught.value.path.startswith(path)


def test_the_only_nucleus_that_runs_is_found_and_one_of_two_is_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No nucleus of yours runs"):
        registry.find_root(None)
    with registry.entry(tmp_path / "one"):
        assert registry.find_root(None) == tmp_path / "one"
        with subprocess.Popen(["sleep", "600"]) as other:
            place = next((tmp_path / "run").iterdir()) / str(other.pid)
            place.write_text(str(tmp_path / "two"))
            with pytest.raises(ConfigError, match="2 nuclei run; say which"):
                registry.find_root(None)
            assert registry.find_root(tmp_path / "two") == tmp_path / "two"
            other.kill()
        assert registry.find_root(None) == tmp_path / "one"


def test_a_folder_of_another_s_making_gets_no_entry(tmp_path: Path) -> None:
    with registry.entry(tmp_path):
        folder = next((tmp_path / "run").iterdir())
    folder.rmdir()
    (tmp_path / "theirs").mkdir()
    folder.symlink_to(tmp_path / "theirs")
    with registry.entry(tmp_path / "one"):
        assert list((tmp_path / "theirs").iterdir()) == []
        with pytest.raises(ConfigError, match="No nucleus of yours runs"):
            registry.find_root(None)


def test_numbers_as_names_in_a_configuration_file_are_text_and_outlive_the_nucleus(tmp_path: Path) -> None:
    file = tmp_path / "configuration.yaml"
    file.write_text(f"{A}: {{merge: {{cameras: {{1: {{rate: 5}}}}}}}}")
    kept = ConfigurationStore(tmp_path / "kept.json")
    kept.merge(A, (), read_updates(file)[A].merge, 1.0)
    later = ConfigurationStore(tmp_path / "kept.json")
    assert later.load() == ""
    assert later.read(A) == {"cameras": {"1": {"rate": 5}}}
    file.write_text(f"{A}: {{merge: {{rate: .nan}}}}")
    with pytest.raises(ConfigError, match="must hold what JSON can hold"):
        read_updates(file)
