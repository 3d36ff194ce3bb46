"""A device that is a Greengrass core: the component, from the recipe of this repository, in a laptop nucleus.

Nothing is downloaded: the component's own install script finds its environment made already, one that borrows the
packages of the interpreter that runs the simulator.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import pwd
import signal
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import lisiere
from lisiere.errors import ConfigError, LisiereError, Permanent
from lisiere_sim.broker import Address
from lisiere_sim.device import last_lines
from lisiere_sim.models import SOURCE_ROOT

COMPONENT = "io.lisiere.EdgeInference"
_ARCHITECTURES = ("aarch64", "amd64", "arm")
_DRAIN_S = 10.0  # the nucleus gives a component 15 s to stop
_STOP_S = 40.0
_KILLED_S = 5.0
_STATUS_EVERY_S = 1.0
_STATUS_S = 5.0


@dataclass(frozen=True, slots=True)
class Artifact:
    """What is deployed: `digest` is by what the install script knows an environment to belong to it."""

    recipe: Path
    artifacts: Path
    version: str
    digest: str


class GreengrassDevice:
    """`lisiere nucleus run` in a child process, with the component deployed into it.

    Args:
        folder: where the nucleus's root goes, and its log.
        name: of the thing.
        pipelines: the component's, which a deployment merges into its configuration.
        link: the broker that stands for IoT Core, behind the network.
        prefix: the first levels of its topics.
        flavour: which nucleus.

    Raises:
        ConfigError: this is not a source tree, or the IPC client is not installed.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        pipelines: list[dict[str, Any]],
        link: Address,
        prefix: str,
        flavour: str = "classic",
    ) -> None:
        self._root = folder / "nucleus"
        self._work = self._root / "work" / COMPONENT
        self._log = folder / "nucleus.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_at = 0.0
        self.spool = self._work / "spool"
        artifact = find_artifact(folder)
        borrow_environment(self._work, artifact.digest)
        configuration = folder / "configuration.yaml"
        merge = {
            "pipelines": pipelines,
            "topic_prefix": prefix,
            "health_interval_s": 5,
            "metrics_interval_s": 5,
            "retry_max_s": 2,
            "stop_drain_s": _DRAIN_S,
        }
        configuration.write_text(yaml.safe_dump({COMPONENT: {"merge": merge}}, sort_keys=False), encoding="utf-8")
        self._command = [
            *(sys.executable, "-m", "lisiere", "nucleus", "run", "--root", str(self._root), "--thing", name),
            *("--recipe", str(artifact.recipe), "--artifacts", str(artifact.artifacts)),
            *("--deploy", f"{COMPONENT}={artifact.version}", "--configuration", str(configuration)),
            *("--broker", f"{link[0]}:{link[1]}", "--env", f"PATH={_path(folder)}", "--flavour", flavour),
        ]
        if "LISIERE_LIBDLR" in os.environ:  # a component gets little of the environment that the nucleus was started in
            self._command += ["--env", "LISIERE_LIBDLR"]
        # As root the nucleus would choose another user, who may not read the inputs.
        with contextlib.suppress(KeyError):
            self._command += ["--component-user", pwd.getpwuid(os.geteuid()).pw_name]

    def start(self) -> None:
        """Start the nucleus; see `Device.start`."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with files written above
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the simulator, which then stops the nucleus properly
            )

    def kill(self) -> None:
        """Kill the component's processes; the nucleus stays, and starts it again."""
        killed = set(self._pids())
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        # For a moment they still count as running, which must not pass for having been started again.
        until = time.monotonic() + _KILLED_S
        while killed & set(self._pids()) and time.monotonic() < until:
            time.sleep(0.002)

    def revive(self) -> None:
        """Nothing to do: the nucleus does it."""

    def alive(self) -> bool:
        """Whether the component runs; see `Device.alive`."""
        return bool(self._pids())

    def stop(self) -> int:
        """Stop the nucleus, which stops the component first; see `Device.stop`."""
        if self._process is None:
            return 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            words = self.last_words()
            self.close()
            raise Permanent(f"The nucleus did not stop within {_STOP_S:g} s of SIGTERM.{words}") from None

    def check(self) -> None:
        """Make sure that the nucleus is there and has not given the component up; see `Device.check`."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise Permanent(f"The nucleus ended by itself with exit code {code}.{self.last_words()}")
        if time.monotonic() - self._asked_at < _STATUS_EVERY_S:
            return
        self._asked_at = time.monotonic()
        for component in self.components():
            if component["name"] == COMPONENT and component["state"] == "BROKEN":
                raise Permanent(f"The component is BROKEN: {component['why']}{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of both logs; see `Device.last_words`."""
        return last_lines(self._log) + last_lines(self._root / "logs" / f"{COMPONENT}.log")

    def close(self) -> None:
        """End the nucleus and the component at once; see `Device.close`."""
        pids = self._pids()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def components(self) -> list[dict[str, Any]]:
        """Return what the nucleus says of its components; nothing while it does not answer."""
        from lisiere_sim.nucleus.control import ask
        from lisiere_sim.nucleus.layout import Layout

        layout = Layout(self._root)
        layout.find_sockets()
        try:
            found: list[dict[str, Any]] = ask(layout.control, {"do": "status"}, _STATUS_S)["components"]
        except LisiereError:
            return []  # it is just starting or stopping
        return found

    def _pids(self) -> list[int]:
        """The leaders of the component's process groups, as the nucleus has written them down, that still run."""
        from lisiere_sim.nucleus.components.processes import processes

        try:
            known = json.loads((self._root / "config" / "processes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        ours = {(one["pid"], one["started"]) for one in known if one["component"] == COMPONENT}
        return [pid for pid, state, _, started in processes() if (pid, started) in ours and state not in "ZX"]


def find_artifact(folder: Path) -> Artifact:
    """Return what `scripts/build-component` has built from these sources, or a stand-in made in `folder`.

    The stand-in has the same recipe and install script. What it lacks are the packages, which are borrowed anyway.

    Raises:
        ConfigError: this is not a source tree, or the IPC client is not installed.
    """
    where = "$.devices[].runtime"
    template = SOURCE_ROOT / "recipe.yaml"
    script = SOURCE_ROOT / "components" / COMPONENT / "install.sh"
    if not template.is_file() or not script.is_file():
        raise ConfigError("`greengrass` needs the source tree of Lisière: its recipe and install script.", where)
    if importlib.util.find_spec("awsiot") is None:
        raise ConfigError("`greengrass` needs awsiotsdk. Install it with: pip install 'lisiere[greengrass]'", where)
    version = lisiere.__version__
    text = template.read_text(encoding="utf-8")
    for variable, value in (("COMPONENT_NAME", COMPONENT), ("COMPONENT_VERSION", version)):
        text = text.replace("{" + variable + "}", value).replace(variable, value)
    built = SOURCE_ROOT / "greengrass-build"
    recipe, archive = built / "recipes" / "recipe.yaml", built / "artifacts" / COMPONENT / version / f"{COMPONENT}.zip"
    if recipe.is_file() and archive.is_file() and recipe.read_text(encoding="utf-8") == text:
        with zipfile.ZipFile(archive) as stream:
            if stream.read("install.sh") == script.read_bytes():
                return Artifact(recipe, built / "artifacts", version, stream.read("digest").decode().strip())
    recipe = folder / "component" / "recipe.yaml"
    archive = folder / "component" / "artifacts" / COMPONENT / version / f"{COMPONENT}.zip"
    archive.parent.mkdir(parents=True)
    recipe.write_text(text, encoding="utf-8")
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    with zipfile.ZipFile(archive, "w") as stream:
        stream.write(script, "install.sh")
        stream.writestr("digest", digest + "\n")
        for architecture in _ARCHITECTURES:
            stream.writestr(f"sample/{architecture}/README", "The simulator brings models of its own.\n")
    return Artifact(recipe, folder / "component" / "artifacts", version, digest)


def borrow_environment(work: Path, digest: str) -> None:
    """Make the environment that the install script would make, with this interpreter and its packages.

    Args:
        work: the component's work folder.
        digest: of the artifact.
    """
    home = work / f"env-{digest[:16]}"
    venv.create(home, symlinks=True, with_pip=False)
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    standard |= {path / "lib-dynload" for path in standard}
    paths = [Path(path).resolve() for path in sys.path if path and Path(path).is_dir()]
    borrowed = dict.fromkeys(str(path) for path in paths if path not in standard)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    program = home / "bin" / "lisiere"
    program.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m lisiere "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    identity = f"{digest} {sys.version_info[0]}.{sys.version_info[1]} {platform.machine()}"
    (home / "complete").write_text(identity + "\n", encoding="utf-8")


def _path(folder: Path) -> str:
    """A PATH on which `python3` is this interpreter, by whose version the install script knows the environment."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(Path(sys.executable).absolute())
    return f"{programs}:{os.environ.get('PATH', os.defpath)}"
