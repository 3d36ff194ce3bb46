"""Deployments: which components are to run, in which version, with which configuration; and the way back."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from msgspec import Struct, field

from lisiere.errors import ConfigError, LisiereError
from lisiere_sim.nucleus.components.lifecycle import Component
from lisiere_sim.nucleus.components.packages import Packages
from lisiere_sim.nucleus.components.recipe import Recipe
from lisiere_sim.nucleus.components.surroundings import Surroundings, read_json, write_json
from lisiere_sim.nucleus.components.versions import resolve
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import Flavour

_log = logging.getLogger("lisiere_sim.nucleus")

# Components of AWS whose part the nucleus itself plays, in whatever version is asked for.
_PLAYED = ("Cli", "DiskSpooler", "LogManager", "SecretManager", "ShadowManager")
# Others that components name and that are not here; what these will miss.
_ABSENT = {
    "TokenExchangeService": "there are no AWS credentials",
    "StreamManager": "there are no streams to the cloud",
}


class ConfigurationUpdate(Struct, forbid_unknown_fields=True):
    """What a deployment changes in one component's configuration: first `reset`, then `merge`."""

    merge: dict[str, Any] = field(default_factory=dict)
    reset: list[str] = field(default_factory=list)


class Deployment(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is asked for. Root components that are not named stay as they are.

    Attributes:
        components: root component -> version.
        remove: root components that are to go.
        recipes, artifacts: where to look for what is not known yet.
        notify: ask running components first (NOTIFY_COMPONENTS).
        go_back: return to what was before if a component becomes BROKEN (ROLLBACK).
    """

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    components: dict[str, str] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    configuration: dict[str, ConfigurationUpdate] = field(default_factory=dict)
    recipes: str | None = None
    artifacts: str | None = None
    notify: bool = True
    go_back: bool = True


class Outcome(Struct, forbid_unknown_fields=True):
    """What came of a deployment; `why` says it in a sentence where it did not succeed."""

    id: str
    status: Literal["SUCCEEDED", "FAILED", "ROLLED_BACK"]
    why: str = ""


class _Record(Struct):
    """`config/deployment.json`: what the next nucleus in this root brings back."""

    roots: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Before:
    """What a rollback goes back to."""

    roots: dict[str, str]
    recipes: list[Recipe]
    digests: dict[tuple[str, str], str]
    configuration: dict[str, Any]


class Consent(Protocol):
    """How components are asked before they are changed."""

    async def ask(self, deployment: str, components: list[str]) -> None:
        """Return when all of them agree, or have had time enough."""

    def tell(self, deployment: str, components: list[str]) -> None:
        """Say that the deployment is over."""


class Deployments:
    """The components that are deployed. One deployment at a time; the others wait.

    Attributes:
        components: name -> component, each after what it depends on.
        roots: what was asked for; the rest is there because these need it.
        settle: seconds that new components must stay up for a deployment to have succeeded.
    """

    def __init__(
        self,
        packages: Packages,
        surroundings: Surroundings,
        store: ConfigurationStore,
        consent: Consent,
        settle: float = 2.0,
    ) -> None:
        self.components: dict[str, Component] = {}
        self.roots: dict[str, str] = {}
        self._packages = packages
        self._around = surroundings
        self._store = store
        self._consent = consent
        self.settle = settle
        self._turn = asyncio.Lock()
        # Digests of what is about to run, by name and version.
        self._fresh: dict[tuple[str, str], str] = {}
        self._file = surroundings.layout.config / "deployment.json"

    async def resume(self) -> None:
        """Bring back what the last nucleus in this root had deployed.

        Raises:
            ConfigError: its recipes do not fit together any more.
        """
        record = read_json(self._file, _Record)
        self._packages.add_kept()
        if record is not None and record.roots:
            _log.info("Bringing back what was deployed: %s.", _named(record.roots))
            try:
                recipes = await self._prepare(record.roots)
            except LisiereError as error:
                raise ConfigError(
                    f"What was deployed in this root cannot be brought back: {error} Remove {self._file} to go on.",
                    "--root",
                ) from error
            self.roots = record.roots
            await self._switch(recipes, {})

    async def deploy(self, wanted: Deployment) -> Outcome:
        """Carry a deployment out. What cannot work is refused before anything changes.

        Raises:
            LisiereError: the deployment itself is wrong; nothing has changed.
        """
        async with self._turn:
            before, known = self._remember(), self._packages.versions()
            try:
                roots, recipes = await self._accept(wanted)
            except LisiereError:
                self._packages.forget(self._packages.versions() - known)
                raise
            if wanted.notify:
                await self._consent.ask(wanted.id, [one.name for one in self.components.values() if one.ready])
            _log.info("Deployment %s: %s.", wanted.id, _named({recipe.name: recipe.version for recipe in recipes}))
            self.roots = roots
            outcome = Outcome(wanted.id, "SUCCEEDED")
            try:
                changed = await self._switch(recipes, wanted.configuration)
                # Before it is known to be well: a nucleus that stops meanwhile goes on with it when it is back.
                self._record()
                broken = await self._come_up(changed)
            except (LisiereError, OSError) as error:
                broken = [str(error)]
            if broken and not wanted.go_back:
                outcome = Outcome(wanted.id, "FAILED", " ".join(broken))
            elif broken:
                outcome = await self._go_back(wanted.id, " ".join(broken), before)
            self._record()
            self._consent.tell(wanted.id, list(self.components))
            _log.info("Deployment %s: %s%s", wanted.id, outcome.status, outcome.why and f": {outcome.why}")
            return outcome

    async def _accept(self, wanted: Deployment) -> tuple[dict[str, str], list[Recipe]]:
        """Return the root components and all recipes that a deployment leads to, ready to run.

        Raises:
            LisiereError: the deployment is wrong.
        """
        if wanted.recipes is not None:
            artifacts = Path(wanted.artifacts) if wanted.artifacts is not None else None
            try:
                await asyncio.to_thread(self._packages.add, Path(wanted.recipes), artifacts)
            except OSError as error:
                raise ConfigError(f"The recipes cannot be read: {error.strerror}.", "--recipe") from error
        roots = {**self.roots, **wanted.components}
        for name in wanted.remove:
            if roots.pop(name, None) is None:
                raise ConfigError(f"{name} is not a root component here, so it cannot be removed.", "--remove")
        recipes = await self._prepare(roots)
        strangers = wanted.configuration.keys() - {recipe.name for recipe in recipes}
        if strangers:
            raise ConfigError(f"{sorted(strangers)[0]} is configured but not deployed.", "--configuration")
        for name, update in wanted.configuration.items():
            for pointer in update.reset:
                if pointer and not pointer.startswith("/"):
                    raise ConfigError(f"{pointer!r} is no JSON pointer, such as /interval_s.", f"$[{name}].reset")
        return roots, recipes

    async def stop(self) -> None:
        """Stop all components, dependents first; they stay deployed."""
        for component in reversed(list(self.components.values())):
            await component.stop("The nucleus stops.")

    def find(self, name: str) -> Component:
        """Return a component.

        Raises:
            ConfigError: it is not deployed.
        """
        if name not in self.components:
            raise ConfigError(
                f"{name} is not deployed here; deployed are: {', '.join(self.components) or 'none'}.", "COMPONENT"
            )
        return self.components[name]

    async def _prepare(self, roots: dict[str, str]) -> list[Recipe]:
        """Choose versions, check what can be checked, and copy what is needed below the root."""
        around = self._around
        recipes = resolve(roots, self._packages.pool, provided(around.flavour))
        for recipe in recipes:
            for step, script in recipe.steps.scripts.items():
                if script.requires_privilege and os.geteuid() != 0:
                    raise ConfigError(
                        f"{recipe.name} wants to be root here, but the nucleus runs as {around.settings.user.name}. "
                        "Run the nucleus as root, or leave RequiresPrivilege out.",
                        f"{recipe.steps.path}.{step}.RequiresPrivilege",
                    )
            for absent, missing in _ABSENT.items():
                if f"aws.greengrass.{absent}" in recipe.dependencies:
                    _log.warning("%s depends on aws.greengrass.%s: %s here.", recipe.name, absent, missing)
        digests = {}
        for recipe in recipes:
            digest = await asyncio.to_thread(self._packages.install, recipe, around.settings.user)
            digests[recipe.name, recipe.version] = digest
        self._fresh = digests
        return recipes

    def _record(self) -> None:
        try:
            write_json(self._file, _Record(self.roots))
        except OSError as error:
            _log.error("%s cannot be written, so the next nucleus will not know: %s", self._file, error)

    def _remember(self) -> _Before:
        recipes = [one.recipe for one in self.components.values()]
        configuration = {recipe.name: self._store.snapshot(recipe.name) for recipe in recipes}
        return _Before(dict(self.roots), recipes, dict(self._around.digests), configuration)

    async def _switch(self, recipes: list[Recipe], updates: dict[str, ConfigurationUpdate]) -> list[Component]:
        """Make these recipes what runs. Returns the components that were started."""
        around = self._around
        new = {recipe.name: recipe for recipe in recipes}
        same = {
            name: self._texts(one.recipe)
            for name, one in self.components.items()
            if not one.retired and self._equal(one.recipe, new.get(name))
        }
        for name, one in reversed(list(self.components.items())):
            if name not in same:
                await one.retire("Another version replaces it." if name in new else "It is removed.")
            if name not in new:
                self._store.remove(name)
        around.digests = self._fresh
        now = time.time()
        for recipe in recipes:
            self._store.defaults(recipe.name, recipe.defaults)
            update = updates.get(recipe.name)
            if update is not None:
                self._store.reset(recipe.name, update.reset)
                for path in self._store.merge(recipe.name, (), update.merge, now):
                    _log.warning(
                        "%s: /%s stays as it is: the component has set it with a time that is yet to come.",
                        recipe.name,
                        "/".join(path),
                    )
        for name, texts in list(same.items()):
            if self.components[name].state == "BROKEN" or self._texts(new[name]) != texts:
                await self.components[name].retire("Its configuration has changed.")
                del same[name]
        components: dict[str, Component] = {}
        for recipe in recipes:
            hard = [
                components[name]
                for name, one in recipe.dependencies.items()
                if one.dependency_type == "HARD" and name in components
            ]
            if recipe.name in same:
                components[recipe.name] = self.components[recipe.name]
                components[recipe.name].hard = hard
            else:
                components[recipe.name] = Component(recipe, around, hard)
        self.components = components
        started = [one for name, one in components.items() if name not in same]
        for one in started:
            one.start()
        around.board.notify()
        return started

    def _texts(self, recipe: Recipe) -> list[str] | None:
        """The scripts as they run; None where they ask for configuration that is not there."""
        try:
            return self._around.texts(recipe)
        except ConfigError:
            return None

    def _equal(self, old: Recipe, new: Recipe | None) -> bool:
        """Whether nothing has changed, neither in the recipe nor in the artifacts."""
        key = (old.name, old.version)
        return new is not None and new.version == old.version and self._around.digests.get(key) == self._fresh[key]

    async def _come_up(self, changed: list[Component]) -> list[str]:
        """Wait until components are up and stay so. Returns a sentence on each that is BROKEN."""
        board = self._around.board
        while True:
            await board.until(lambda: all(one.settled for one in changed))
            broken = [
                f"{one.name} {one.recipe.version} is BROKEN: {one.why}" for one in changed if one.state == "BROKEN"
            ]
            runs = any(one.state == "RUNNING" for one in changed)
            if broken or not runs:
                return broken
            # One that becomes BROKEN is settled, too.
            if not await board.until(
                lambda: any(one.state == "BROKEN" or not one.settled for one in changed), self.settle
            ):
                return []

    async def _go_back(self, id_: str, why: str, before: _Before) -> Outcome:
        configuration = {recipe.name: self._store.snapshot(recipe.name) for recipe in before.recipes}
        same = [one.recipe for one in self.components.values() if not one.retired] == before.recipes
        if not before.recipes or (same and configuration == before.configuration):
            return Outcome(id_, "FAILED", why)  # there is nothing else to go back to
        overwritten = [
            recipe.name
            for recipe in before.recipes
            if self._fresh.get((recipe.name, recipe.version), before.digests.get((recipe.name, recipe.version)))
            != before.digests.get((recipe.name, recipe.version))
        ]
        if overwritten:
            return Outcome(
                id_,
                "FAILED",
                f"{why} There is no way back: {overwritten[0]} was replaced by other files under the same version.",
            )
        _log.warning("Deployment %s is rolled back: %s", id_, why)
        for name in [name for name in self.components if name not in before.configuration]:
            self._store.remove(name)
        # Else the next deployment, or the next nucleus, would choose them again where a dependency may be newer.
        self._packages.forget(self._fresh.keys() - before.digests.keys())
        self.roots, self._fresh = before.roots, before.digests
        for name, snapshot in before.configuration.items():
            self._store.restore(name, snapshot)
        try:
            broken = await self._come_up(await self._switch(before.recipes, {}))
        except LisiereError as error:
            broken = [str(error)]
        return Outcome(id_, "FAILED" if broken else "ROLLED_BACK", " ".join([why, *broken]))


def provided(flavour: Flavour) -> dict[str, str | None]:
    """Return the components that the nucleus stands in for; those without a version fit every requirement."""
    nucleus = "aws.greengrass.Nucleus" if flavour.name == "classic" else "aws.greengrass.NucleusLite"
    return {nucleus: flavour.version, **{f"aws.greengrass.{name}": None for name in (*_PLAYED, *_ABSENT)}}


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "nothing"
