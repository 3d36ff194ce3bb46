"""What installs the components: whole or not at all, recognised when it is there, and clear about what is missing.

The interpreter is a script here that notes what it is asked to do; tests/e2e/test_component.py has the real one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import REPOSITORY

INSTALL = REPOSITORY / "components" / "io.lisiere.EdgeInference" / "install.sh"
INSTALL_MODEL = REPOSITORY / "components" / "install-model.sh"
TOOLS = ("cat", "cp", "cut", "df", "dirname", "ln", "mkdir", "mv", "readlink", "rm", "sh", "sync")
# What the scripts ask of an interpreter. Its environments' interpreters are copies of it, as links would be.
PYTHON = """#!/bin/sh
echo "$*" >>"$PYTHON_LOG"
case "$*" in
*version_info\\ \\<*) [ -z "$PYTHON_IS_OLD" ] ;;
*platform.machine*) echo "3.11 x86_64" ;;
--version) echo "Python ${PYTHON_IS_OLD:-3.11.2}" ;;
*ensurepip*) [ -z "$PYTHON_HAS_NO_VENV" ] ;;
*os.replace*) exec "$REAL_PYTHON" "$@" ;;
"-m venv "*)
  for folder in "$@"; do :; done
  mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python"
  ;;
*"-m pip install"*)
  if [ -n "$PIP_WAITS" ]; then echo waiting; exec "$REAL_PYTHON" -c "import time; time.sleep(60)"; fi
  [ -z "$PIP_FAILS" ]
  ;;
