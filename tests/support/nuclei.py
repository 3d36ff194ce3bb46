"""Recipes for tests, and what runs components, without a broker and an IPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from lisiere_sim.nucleus.components.deployments import Deployment, Deployments, Outcome
from lisiere_sim.nucleus.components.lifecycle import Component, Patience
from lisiere_sim.nucleus.components.packages import Packages
from lisiere_sim.nucleus.components.processes import own_user
from lisiere_sim.nucleus.components.surroundings import Settings, Surroundings
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import CLASSIC, Flavour
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.tokens import Tokens

QUICK = Patience(install=5, startup=5, shutdown=2, recover=2, term=1, retry=0.01, consent=2, defer=5)
# How long a test waits for what must happen.
PATIENTLY = 10.0
A, B = "com.example.A", "com.example.B"


def write_recipe(folder: Path, name: str = A, version: str = "1.0.0", /, **parts: Any) -> Path:
    """Write a recipe.

    Args:
        folder: where to; made here.
        name: the component's.
        version: the component's.
        parts: `lifecycle` and `artifacts` of its only manifest, `defaults`, and `needs`: name -> requirement, with
            ` SOFT` after it if it is not HARD.
    """
    needs: Mapping[str, str] = parts.get("needs", {})
    document = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": name,
        "ComponentVersion": version,
        "ComponentConfiguration": {"DefaultConfiguration": parts.get("defaults", {})},
        "ComponentDependencies": {
            other: {
                "VersionRequirement": text.removesuffix(" SOFT"),
                "DependencyType": "SOFT" if text.endswith(" SOFT") else "HARD",
            }
            for other, text in needs.items()
        },
        "Manifests": [
            {
                "Platform": {"os": "linux", "runtime": "*"},
                "Lifecycle": parts.get("lifecycle", {}),
                "Artifacts": parts.get("artifacts", []),
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}.yaml"
    file.write_text(yaml.safe_dump(document), "utf-8")
    return file


class Bench:
    """Components in a root of their own. `recipes` and `artifacts` are the folders that deployments look into."""

    def __init__(
        self, folder: Path, flavour: Flavour = CLASSIC, patience: Patience = QUICK, settings: Settings | None = None
    ) -> None:
        self.layout = Layout(folder / "root", flavour)
        self.layout.make()
        self.recipes = folder / "recipes"
        self.artifacts = folder / "artifacts"
        self.store = ConfigurationStore(self.layout.config / "configuration.json")
        self.store.load()
        self.asked: list[list[str]] = []
        self.released: list[str] = []
        self.around = Surroundings(
            self.layout,
            flavour,
            settings or Settings(user=own_user()),
            patience,
            self.store,
            Tokens(),
            self.released.append,
        )
        self.deployments = Deployments(Packages(self.layout, flavour), self.around, self.store, self)

    async def ask(self, _deployment: str, components: list[str]) -> None:
        """Agree to everything, and remember who was asked."""
        self.asked.append(components)

    def tell(self, _deployment: str, _components: list[str]) -> None:
        """Do nothing."""

    def __getitem__(self, name: str) -> Component:
        """Return a component."""
        return self.deployments.components[name]

    async def deploy(self, components: dict[str, str] | None = None, *, breaks: bool = False, **more: Any) -> Outcome:
        """Deploy from the two folders; without names, `A` 1.0.0.

        Args:
            components: root component -> version.
            breaks: whether a component is to become BROKEN, which is waited for; else the wait is short.
        """
        self.deployments.settle = PATIENTLY if breaks else 0.05
        wanted = Deployment(
            components={A: "1.0.0"} if components is None else components,
            recipes=str(self.recipes),
            artifacts=str(self.artifacts),
            **more,
        )
        return await asyncio.wait_for(self.deployments.deploy(wanted), 2 * PATIENTLY)

    async def until(self, name: str, *states: str) -> Component:
        """Wait until a component is in one of these states."""
        one = self[name]
        assert await self.around.board.until(lambda: one.state in states, PATIENTLY), (
            f"{name} is {one.state}: {one.why}"
        )
        return one

    def output(self, name: str = A) -> list[str]:
        """Return what a component has written, without times."""
        text = self.layout.component_log(name).read_text("utf-8")
        return [line.partition(" ")[2] for line in text.splitlines()]

    async def until_output(self, text: str, name: str = A, times: int = 1) -> None:
        """Wait until a component has written something so many times."""
        for _ in range(int(PATIENTLY / 0.01)):
            if self.layout.component_log(name).exists() and sum(text in line for line in self.output(name)) >= times:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name} has not written {text!r}: {self.output(name)}")


@asynccontextmanager
async def bench(folder: Path, flavour: Flavour = CLASSIC, patience: Patience = QUICK) -> AsyncIterator[Bench]:
    """Yield a bench and end all that it has started."""
    made = Bench(folder, flavour, patience)
    try:
        yield made
    finally:
        await made.deployments.stop()
