"""`lisiere nucleus run`: from the command line to a nucleus that runs until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from lisiere.documents import read_yaml
from lisiere.errors import ConfigError, Rejected
from lisiere_sim.nucleus.administration import update
from lisiere_sim.nucleus.cloud.limits import UNLIMITED, Limits
from lisiere_sim.nucleus.components.deployments import ConfigurationUpdate, Deployment
from lisiere_sim.nucleus.components.processes import User, find_user, own_user
from lisiere_sim.nucleus.components.recipe import Recipe
from lisiere_sim.nucleus.components.surroundings import Settings, read_json, write_json
from lisiere_sim.nucleus.console import registry
from lisiere_sim.nucleus.flavour import FLAVOURS
from lisiere_sim.nucleus.ipc.secrets import read_secrets
from lisiere_sim.nucleus.nucleus import Nucleus, Options

_log = logging.getLogger("lisiere_sim.nucleus")
_IDENTITY = "nucleus.json"
_ONE_SIGNAL_S = 0.3
_DEFAULT_USERS = ("ggc_user", "nobody")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code.

    Raises:
        ConfigError: the arguments do not go together.
        LisiereError: the nucleus cannot be started, or the first deployment is wrong.
    """
    if args.disk_spooler and not FLAVOURS[args.flavour].spools:
        raise ConfigError(f"The {args.flavour} nucleus has no spooler.", "--disk-spooler")
    with _root(args) as root:
        kept = kept_identity(root, args)
        user = component_user(args.component_user)
        closed = closed_to(root, user)
        if closed is not None:
            _log.warning(
                "%s, as whom components run, has no way into %s. Choose another --root or --component-user.",
                user.name,
                closed,
            )
        settings = Settings(kept.thing, kept.region, user, environment(args.env))
        secrets = read_secrets(args.secrets) if args.secrets else []
        options = Options(
            root,
            FLAVOURS[kept.flavour],
            args.broker,
            settings,
            limits=UNLIMITED if args.no_limits else Limits(),
            disk_spooler=args.disk_spooler,
            log_ipc=args.log_ipc,
            settle=args.settle,
            secrets=secrets,
        )
        return asyncio.run(_serve(options, args))


async def _serve(options: Options, args: argparse.Namespace) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    times: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told, stop, times)
    nucleus = Nucleus(options, stop.set)
    await nucleus.start()
    identity = Identity(options.flavour.name, options.settings.thing, options.settings.region)
    write_json(nucleus.layout.config / _IDENTITY, identity)
    work = loop.create_task(_deploy(nucleus, args))
    waiting = loop.create_task(stop.wait())
    try:
        with registry.entry(nucleus.layout.root):
            await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                await waiting
    finally:
        for task in (work, waiting):
            task.cancel()
        await asyncio.gather(work, waiting, return_exceptions=True)
        await nucleus.stop()
    return 0


def told(stop: asyncio.Event, times: list[float]) -> None:
    """Stop at the first signal; at the second leave at once, and have the guard end what still runs.

    Programs that pass signals on, such as timeout, deliver one Ctrl-C twice: what comes at once is no second one.
    """
    times.append(time.monotonic())
    if times[-1] - times[0] > _ONE_SIGNAL_S:
        os._exit(1)
    stop.set()


async def _deploy(nucleus: Nucleus, args: argparse.Namespace) -> None:
    if args.recipe is None:
        if args.deploy:
            raise ConfigError("It says what to deploy, but not where the recipes are: give --recipe.", "--deploy")
        if not nucleus.deployments.components:
            _log.warning("Nothing is deployed. Give --recipe, or use `lisiere nucleus deploy`.")
        return
    found = nucleus.packages.add(args.recipe, args.artifacts)
    outcome = await nucleus.administration.run(
        Deployment(
            components=versions(args.deploy) or roots_of(found),
            configuration=read_updates(args.configuration) if args.configuration else {},
            notify=False,
        )
    )
    if outcome.status != "SUCCEEDED":
        _log.error("%s `lisiere nucleus logs COMPONENT` shows its output.", outcome.why)
    else:
        _log.info("In another terminal, `lisiere nucleus status` and `lisiere nucleus logs` show more. Ctrl-C ends it.")


