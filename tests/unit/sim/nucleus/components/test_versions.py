"""Which versions a deployment needs, and in which order they start."""

from __future__ import annotations

from pathlib import Path

import pytest

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.components.deployments import provided
from lisiere_sim.nucleus.components.recipe import Recipe, read_recipe
from lisiere_sim.nucleus.components.versions import resolve
from lisiere_sim.nucleus.flavour import CLASSIC, LITE
from support.nuclei import write_recipe

Pool = dict[str, dict[str, Recipe]]


def pool(folder: Path, *parts: tuple[str, str, dict[str, str]]) -> Pool:
    """Recipes from name, version, and what each needs."""
    found: Pool = {}
    for name, version, needs in parts:
        file = write_recipe(folder, name, version, needs=needs, lifecycle={"run": "x"})
        found.setdefault(name, {})[version] = read_recipe(file, CLASSIC)
    return found


def chosen(have: Pool, **roots: str) -> list[str]:
    return [f"{one.name} {one.version}" for one in resolve(roots, have, provided(CLASSIC))]


def test_the_highest_version_that_fits_everybody_is_taken_and_comes_first(tmp_path: Path) -> None:
    every: list[tuple[str, str, dict[str, str]]] = [
        ("c", version, {}) for version in ("1.0.0", "1.2.0", "1.10.0", "2.0.0", "1.11.0-rc.1")
    ]
    asks = ("a", "1.0.0", {"b": "^1.0.0", "c": ">=1.0.0"}), ("b", "1.5.0", {"c": "~1.2 || 1.10.x"})
    have = pool(tmp_path, *asks, *every)
    assert chosen(have, a="1.0.0") == ["c 1.10.0", "b 1.5.0", "a 1.0.0"]


def test_requirements_of_a_version_that_was_given_up_do_not_count(tmp_path: Path) -> None:
    have = pool(
        tmp_path,
        ("a", "1.0.0", {"b": "*", "c": "*"}),
        ("b", "1.0.0", {}),
        ("b", "2.0.0", {"d": "*"}),
        ("c", "1.0.0", {"b": "1.x"}),
        ("d", "1.0.0", {}),
    )
    assert chosen(have, a="1.0.0") == ["b 1.0.0", "c 1.0.0", "a 1.0.0"]


def test_a_pinned_version_must_fit_its_dependents(tmp_path: Path) -> None:
    have = pool(tmp_path, ("a", "1.0.0", {"b": "^2.0.0"}), ("b", "1.0.0", {}), ("b", "2.0.0", {}))
    with pytest.raises(ConfigError, match=r"No version of b fits: a asks for \^2\.0\.0; there are: 1\.0\.0"):
        chosen(have, a="1.0.0", b="1.0.0")


def test_a_circle_is_named(tmp_path: Path) -> None:
    have = pool(tmp_path, ("a", "1.0.0", {"b": "*"}), ("b", "1.0.0", {"c": "*"}), ("c", "1.0.0", {"a": "* SOFT"}))
    with pytest.raises(ConfigError, match="in a circle: a -> b -> c -> a"):
        chosen(have, a="1.0.0")


def test_what_is_missing_is_named_with_who_asks(tmp_path: Path) -> None:
    have = pool(tmp_path, ("a", "1.0.0", {"b": "^1.0.0", "aws.greengrass.Nucleus": ">=2.0.0"}))
    with pytest.raises(ConfigError, match=r"No version of b fits: a asks for \^1\.0\.0; there are: none"):
        chosen(have, a="1.0.0")
    with pytest.raises(ConfigError, match=r"There is no recipe of a 2\.0\.0; of this component there are: 1\.0\.0"):
        chosen(have, a="2.0.0")


def test_the_nucleus_stands_in_for_itself_and_for_what_it_plays(tmp_path: Path) -> None:
    needs = {"aws.greengrass.Nucleus": ">=2.5.0 <3.0.0", "aws.greengrass.ShadowManager": "~2.3.0"}
    have = pool(tmp_path, ("a", "1.0.0", needs), ("b", "1.0.0", {"aws.greengrass.Nucleus": "^1.0.0"}))
    assert chosen(have, a="1.0.0") == ["a 1.0.0"]
    with pytest.raises(ConfigError, match=rf"No version of aws.greengrass.Nucleus fits.*{CLASSIC.version}"):
        chosen(have, b="1.0.0")
    with pytest.raises(ConfigError, match=r"No version of aws\.greengrass\.Nucleus fits"):
        resolve({"a": "1.0.0"}, have, provided(LITE))
