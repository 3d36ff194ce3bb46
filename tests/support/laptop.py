"""`lisiere nucleus run` as a child process, and what a test asks of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from lisiere.errors import LisiereError
from lisiere.spool import SpoolReader
from lisiere_sim.nucleus.control import ask
from lisiere_sim.nucleus.layout import Layout

# What a service of the system would find. The tests' own Python may lie where an unprivileged user cannot read.
PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
_PAUSE_S = 0.05


class LaptopNucleus:
    """A nucleus in one root, which may be stopped, killed and started again.

    Attributes:
        root: readable for everybody, since components run as another user where the tests are root.
    """

    def __init__(self, root: Path, flavour: str, broker: str, thing: str) -> None:
        self.root = root
        self._options = ["--root", str(root), "--flavour", flavour, "--broker", broker, "--thing", thing]
        self._process: subprocess.Popen[bytes] | None = None
        self._layout = Layout(root)

    def start(self, *arguments: str) -> None:
        """Start it, and return once it answers; what it deploys takes its time."""
        with (self.root / "nucleus.out").open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lisiere", "nucleus", "run", *self._options, *arguments],
                env={**os.environ, "PATH": PATH},
                cwd="/",
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self.status() is not None, "to answer", 20)

    def status(self) -> dict[str, Any] | None:
        """Return what `lisiere nucleus status --json` prints, or None while it does not answer."""
        assert self._process is not None
        assert self._process.poll() is None, self.tale()
        with contextlib.suppress(LisiereError, OSError):
            self._layout.find_sockets()
            found: dict[str, Any] = ask(self._layout.control, {"do": "status"}, 5)
            return found
        return None

    def component(self, name: str) -> dict[str, Any]:
        """Return what the status says of a component; nothing while it is not there."""
        components = (self.status() or {}).get("components", [])
        return next((one for one in components if one["name"] == name), {})

    def deploy(self, **deployment: Any) -> dict[str, Any]:
        """Deploy as `lisiere nucleus deploy` does, and return the outcome."""
        outcome: dict[str, Any] = ask(self._layout.control, {"do": "deploy", "deployment": deployment}, 60)
        return outcome

    def configure(self, component: str, **update: Any) -> None:
        """Deploy a change of one component's configuration alone."""
        outcome = self.deploy(configuration={component: update})
        assert outcome["status"] == "SUCCEEDED", outcome

    def process_of(self, word: str) -> psutil.Process:
        """Return the component's process with a word in its command line."""
        assert self._process is not None
        (found,) = (
            child
            for child in psutil.Process(self._process.pid).children(recursive=True)
            if word in child.cmdline() and "-c" not in child.cmdline()
        )
        return found

    def log(self, component: str) -> str:
        """Return what a component has written."""
        file = self._layout.component_log(component)
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def work(self, component: str) -> Path:
        """Return a component's work folder."""
        return self._layout.work(component)

    def until(self, holds: Callable[[], bool], what: str, timeout: float = 15) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < end, f"Waited {timeout:g} s for the nucleus {what}.\n{self.tale()}"
            time.sleep(_PAUSE_S)  # there is nothing to wait on: what is looked at belongs to other processes

    def stop(self) -> None:
        """Stop it as a service manager does, and wait until nothing of it is left."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        assert code == 0, self.tale()

    def tale(self) -> str:
        """Return the ends of all logs, for a message."""
        files = [self.root / "nucleus.out", *sorted((self.root / "logs").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text('utf-8', 'replace')[-3000:]}" for file in files)


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """Make a folder that every user can read, with a short path: sockets go into it."""
    folder = Path(tempfile.mkdtemp(prefix="gg"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spool_figures(folder: Path) -> dict[str, Any]:
    """Return epoch, highest seq and how many results wait, of a spool that may be in use."""
    reader = SpoolReader(folder)
    try:
        return {"epoch": reader.epoch, "highest": reader.highest, "waiting": sum(reader.waiting().values())}
    finally:
        reader.close()


def as_json(document: Any, file: Path) -> str:
    """Write a document and return the file's path."""
    file.write_text(json.dumps(document), "utf-8")
    return str(file)