*"import lisiere"*) ;;
*) exit 1 ;;
esac
"""


class Place:
    """A device: tools on its PATH, artifacts, a work folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin, self.work, self.log = folder / "bin", folder / "work", folder / "python.log"
        self.bin.mkdir()
        self.work.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.program("python3", PYTHON)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def artifact(self, digest: str, wheels: bool = False) -> Path:
        folder = self.folder / f"artifact-{digest[:4]}"
        for architecture in ("amd64", "arm"):
            (folder / "sample" / architecture).mkdir(parents=True)
            (folder / "sample" / architecture / "manifest.yaml").write_text(f"{architecture} {digest}")
        (folder / "sample" / "images").mkdir()
        (folder / "sample" / "images" / "7.jpg").write_text("7")
        (folder / "lisiere-1.0-py3-none-any.whl").write_text("")
        (folder / "requirements.txt").write_text("")
        (folder / "digest").write_text(digest + "\n")
        shutil.copy(INSTALL, folder / "install.sh")
        if wheels:
            (folder / "wheels").mkdir()
        return folder

    def environment(self, **environ: str) -> dict[str, str]:
        own = {"PATH": str(self.bin), "PYTHON_LOG": str(self.log), "REAL_PYTHON": sys.executable}
        return own | {"PYTHON_IS_OLD": "", "PYTHON_HAS_NO_VENV": "", "PIP_WAITS": "", "PIP_FAILS": ""} | environ

    def install(
        self, artifact: Path, architecture: str = "amd64", /, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        self.log.unlink(missing_ok=True)
        # Nucleus lite's work path ends with a slash.
        command = ["sh", str(artifact / "install.sh"), f"{self.work}/", architecture]
        return subprocess.run(
            command, env=self.environment(**environ), capture_output=True, text=True, check=False, timeout=30
        )

    def pip(self) -> list[str]:
        """What pip was asked to install, a line a call."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("-m pip")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


OLD, NEW, NEWER = "a" * 64, "b" * 64, "c" * 64


def test_it_makes_an_environment_and_points_to_it_last(place: Place) -> None:
    done = place.install(place.artifact(NEW))
    assert done.returncode == 0, done.stderr
    assert (place.work / "venv").readlink() == Path(f"env-{NEW[:16]}")
    assert (place.work / "venv" / "complete").read_text() == f"{NEW} 3.11 x86_64\n"
    assert (place.work / "venv" / "sample" / "model" / "manifest.yaml").read_text().startswith("amd64")
    assert (place.work / "venv" / "sample" / "images" / "7.jpg").is_file()
    packages, wheel = place.pip()
    assert "--require-hashes -r" in packages
    assert "--no-index" not in packages
    assert "--no-index --no-deps" in wheel


def test_what_is_there_is_recognised_and_nothing_is_fetched(place: Place) -> None:
    artifact = place.artifact(NEW)
    place.install(artifact)
    again = place.install(artifact)
    assert again.returncode == 0, again.stderr
    assert "already" in again.stdout
    assert place.pip() == []


def test_packages_in_the_artifact_need_no_index(place: Place) -> None:
    artifact = place.artifact(NEW, wheels=True)
    assert place.install(artifact).returncode == 0
    assert f"--no-index --find-links {artifact}/wheels" in place.pip()[0]


def test_32_bit_arm_takes_what_its_index_and_its_system_have(place: Place) -> None:
    artifact = place.artifact(NEW)
    assert place.install(artifact, "arm").returncode == 0
    (packages,) = place.pip()
    assert packages.endswith(f"{artifact}/lisiere-1.0-py3-none-any.whl[camera,greengrass]")
    assert "--require-hashes" not in packages
    assert "--only-binary=:all:" in packages  # nothing is built on the device, which would take hours
    assert "-m venv --system-site-packages" in place.log.read_text()
    assert (place.work / "venv" / "sample" / "model" / "manifest.yaml").read_text().startswith("arm")


def test_another_python_needs_another_environment(place: Place) -> None:
    artifact = place.artifact(NEW)
    place.install(artifact)
    place.program("python3", PYTHON.replace("3.11 x86_64", "3.13 x86_64"))
    assert place.install(artifact).returncode == 0
    assert place.pip()
    assert "3.13" in (place.work / "venv" / "complete").read_text()


def test_a_new_version_leaves_the_one_before_for_a_rollback_and_takes_older_ones_away(place: Place) -> None:
    artifacts = {digest: place.artifact(digest) for digest in (OLD, NEW, NEWER)}
    for digest in (OLD, NEW):
        assert place.install(artifacts[digest]).returncode == 0
    assert {path.name for path in place.work.glob("env-*")} == {f"env-{digest[:16]}" for digest in (OLD, NEW)}
    # The rollback: nothing is fetched, so it also works without a network.
    assert place.install(artifacts[OLD], PIP_FAILS="1").returncode == 0
    assert (place.work / "venv").readlink() == Path(f"env-{OLD[:16]}")
    assert place.install(artifacts[NEWER]).returncode == 0
    assert {path.name for path in place.work.glob("env-*")} == {f"env-{digest[:16]}" for digest in (OLD, NEWER)}


def test_a_kill_in_the_middle_leaves_what_ran_before_and_the_next_install_repairs_it(place: Place) -> None:
    old, new = place.artifact(OLD), place.artifact(NEW)
    place.install(old)
    command = ["sh", str(new / "install.sh"), str(place.work), "amd64"]
    with subprocess.Popen(
        command, env=place.environment(PIP_WAITS="1"), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert any("waiting" in line for line in process.stdout)  # pip is at work
        os.killpg(process.pid, signal.SIGKILL)
    assert (place.work / f"env-{NEW[:16]}").is_dir()
    assert (place.work / "venv").readlink() == Path(f"env-{OLD[:16]}")
    assert place.install(new).returncode == 0
    assert (place.work / "venv").readlink() == Path(f"env-{NEW[:16]}")
    assert place.pip()


def test_a_failed_download_leaves_what_ran_before(place: Place) -> None:
    place.install(place.artifact(OLD))
    failed = place.install(place.artifact(NEW), PIP_FAILS="1")
    assert failed.returncode == 1
    assert "could not be installed from pip's index" in failed.stderr
    assert "--wheels" in failed.stderr
    assert (place.work / "venv").readlink() == Path(f"env-{OLD[:16]}")


def test_a_python_that_is_too_old_is_named(place: Place) -> None:
    failed = place.install(place.artifact(NEW), PYTHON_IS_OLD="3.8.10")
    assert failed.returncode == 1
    assert "Python 3.10 or newer is needed, and this is Python 3.8.10." in failed.stderr


def test_a_newer_python_beside_an_old_one_is_taken(place: Place) -> None:
    place.program("python3.11", PYTHON)
    place.program("python3", "#!/bin/sh\nexit 1\n")
    done = place.install(place.artifact(NEW))
    assert done.returncode == 0, done.stderr


def test_a_device_without_python_is_told_so(place: Place) -> None:
    (place.bin / "python3").unlink()
    failed = place.install(place.artifact(NEW))
    assert failed.returncode == 1
    assert "There is no python3 here." in failed.stderr


def test_a_missing_venv_module_names_the_package(place: Place) -> None:
    failed = place.install(place.artifact(NEW), PYTHON_HAS_NO_VENV="1")
    assert failed.returncode == 1
    assert "sudo apt install python3-venv" in failed.stderr


def test_a_full_disk_is_told_before_anything_is_made(place: Place) -> None:
    place.program("df", "#!/bin/sh\necho header\necho /dev/root 1000000 950000 51200 95% /\n")
    failed = place.install(place.artifact(NEW))
    assert failed.returncode == 1
    assert "has 50 MB free, and 400 are needed" in failed.stderr
    assert list(place.work.iterdir()) == []


@pytest.mark.parametrize(("spoil", "sentence"), [("digest", "is not whole"), ("sample", "has nothing for amd64")])
def test_an_artifact_that_is_not_whole_is_refused(place: Place, spoil: str, sentence: str) -> None:
    artifact = place.artifact(NEW)
    target = artifact / spoil
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    failed = place.install(artifact)
    assert failed.returncode == 1
    assert sentence in failed.stderr


def install_model(place: Place, digest: str) -> subprocess.CompletedProcess[str]:
    artifact = place.folder / f"model-artifact-{digest[:4]}"
    if not artifact.exists():
        (artifact / "model").mkdir(parents=True)
        (artifact / "model" / "manifest.yaml").write_text(digest)
        (artifact / "digest").write_text(digest + "\n")
        shutil.copy(INSTALL_MODEL, artifact / "install.sh")
    return subprocess.run(
        ["sh", str(artifact / "install.sh"), f"{place.work}/"],
        env=place.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_is_replaced_in_one_step(place: Place) -> None:
    for digest in (OLD, NEW, NEWER):
        done = install_model(place, digest)
        assert done.returncode == 0, done.stderr
        assert (place.work / "model" / "manifest.yaml").read_text() == digest
    assert {path.name for path in place.work.iterdir()} == {"model", f"model-{NEW[:16]}", f"model-{NEWER[:16]}"}
    assert "already" in install_model(place, NEWER).stdout


def test_a_model_that_was_half_copied_is_copied_anew(place: Place) -> None:
    install_model(place, OLD)
    (place.work / "new").mkdir()
    (place.work / "new" / "stray").write_text("from an install that was killed")
    assert install_model(place, NEW).returncode == 0
    assert {path.name for path in (place.work / "model").iterdir()} == {"manifest.yaml"}
