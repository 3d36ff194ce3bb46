"""What components find around them: environment, values of recipe variables, users; and what is remembered of them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lisiere.errors import ConfigError, Permanent
from lisiere_sim.nucleus.components import variables
from lisiere_sim.nucleus.components.board import Board
from lisiere_sim.nucleus.components.guard import Guard
from lisiere_sim.nucleus.components.lifecycle import Patience
from lisiere_sim.nucleus.components.processes import User, end_all, environment_of, own_user, processes
from lisiere_sim.nucleus.components.recipe import Recipe, Script, as_text
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import Flavour
from lisiere_sim.nucleus.keep import set_aside, write_whole
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.tokens import Tokens

_log = logging.getLogger("lisiere_sim.nucleus")

# What a component gets of the environment that the nucleus itself was started in, beside PATH: the language, and what
# a script needs to reach an index through a company's network.
_INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")
_INHERITED_ENDS = ("_PROXY", "_proxy")
_INHERITED_STARTS = ("PIP_",)
_LEFTOVER_TERM_S = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all components of a nucleus.

    Attributes:
        user: who scripts run as.
        environment: further environment variables.
    """

    thing: str = "laptop"
    region: str = "us-east-1"
    user: User = field(default_factory=own_user)
    environment: Mapping[str, str] = field(default_factory=dict)


class _Process(msgspec.Struct):
    component: str
    pid: int
    started: int
    token: str  # its SHA-256


