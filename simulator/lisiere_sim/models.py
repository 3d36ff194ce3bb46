"""Where the scenario's models and data come from."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lisiere.errors import ConfigError, Permanent

# The root of a source tree when this package is run from one: simulator/lisiere_sim/models.py is two folders down.
SOURCE_ROOT = Path(__file__).resolve().parents[2]


def find_model(name: str, models: Path, scenario: Path, where: str, say: Callable[[str], None]) -> Path:
    """Return the folder of a compiled model, compiling it first when it is absent and can be.

    Args:
        name: a name in `models`, or a path.
        models: where compiled models are, as `<name>-<target>` folders.
        scenario: the folder that relative paths start from.
        where: the place in the scenario that names it, for messages.
        say: told what takes long.

    Raises:
        ConfigError: there is no such model; the message says how to make it.
        Permanent: compiling failed.
    """
    if "/" in name:
        folder = scenario / Path(name).expanduser()
        if not (folder / "manifest.yaml").is_file() and not (folder / "model.yaml").is_file():
            raise ConfigError(f"There is no model at {folder}.", where)
        return folder.resolve()
    if (found := _compiled(name, models)) is not None:
        return found
    job = _job(name)
    command = f"lisiere compile {job or f'models/{name}/job.json'} --output {models}"
    if job is None or importlib.util.find_spec("lisiere_compile") is None:
        raise ConfigError(f"{models} holds no compiled model {name!r}. Make it with: {command}", where)
    say(f"compiling {name}, once: {command}")
    done = subprocess.run(  # noqa: S603 - this interpreter and paths of this project
        [sys.executable, "-m", "lisiere", "compile", str(job), "--output", str(models)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = _compiled(name, models)
    if done.returncode != 0 or found is None:
        raise Permanent(f"`{command}` failed (exit code {done.returncode}): {done.stderr.strip()[-800:]}")
    return found


def find_data(path: str, scenario: Path, where: str) -> Path:
    """Return a data file: beside the scenario, in the working directory, or in the source tree.

    Raises:
        ConfigError: it is in none of them.
    """
    bases = [scenario, Path.cwd(), SOURCE_ROOT]
    for base in bases:
        if (file := base / Path(path).expanduser()).is_file():
            return file.resolve()
    raise ConfigError(f"There is no {path} in {', '.join(str(base) for base in dict.fromkeys(bases))}.", where)


def _compiled(name: str, models: Path) -> Path | None:
    """The folder for this machine if there is one, else the first of that name."""
    found = sorted(folder.parent for folder in models.glob(f"{name}-*/manifest.yaml"))
    here = f"{name}-{platform.system()}_{platform.machine()}".lower()
    found.sort(key=lambda folder: folder.name.lower() != here)
    return found[0].resolve() if found else None


def _job(name: str) -> Path | None:
    for base in (Path.cwd(), SOURCE_ROOT):
        if (file := base / "models" / name / "job.json").is_file():
            return file
    return None