class Identity(msgspec.Struct, frozen=True):
    """What a root's nucleus is, next time too unless the command line says otherwise."""

    flavour: Literal["classic", "lite"] = "classic"
    thing: str = "laptop"
    region: str = "us-east-1"


def kept_identity(root: Path, args: argparse.Namespace) -> Identity:
    """Return what the command line says; where it says nothing, what the last nucleus in this root was."""
    kept = read_json(root / "config" / _IDENTITY, Identity) or Identity()
    return Identity(args.flavour or kept.flavour, args.thing or kept.thing, args.region or kept.region)


def closed_to(root: Path, user: User) -> Path | None:
    """Return the first folder on the way to a root that a user may not enter, if there is one."""
    for folder in reversed([root.resolve(), *root.resolve().parents]):
        if user.uid == 0 or not folder.is_dir():
            return None
        status = folder.stat()
        bit = 0o100 if status.st_uid == user.uid else 0o010 if status.st_gid == user.gid else 0o001
        if not status.st_mode & bit:
            return folder
    return None


def versions(texts: list[str], place: str = "--deploy") -> dict[str, str]:
    """Return what `NAME=VERSION` on the command line asks for; `place` is how messages call it.

    Raises:
        ConfigError: one of them has another form.
    """
    found = {}
    for text in texts:
        name, equals, version = text.partition("=")
        if not (name and equals and version):
            raise ConfigError(f"{text!r} is not of the form NAME=VERSION.", place)
        found[name] = version
    return found


def roots_of(recipes: list[Recipe]) -> dict[str, str]:
    """Return the components that no other of these recipes depends on, each in its highest version."""
    from lisiere_sim.nucleus.components.versions import newest

    needed = {name for recipe in recipes for name in recipe.dependencies if name != recipe.name}
    by_name: dict[str, dict[str, Recipe]] = {}
    for recipe in recipes:
        by_name.setdefault(recipe.name, {})[recipe.version] = recipe
    # In a circle everybody is needed: then all are asked for, and the circle is told.
    names = [name for name in by_name if name not in needed] or list(by_name)
    return {name: newest(by_name[name], []) or "" for name in names}


def read_updates(file: Path) -> dict[str, ConfigurationUpdate]:
    """Read a `--configuration` file: component -> reset and merge; Greengrass's RESET and MERGE are known, too.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        # What a recipe's configuration may be, too: names are text, also where YAML sees numbers.
        document: Any = json.loads(json.dumps(read_yaml(file), allow_nan=False))
    except Rejected as error:
        raise ConfigError(str(error), "--configuration") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} must hold what JSON can hold: {error}.", "--configuration") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{file} is a mapping from components to `reset` and `merge`.", "--configuration")
    return {str(name): update(part, f"$[{name}]") for name, part in document.items()}


def environment(texts: list[str]) -> dict[str, str]:
    """Return what `--env NAME[=VALUE]` gives.

    Raises:
        ConfigError: the shell has no such variable.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError(f"The shell has no variable {name!r}; write {name}=VALUE.", "--env")
        found[name] = value if equals else os.environ[name]
    return found


def component_user(text: str | None) -> User:
    """Return who components run as.

    Raises:
        ConfigError: there is no such user, or only root could become it.
    """
    if text is not None:
        user = find_user(text)
        if user.uid != os.geteuid() and os.geteuid() != 0:
            raise ConfigError(f"Only root can run components as {user.name}; leave this out.", "--component-user")
        return user
    if os.geteuid() != 0:
        return own_user()
    for name in _DEFAULT_USERS:
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            _log.info("The nucleus is root, so components run as %s; --component-user chooses another user.", name)
            return find_user(name)
    raise ConfigError(
        f"None of {', '.join(_DEFAULT_USERS)} exists; name the user that components run as.", "--component-user"
    )


@contextlib.contextmanager
def _root(args: argparse.Namespace) -> Iterator[Path]:
    """The folder that is asked for, or a temporary one that goes at the end."""
    if args.root is not None:
        yield args.root
        return
    folder = Path(tempfile.mkdtemp(prefix="lisiere-nucleus-"))
    folder.chmod(0o755)  # components may be another user's
    sys.stderr.write(f"The nucleus lives in {folder}{'' if args.keep else ', which is removed at the end'}.\n")
    try:
        yield folder
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
