"""The recipes: what both nuclei need, and no right that is not used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import lisiere
from lisiere.config import parse_config
from lisiere.models.package import open_package
from lisiere.spool.reader import KINDS
from lisiere.sync.topics import Topics
from lisiere_sim.nucleus.components.recipe import read_recipe
from lisiere_sim.nucleus.flavour import CLASSIC, LITE, Flavour
from support import REPOSITORY

RECIPES = [REPOSITORY / "recipe.yaml", *sorted(REPOSITORY.glob("components/*/recipe.yaml"))]
ARCHITECTURES = ["aarch64", "arm", "amd64"]


def titled(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


def read(file: Path) -> dict[str, Any]:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("file", RECIPES, ids=titled)
def test_there_is_a_manifest_for_each_architecture_that_lite_takes_too(file: Path) -> None:
    platforms = [manifest["Platform"] for manifest in read(file)["Manifests"]]
    assert platforms == [{"os": "linux", "architecture": name, "runtime": "*"} for name in ARCHITECTURES]


@pytest.mark.parametrize("flavour", [CLASSIC, LITE], ids=["classic", "lite"])
@pytest.mark.parametrize("file", RECIPES, ids=titled)
def test_the_laptop_nucleus_reads_it_strictly(file: Path, flavour: Flavour, tmp_path: Path) -> None:
    built = tmp_path / "recipe.yaml"
    text = file.read_text(encoding="utf-8").replace("{COMPONENT_NAME}", "x.y").replace("{COMPONENT_VERSION}", "1.0.0")
    built.write_text(text, encoding="utf-8")
    steps = read_recipe(built, flavour).steps.scripts
    assert set(steps) == {"install", "run"}
    assert not any(step.requires_privilege for step in steps.values())


@pytest.mark.parametrize("file", RECIPES, ids=titled)
def test_nothing_runs_with_privilege_or_counts_on_what_lite_leaves_out(file: Path) -> None:
    for manifest in read(file)["Manifests"]:
        assert set(manifest["Lifecycle"]) == {"install", "run"}
        for step in manifest["Lifecycle"].values():
            assert set(step) <= {"Script", "Timeout"}


@pytest.mark.parametrize("file", RECIPES, ids=titled)
def test_scripts_have_no_braces_but_those_of_variables_that_both_nuclei_know(file: Path) -> None:
    """Nucleus lite takes every opening brace of a script for the beginning of a variable."""
    known = {"artifacts:decompressedPath", "artifacts:path", "work:path", "COMPONENT_NAME"}
    for manifest in read(file)["Manifests"]:
        for step in manifest["Lifecycle"].values():
            assert set(re.findall(r"\{([^}]*)", step["Script"])) <= known
            assert len(step["Script"]) < 10_000  # lite's most


@pytest.mark.parametrize("file", RECIPES, ids=titled)
def test_gdk_is_told_the_version_that_is_built(file: Path) -> None:
    config = json.loads((file.parent / "gdk-config.json").read_text(encoding="utf-8"))
    ((name, component),) = config["component"].items()
    model = name.removeprefix("io.lisiere.model.")
    expected = lisiere.__version__ if model == name else open_package(REPOSITORY / "models" / model).manifest.version
    assert component["version"] == expected
    (script, *rest) = component["build"]["custom_build_command"]
    assert (file.parent / script).resolve() == REPOSITORY / "scripts" / "build-component"
    assert rest == ([] if model == name else [name])
    if model != name:
        assert file.parent.name == name


def defaults() -> dict[str, Any]:
    configuration = read(RECIPES[0])["ComponentConfiguration"]["DefaultConfiguration"]
    assert isinstance(configuration, dict)
    return configuration


def test_the_default_configuration_is_one(tmp_path: Path) -> None:
    (tmp_path / "venv" / "sample" / "model").mkdir(parents=True)
    (tmp_path / "venv" / "sample" / "model" / "manifest.yaml").write_text("")
    document = {key: value for key, value in defaults().items() if key != "accessControl"}
    config = parse_config({"device": "thing", **document}, tmp_path)
    assert config.pipelines[0].name == "digits"


def matches(topic: str, resource: str) -> bool:
    pattern = re.escape(resource).replace(re.escape("+"), "[^/]+").replace(re.escape("#"), ".+")
    return re.fullmatch(pattern.replace(re.escape("*"), ".*"), topic) is not None


def test_its_own_topics_are_allowed_and_no_others() -> None:
    topics = Topics("lisiere", "some-thing")
    services = {
        service: [resource for policy in policies.values() for resource in policy["resources"]]
        for service, policies in defaults()["accessControl"].items()
    }
    live = [topics.live("p", kind) for kind in KINDS]
    mqtt = services["aws.greengrass.ipc.mqttproxy"]
    for topic in (topics.status, topics.health, topics.metrics, topics.gap, *live, topics.backlog("p")):
        assert any(matches(topic, resource) for resource in mqtt), topic
    for topic in live:  # to other components of the device
        assert any(matches(topic, resource) for resource in services["aws.greengrass.ipc.pubsub"]), topic
    for topic in ("lisiere/v1/some-thing", "lisiere/v1/some-thing/other", "lisiere/v2/some-thing/gap", "other/topic"):
        assert not any(matches(topic, resource) for resource in mqtt), topic
    for resources in services.values():
        for resource in resources:
            assert "lisiere" in resource
            # Lite takes MQTT's wildcards or `*`, not both in one; and neither nucleus fills in variables here.
            assert not ("*" in resource and re.search("[+#]", resource))
            assert "{" not in resource
