"""Recipes: what is understood, and what is refused with its path."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.components import recipe as recipes
from lisiere_sim.nucleus.components.recipe import Recipe, read_recipe
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour

HERE = recipes.machine()
# What a plain recipe looks like; tests replace one thing in it.
PLAIN = """\
RecipeFormatVersion: '2020-01-25'
ComponentName: com.example.A
ComponentVersion: 1.0.0
ComponentDescription: An example.
ComponentDependencies:
  com.example.B: {VersionRequirement: ^1.2.0, DependencyType: SOFT}
ComponentConfiguration:
  DefaultConfiguration:
    {number: 5, truth: true, nothing: null, text: "5", word: on, day: 2026-01-31, deep: {list: [1.50]}}
Manifests:
  - Platform: {os: linux, runtime: "*"}
    Lifecycle:
      Setenv: {PORT: 8080}
      install: {Script: pip install x, RequiresPrivilege: false, Timeout: 300, Skipif: onpath x}
      run: exec x {artifacts:path}
    Artifacts:
      - Uri: s3://BUCKET/com.example.A/1.0.0/a.zip
        Unarchive: ZIP
        Permission: {Read: ALL, Execute: OWNER}
"""


def plain() -> Any:
    return yaml.load(PLAIN, yaml.BaseLoader)  # noqa: S506 - strings, lists and dicts alone


def read(folder: Path, text: str, flavour: Flavour = CLASSIC, suffix: str = ".yaml") -> Recipe:
    file = folder / f"recipe{suffix}"
    file.write_text(text, "utf-8")
    return read_recipe(file, flavour)


def test_everything_in_a_recipe_is_understood(tmp_path: Path) -> None:
    found = read(tmp_path, PLAIN)
    assert (found.name, found.version) == ("com.example.A", "1.0.0")
    assert found.dependencies["com.example.B"].dependency_type == "SOFT"
    assert found.steps.scripts["install"].timeout == 300
    assert found.steps.scripts["run"].script == "exec x {artifacts:path}"
    assert found.steps.setenv == {"PORT": "8080"}
    assert found.artifacts[0].file == "a.zip"


def test_on_lite_every_brace_of_a_script_begins_a_variable(tmp_path: Path) -> None:
    braces = PLAIN.replace("run: exec x {artifacts:path}", "run: 'cd {artifacts:path} && { ${X:-x}; }'")
    assert read(tmp_path, braces).steps.scripts["run"].script.endswith("{ ${X:-x}; }")
    with pytest.raises(ConfigError, match=r"takes every `\{` .* fails at '\{ \$\{X:-x\}'") as caught:
        read(tmp_path, braces, LITE)
    assert caught.value.path == "$.Manifests[0].Lifecycle.run"


def test_scalars_of_yaml_are_strings_on_lite_and_values_on_classic(tmp_path: Path) -> None:
    values: dict[str, Any] = {"number": 5, "truth": True, "nothing": None, "text": "5", "word": "on"}
    values |= {"day": "2026-01-31", "deep": {"list": [1.5]}}
    texts = {"number": "5", "truth": "true", "nothing": "null", "text": "5", "word": "on", "day": "2026-01-31"}
    assert read(tmp_path, PLAIN).defaults == values
    assert read(tmp_path, PLAIN, LITE).defaults == {**texts, "deep": {"list": ["1.50"]}}


def test_a_json_recipe_keeps_its_types_on_both(tmp_path: Path) -> None:
    document = plain()
    document["ComponentConfiguration"]["DefaultConfiguration"] = {"number": 5, "truth": True}
    document["Manifests"][0]["Lifecycle"]["Setenv"] = {"PORT": 8080, "DEBUG": True}
    for flavour in (CLASSIC, LITE):
        found = read(tmp_path, json.dumps(document), flavour, ".json")
        assert found.defaults == {"number": 5, "truth": True}
        assert found.steps.setenv == {"PORT": "8080", "DEBUG": "true"}


@pytest.mark.parametrize(
    ("old", "new", "path", "says"),
    [
        ("      run:", "      Run:", "$.Manifests[0].Lifecycle.Run", "did you mean `run`?"),
        ("Script:", "script:", "$.Manifests[0].Lifecycle.install.script", "did you mean `Script`?"),
        ("Manifests:", "manifests:", "$.manifests", "did you mean `Manifests`?"),
        ("Setenv:", "SetEnv:", "$.Manifests[0].Lifecycle.SetEnv", "did you mean `Setenv`?"),
        ("DependencyType", "Type", '$.ComponentDependencies["com.example.B"].Type', "no such key"),
        ("Unarchive: ZIP", "Unarchive: TAR", "$.Manifests[0].Artifacts[0].Unarchive", "TAR"),
        ("Timeout: 300", "Timeout: soon", "$.Manifests[0].Lifecycle.install.Timeout", "float"),
        ("Timeout: 300", "Timeout: -1", "$.Manifests[0].Lifecycle.install.Timeout", "> 0"),
        ("Skipif: onpath x", "Skipif: maybe", "$.Manifests[0].Lifecycle.install.Skipif", "onpath PROGRAM"),
        ("ComponentVersion: 1.0.0", "ComponentVersion: 1.0", "$.ComponentVersion", "semantic version"),
        ("ComponentVersion: 1.0.0", "ComponentVersion: NEXT_PATCH", "$.ComponentVersion", "gdk component build"),
        ("com.example.A\n", "com/example\n", "$.ComponentName", "regex"),
        ("com.example.A\n", "..\n", "$.ComponentName", "of the nucleus"),
        ("com.example.A\n", "greengrass\n", "$.ComponentName", "of the nucleus"),
        ("2020-01-25", "2021-01-25", "$.RecipeFormatVersion", "2021-01-25"),
        ("^1.2.0", "latest", '$.ComponentDependencies["com.example.B"].VersionRequirement', "version requirement"),
        ("{artifacts:path}", "{artifacts:Path}", "$.Manifests[0].Lifecycle.run", "did you mean `{artifacts:path}`?"),
        ("{artifacts:path}", "{configuration:port}", "$.Manifests[0].Lifecycle.run", "{configuration:/json/pointer}"),
        ("{artifacts:path}", "{artifact:path}", "$.Manifests[0].Lifecycle.run", "did you mean `{artifacts:path}`?"),
        ("os: linux", "os: windows", "$.Manifests", "No manifest fits os=linux, architecture="),
        ("os: linux", "OS: linux", "$.Manifests[0].Platform.OS", "did you mean `os`?"),
        ("a.zip", "", "$.Manifests[0].Artifacts[0].Uri", "name of a file"),
        ("1.50", ".nan", "$.ComponentConfiguration.DefaultConfiguration", "JSON"),
        ("      run:", "      startup: x\n      run:", "$.Manifests[0].Lifecycle", "not both"),
        ("exec x", "[exec]", "$.Manifests[0].Lifecycle.run", "Expected"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(tmp_path: Path, old: str, new: str, path: str, says: str) -> None:
    assert old in PLAIN
    if new == "[exec]":
        old = "exec x {artifacts:path}"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, PLAIN.replace(old, new))
    assert caught.value.path == path
    assert says in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_lite_demands_a_runtime_and_says_so(tmp_path: Path) -> None:
    text = PLAIN.replace(', runtime: "*"', "")
    assert read(tmp_path, text).name == "com.example.A"
    with pytest.raises(ConfigError, match=r'nucleus lite demands `runtime: "\*"`'):
        read(tmp_path, text, LITE)


@pytest.mark.parametrize(
    ("platform", "fits"),
    [
        ({}, True),
        ({"os": "*"}, True),
        ({"os": "/linux|darwin/"}, True),
        ({"os": "/windows|darwin/"}, False),
        ({"os": "linux", "architecture": HERE["architecture"]}, True),
        ({"os": "linux", "architecture": "sparc"}, False),
        ({"os": "linux", "runtime": "aws_nucleus_lite"}, False),
        ({"os": "linux", "office": "upstairs"}, False),
    ],
)
def test_platforms(tmp_path: Path, platform: dict[str, str], fits: bool) -> None:
    text = PLAIN.replace('{os: linux, runtime: "*"}', json.dumps(platform))
    if fits:
        read(tmp_path, text)
    else:
        with pytest.raises(ConfigError, match="No manifest fits"):
            read(tmp_path, text)


def test_the_first_manifest_that_fits_is_taken_and_all_are_checked(tmp_path: Path) -> None:
    document = plain()
    other = {"Platform": {"os": "windows"}, "Lifecycle": {"run": "first"}}
    document["Manifests"].insert(0, other)
    assert read(tmp_path, yaml.safe_dump(document)).steps.path == "$.Manifests[1].Lifecycle"
    other["Lifecycle"] = {"Run": "x"}
    with pytest.raises(ConfigError, match=r"\$\.Manifests\[0\]\.Lifecycle\.Run"):
        read(tmp_path, yaml.safe_dump(document))


@pytest.mark.parametrize(
    ("lifecycle", "selections", "path", "script"),
    [
        ({"run": "global"}, [], "$.Lifecycle", "global"),
        ({"all": {"run": "any"}, "special": {"run": "one"}}, [], "$.Lifecycle.all", "any"),
        ({"all": {"run": "any"}, "special": {"run": "one"}}, ["special", "all"], "$.Lifecycle.special", "one"),
    ],
)
def test_the_recipes_own_lifecycle_counts_where_the_manifest_has_none(
    tmp_path: Path, lifecycle: dict[str, Any], selections: list[str], path: str, script: str
) -> None:
    document = plain()
    document["Lifecycle"] = lifecycle
    assert read(tmp_path, yaml.safe_dump(document)).steps.path == "$.Manifests[0].Lifecycle"
    document["Manifests"][0].update(Lifecycle={}, Selections=selections)
    found = read(tmp_path, yaml.safe_dump(document))
    assert found.steps.path == path
    assert found.steps.scripts["run"].script == script
    document["Manifests"][0]["Selections"] = ["absent"]
    if path != "$.Lifecycle":
        with pytest.raises(ConfigError, match=r"\$\.Manifests\[0\]\.Selections"):
            read(tmp_path, yaml.safe_dump(document))


def test_braces_of_scripts_are_left_alone(tmp_path: Path) -> None:
    script = "awk '{print $1}' ${work:-x} {a:b} '{\"kind\":1}'"
    document = plain()
    document["Manifests"][0]["Lifecycle"]["run"] = script
    assert read(tmp_path, yaml.safe_dump(document)).steps.scripts["run"].script == script


@pytest.mark.parametrize("text", ["", "[]", "a: [", "{", "\x00", "- 1", "ComponentName: {COMPONENT_NAME}"])
@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, suffix: str) -> None:
    with pytest.raises(ConfigError):
        read(tmp_path, text, suffix=suffix)


def test_documents_that_swell_are_refused(tmp_path: Path) -> None:
    layers = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12))
    with pytest.raises(ConfigError, match="more than 100000 values"):
        read(tmp_path, f"l0: &l0 [x]\n{layers}{PLAIN}")
    with pytest.raises(ConfigError, match="recursive"):
        read(tmp_path, f"l0: &l0 [*l0]\n{PLAIN}")
    with pytest.raises(ConfigError, match="recursion"):
        read(tmp_path, "[" * 1_000, suffix=".json")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_document_gets_out_anything_but_a_recipe_or_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    document = plain()
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans())):
            break
        place = place[key]
    place[key] = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
            max_leaves=4,
        )
    )
    folder = tmp_path_factory.mktemp("r")
    for flavour in (CLASSIC, LITE):
        with suppress(ConfigError):
            read(folder, json.dumps(document), flavour, ".json")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(PLAIN.replace("      Setenv:", "      run: exec y\n      Setenv:"))
    with pytest.raises(ConfigError, match="a key stands twice in this mapping"):
        read_recipe(file, CLASSIC)
    file = tmp_path / "r.json"
    file.write_text('{"ComponentName": "com.example.B", ' + json.dumps(yaml.safe_load(PLAIN), default=str)[1:])
    with pytest.raises(ConfigError, match="the key 'ComponentName' stands twice"):
        read_recipe(file, CLASSIC)


def test_a_json_recipe_may_be_indented_by_tabs(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(yaml.safe_load(PLAIN), default=str, indent="\t"))
    assert read_recipe(file, CLASSIC).name == "com.example.A"
