"""Versions, version requirements in npm's language, and which version of each component a deployment needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lisiere.errors import ConfigError

if TYPE_CHECKING:
    from lisiere_sim.nucleus.components.recipe import Recipe

# How often versions may be chosen anew because a chosen one brought requirements of its own.
_ROUNDS = 100

Pool = Mapping[str, Mapping[str, "Recipe"]]


def check_version(text: str, path: str) -> None:
    """Raise ConfigError where a text is no semantic version."""
    _version(text, path)


def check_requirement(text: str, path: str) -> None:
    """Raise ConfigError where a text is no version requirement."""
    _requirement(text, path)


def newest(versions: Mapping[str, Any], requirements: list[str]) -> str | None:
    """Return the highest version that fits all requirements, or None."""
    fitting = [version for version in versions if all(_version(version) in _requirement(text) for text in requirements)]
    return max(fitting, key=_version, default=None)


def _version(text: str, path: str = "$") -> Any:
    import semantic_version

    try:
        return semantic_version.Version(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a semantic version, such as 1.0.0.", path) from error


def _requirement(text: str, path: str = "$") -> Any:
    import semantic_version

    try:
        return semantic_version.NpmSpec(text)
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not a version requirement, such as `^1.2.0` or `>=1.0.0 <2.0.0`.", path
        ) from error


def resolve(roots: Mapping[str, str], pool: Pool, provided: Mapping[str, str | None]) -> list[Recipe]:
    """Return what must run, each component after what it depends on.

    Each dependency gets the highest version in the pool that fits every requirement of what was chosen.

    Args:
        roots: name -> version that is asked for.
        pool: name -> version -> recipe.
        provided: components that the nucleus stands in for, with the version that it claims; None is any version.

    Raises:
        ConfigError: a component or a fitting version is missing, or components depend on each other in a circle.
    """
    chosen = {name: _find(name, version, pool) for name, version in roots.items()}
    for _ in range(_ROUNDS):
        asked = _requirements(chosen, roots)
        latest = {name: _choose(name, texts, roots, pool, provided) for name, texts in asked.items()}
        fresh = {name: _find(name, version, pool) for name, version in roots.items()}
        fresh.update({name: recipe for name, recipe in latest.items() if recipe is not None})
        if fresh == chosen:
            return _ordered(chosen)
        chosen = fresh
    raise ConfigError("The version requirements of the components lead in circles; pin versions with --deploy.")


def _find(name: str, version: str, pool: Pool) -> Recipe:
    recipe = pool.get(name, {}).get(version)
    if recipe is None:
        have = ", ".join(sorted(pool.get(name, {}))) or "none"
        raise ConfigError(f"There is no recipe of {name} {version}; of this component there are: {have}.", "--deploy")
    return recipe


def _requirements(chosen: Mapping[str, Recipe], roots: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Dependency -> who asks for it and what it asks, over what the roots reach."""
    asked: dict[str, list[tuple[str, str]]] = {}
    waiting, seen = list(roots), set(roots)
    while waiting:
        recipe = chosen.get(waiting.pop())
        for name, dependency in recipe.dependencies.items() if recipe else ():
            asked.setdefault(name, []).append((recipe.name if recipe else "", dependency.version_requirement))
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return asked


def _choose(
    name: str, asked: list[tuple[str, str]], roots: Mapping[str, str], pool: Pool, provided: Mapping[str, str | None]
) -> Recipe | None:
    """The recipe for a dependency; None where the nucleus itself stands in for it."""
    texts = [text for _, text in asked]
    versions: Mapping[str, Any] = pool.get(name, {})
    if name in roots:
        versions = {roots[name]: None}
    elif name not in pool and name in provided:
        claimed = provided[name]
        if claimed is None:
            return None
        versions = {claimed: None}
    version = newest(versions, texts)
    if version is None:
        wishes = "; ".join(f"{who} asks for {text}" for who, text in asked)
        have = ", ".join(sorted(versions)) or "none"
        raise ConfigError(f"No version of {name} fits: {wishes}; there are: {have}.", "$.ComponentDependencies")
    return pool[name][version] if name in pool and version in pool[name] else None


def _ordered(chosen: Mapping[str, Recipe]) -> list[Recipe]:
    """Depth first, so that what is depended on comes first; equal ones in the order of their names."""
    order: dict[str, Recipe] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " -> ".join([*above[above.index(name) :], name])
            raise ConfigError(f"The components depend on each other in a circle: {circle}.", "$.ComponentDependencies")
        if name in order or name not in chosen:
            return
        for dependency in sorted(chosen[name].dependencies):
            visit(dependency, (*above, name))
        order[name] = chosen[name]

    for name in sorted(chosen):
        visit(name, ())
    return list(order.values())