class Surroundings:
    """The nucleus as its components see it; see `lifecycle.Host`.

    Args:
        disconnect: ends a component's connections to the IPC.
    """

    def __init__(
        self,
        layout: Layout,
        flavour: Flavour,
        settings: Settings,
        patience: Patience,
        store: ConfigurationStore,
        tokens: Tokens,
        disconnect: Callable[[str], None],
    ) -> None:
        self.layout = layout
        self.flavour = flavour
        self.settings = settings
        self.patience = patience
        self.board = Board()
        self.guard = Guard()
        # (name, version) -> digest of recipe and artifacts; the deployment fills it.
        self.digests: dict[tuple[str, str], str] = {}
        self._store = store
        self._tokens = tokens
        self._disconnect = disconnect
        self._processes: dict[int, _Process] = {}

    def environment(self, recipe: Recipe) -> dict[str, str]:
        """See `Host.environment`."""
        settings, token = self.settings, self._tokens.issue(recipe.name)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED or name.endswith(_INHERITED_ENDS) or name.startswith(_INHERITED_STARTS)
        }
        return {
            **inherited,
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": settings.user.home if Path(settings.user.home).is_dir() else str(self.layout.work(recipe.name)),
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": str(self.layout.socket),
            "AWS_IOT_THING_NAME": settings.thing,
            "AWS_REGION": settings.region,
            "AWS_DEFAULT_REGION": settings.region,
            "GGC_VERSION": self.flavour.version,
            "GG_ROOT_CA_PATH": str(self.layout.root / "rootCA.pem"),
            **settings.environment,
            "SVCUID": token,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
        }

    def user(self, script: Script) -> User:
        """See `Host.user`."""
        return own_user() if script.requires_privilege else self.settings.user

    def interpolate(self, recipe: Recipe, text: str) -> str:
        """See `Host.interpolate`.

        Raises:
            ConfigError: the text asks for configuration or for a component that is not there.
        """
        return variables.interpolate(text, lambda other, space, key: self._value(recipe, other, space, key))

    def _value(self, recipe: Recipe, other: str | None, space: str, key: str) -> str | None:
        name, version = recipe.name, recipe.version
        if other is not None and other != name:
            if not self.flavour.crosses_components or other not in recipe.dependencies:
                raise ConfigError(
                    f"{{{other}:{space}:{key}}} is another component's; that is known to classic nuclei alone, and for "
                    "direct dependencies.",
                    recipe.steps.path,
                )
            name = other
            version = next((version for known, version in self.digests if known == other), "")
        suffix = self.flavour.path_suffix
        if space == "configuration":
            try:
                path = tuple(part.replace("~1", "/").replace("~0", "~") for part in key.split("/")[1:])
                return as_text(self._store.read(name, path))
            except KeyError:
                raise ConfigError(
                    f"{{configuration:{key}}}: {name} has no such configuration.", recipe.steps.path
                ) from None
        return {
            "artifacts:path": f"{self.layout.artifacts(name, version)}{suffix}",
            "artifacts:decompressedPath": f"{self.layout.unarchived(name, version)}{suffix}",
            "work:path": f"{self.layout.work(name)}{suffix}",
            "kernel:rootPath": f"{self.layout.root}{suffix}",
            "iot:thingName": self.settings.thing,
        }.get(f"{space}:{key}")

    def texts(self, recipe: Recipe, steps: tuple[str, ...] | None = None) -> list[str]:
        """Return what a recipe's scripts and settings are with all values in place; of some steps, or of all."""
        found = [*recipe.steps.setenv.values()]
        for step, script in recipe.steps.scripts.items():
            if steps is None or step in steps:
                found += [script.script, script.skipif or "", *map(str, script.setenv.values())]
        return [self.interpolate(recipe, text) for text in found]

    def release(self, component: str) -> None:
        """See `Host.release`."""
        self._tokens.revoke(component)
        self._disconnect(component)

    def is_installed(self, recipe: Recipe) -> bool:
        """See `Host.is_installed`."""
        return self._installed().get(recipe.name) == self._install_digest(recipe)

    def set_installed(self, recipe: Recipe) -> None:
        """See `Host.set_installed`."""
        write_json(
            self.layout.config / "installed.json", {**self._installed(), recipe.name: self._install_digest(recipe)}
        )

    def _installed(self) -> dict[str, str]:
        return read_json(self.layout.config / "installed.json", dict[str, str]) or {}

    def _install_digest(self, recipe: Recipe) -> str:
        """Of everything that `install` works on: another text of the script, too, is another installation."""
        parts = [self.digests.get((recipe.name, recipe.version), ""), *self.texts(recipe, ("bootstrap", "install"))]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def started(self, component: str, pid: int, token: str) -> None:
        """See `Host.started`."""
        ticks = next((started for known, _, _, started in processes() if known == pid), 0)
        self._processes[pid] = _Process(component, pid, ticks, hashlib.sha256(token.encode()).hexdigest())
        self._save_processes()
        self.guard.add(pid)

    def ended(self, pid: int) -> None:
        """See `Host.ended`."""
        self._processes.pop(pid, None)
        self._save_processes()
        self.guard.remove(pid)

    def _save_processes(self) -> None:
        write_json(self.layout.config / "processes.json", list(self._processes.values()))

    async def end_leftovers(self) -> None:
        """End what a nucleus that was killed has left running below this root, and nothing else.

        A process is one of ours if it has the number and the start time that were recorded, or still carries a token
        that was given to a component of this root.
        """
        file = self.layout.config / "processes.json"
        recorded = read_json(file, list[_Process]) or []
        if not recorded:
            return
        known = {(one.pid, one.started) for one in recorded}
        tokens = {one.token for one in recorded}

        def find() -> set[int]:
            return {
                pid
                for pid, state, _, started in processes()
                if state not in "ZX" and ((pid, started) in known or not tokens.isdisjoint(_token_digests(pid)))
            }

        left = find()
        if left:
            _log.warning("The nucleus before this one was killed; %d processes that it left are ended.", len(left))
            await end_all(find, _LEFTOVER_TERM_S)
        file.unlink()


def _token_digests(pid: int) -> list[str]:
    return [
        hashlib.sha256(entry.removeprefix(b"SVCUID=")).hexdigest()
        for entry in environment_of(pid)
        if entry.startswith(b"SVCUID=")
    ]


def read_json(file: Path, form: Any) -> Any:
    """Return what a file of the nucleus' own holds; None if there is none or it is damaged, which the log says.

    Raises:
        Permanent: it cannot be read.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=form)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Permanent(f"{file} cannot be read: {error.strerror}. Choose another --root.") from error
    except (ValueError, RecursionError) as error:
        _log.warning("%s", set_aside(file, error, "what it said is forgotten"))
        return None


def write_json(file: Path, document: Any) -> None:
    """Write a file of the nucleus' own, whole or not at all."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(document)))
