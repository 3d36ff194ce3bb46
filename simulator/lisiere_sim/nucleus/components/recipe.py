"""Component recipes (YAML or JSON), parsed strictly: what a nucleus would pass over is an error with its path."""

from __future__ import annotations

import difflib
import json
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import UNSET, Meta, Struct, UnsetType, field
from yaml.constructor import ConstructorError

from lisiere.documents import read_text, read_yaml
from lisiere.errors import ConfigError, Rejected
from lisiere_sim.nucleus.components import variables
from lisiere_sim.nucleus.components.versions import check_requirement, check_version
from lisiere_sim.nucleus.flavour import Flavour

SUFFIXES = (".yaml", ".yml", ".json")

# What Greengrass calls the processors that `platform.machine()` names; armv6l and armv7l are both `arm`.
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "aarch64", "arm64": "aarch64", "i686": "x86"}
_STEPS = ("bootstrap", "install", "run", "startup", "shutdown", "recover")
_PLATFORM_KEYS = ("os", "architecture", "architecture.detail", "runtime")
# Components have folders and logs of their names.
_NAMES_OF_OURS = (".", "..", "greengrass")
# Values in a recipe, each counted as often as aliases repeat it.
_VALUES_MAX = 100_000
_SKIPIF = re.compile(r"!?\s*(onpath|exists)\s+\S+")
_LIFECYCLE_KEYS = frozenset({*_STEPS, "Setenv"})

Scalar = str | bool | int | float


class _Part(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What all parts share: unknown keys are errors. Type checkers want the rest said at each class."""


class Script(_Part, rename="pascal", frozen=True, kw_only=True):
    """One step of a lifecycle in its long form. `timeout` is in seconds."""

    script: str
    requires_privilege: bool = False
    skipif: str | None = None
    timeout: Annotated[float, Meta(gt=0)] | None = None
    setenv: dict[str, Scalar] = field(default_factory=dict)


class _Lifecycle(_Part, frozen=True, kw_only=True):
    setenv: dict[str, Scalar] = field(default_factory=dict, name="Setenv")
    bootstrap: str | Script | UnsetType = UNSET
    install: str | Script | UnsetType = UNSET
    run: str | Script | UnsetType = UNSET
    startup: str | Script | UnsetType = UNSET
    shutdown: str | Script | UnsetType = UNSET
    recover: str | Script | UnsetType = UNSET


class _Permission(_Part, rename="pascal", frozen=True, kw_only=True):
    read: Literal["NONE", "OWNER", "ALL"] = "OWNER"
    execute: Literal["NONE", "OWNER", "ALL"] = "NONE"


class Artifact(_Part, rename="pascal", frozen=True, kw_only=True):
    """A file of a component. GDK's templates write `URI`, the guide `Uri`: both are known."""

    uri: str | None = None
    uri_: str | None = field(default=None, name="URI")
    unarchive: Literal["NONE", "ZIP"] = "NONE"
    permission: _Permission = field(default_factory=_Permission)
    digest: str | None = None
    algorithm: str | None = None

    @property
    def file(self) -> str:
        """The last segment of its URI, which is its name in the folder of artifacts."""
        return (self.uri or self.uri_ or "").rpartition("/")[2]


class _Manifest(_Part, rename="pascal", frozen=True, kw_only=True):
    name: str | None = None
    platform: dict[str, str] = field(default_factory=dict)
    lifecycle: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    selections: list[str] = field(default_factory=list)


class _Configuration(_Part, rename="pascal", frozen=True, kw_only=True):
    default_configuration: dict[str, Any] = field(default_factory=dict)


class Dependency(_Part, rename="pascal", frozen=True, kw_only=True):
    """What a component needs beside it. A HARD one takes its dependents with it when it stops."""

    version_requirement: str = ">=0.0.0"
    dependency_type: Literal["HARD", "SOFT"] = "HARD"


class _Recipe(_Part, rename="pascal", frozen=True, kw_only=True):
    recipe_format_version: Literal["2020-01-25"]
    component_name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$(?!\n)")]
    component_version: str
    component_type: Literal["aws.greengrass.generic"] = "aws.greengrass.generic"
    component_description: str = ""
    component_publisher: str = ""
    component_source: str = ""
    component_configuration: _Configuration = field(default_factory=_Configuration)
    component_dependencies: dict[str, Any] = field(default_factory=dict)
    manifests: Annotated[list[_Manifest], Meta(min_length=1)]
    lifecycle: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Steps:
    """A lifecycle as it runs on this machine: at most one of `run` and `startup`.

    Attributes:
        path: where in the recipe it stands, such as `$.Manifests[0].Lifecycle`.
        setenv: environment variables of every script; their values may hold variables.
        scripts: step -> script.
    """

    path: str
    setenv: dict[str, str]
    scripts: dict[str, Script]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One version of a component, with the manifest that fits this machine.

    Attributes:
        defaults: its DefaultConfiguration, as this nucleus would see it.
        file: where it was read from.
    """

    name: str
    version: str
    description: str
    publisher: str
    defaults: dict[str, Any]
    dependencies: dict[str, Dependency]
    steps: Steps
    artifacts: tuple[Artifact, ...]
    file: Path


def machine() -> dict[str, str]:
    """Return what a manifest's platform is compared with, but for the runtime."""
    name = platform.machine().lower()
    architecture = "arm" if name.startswith("armv") else _ARCHITECTURES.get(name, name)
    return {"os": platform.system().lower(), "architecture": architecture, "architecture.detail": name}


def read_recipe(file: Path, flavour: Flavour) -> Recipe:
    """Read a recipe and choose its manifest for this machine and nucleus.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        return _parse(_document(file), _defaults(file, flavour), file, flavour)
    except ConfigError as error:
        raise ConfigError(f"{str(error).removeprefix(f'{error.path}: ')} (in {file})", error.path) from error


def _document(file: Path) -> Any:
    """The document; of YAML every scalar as the text that stands there, since types are known by the schema."""
    try:
        if file.suffix == ".json":
            document = json.loads(read_text(file), object_pairs_hook=_each_once)
        else:
            read_yaml(file)  # every way of failing in one error
            document = yaml.load(read_text(file), _Texts)  # noqa: S506
    except Rejected as error:
        raise ConfigError(str(error)) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"It is not {file.suffix[1:].upper()}: {error}.") from error
    left, waiting = _VALUES_MAX, [document]
    while waiting and left:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        left -= 1
    if waiting:
        raise ConfigError(f"It has more than {_VALUES_MAX} values; are there aliases of aliases in it?")
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice in the same object")
        found[key] = value
    return found


class _Texts(yaml.BaseLoader):
    """Makes strings, lists and dicts alone, and refuses a key that stands twice, of which others take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise ConstructorError(None, None, "a key stands twice in this mapping", node.start_mark)
        return found


class _Yaml(yaml.SafeLoader):
    """YAML as Greengrass's reader takes it: `on` and dates are text."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":timestamp", ":bool"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false|True|False|TRUE|FALSE)$"), [*"tTfF"])


def _defaults(file: Path, flavour: Flavour) -> Any:
    """The default configuration with the types that this nucleus gives it."""
    path = "$.ComponentConfiguration.DefaultConfiguration"
    document = _document(file)
    if file.suffix != ".json" and not flavour.yaml_scalars_are_strings:
        document = yaml.load(file.read_text(encoding="utf-8"), _Yaml)  # noqa: S506 - a SafeLoader that knows fewer types
    section = document.get("ComponentConfiguration") if isinstance(document, dict) else None
    defaults = section.get("DefaultConfiguration") if isinstance(section, dict) else None
    try:
        return json.loads(json.dumps(defaults or {}, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The configuration must be what JSON can hold: {error}.", path) from error


def _parse(document: Any, defaults: Any, file: Path, flavour: Flavour) -> Recipe:
    if not isinstance(document, dict):
        raise ConfigError("A recipe is a mapping with the keys RecipeFormatVersion, ComponentName and so on.")
    for key in ("ComponentName", "ComponentVersion"):
        if str(document.get(key)).startswith(("{COMPONENT_", "NEXT_")):
            raise ConfigError(
                "This is a template of the GDK. Build it (`gdk component build`) and give the recipe that the build "
                "leaves in greengrass-build/recipes.",
                f"$.{key}",
            )
    raw = _convert(document, _Recipe, "$")
    if raw.component_name in _NAMES_OF_OURS:
        raise ConfigError("That is a name of the nucleus' own files; choose another.", "$.ComponentName")
    check_version(raw.component_version, "$.ComponentVersion")
    dependencies: dict[str, Dependency] = {}
    for name, part in raw.component_dependencies.items():
        path = f"$.ComponentDependencies[{json.dumps(name)}]"
        dependencies[name] = _convert(part, Dependency, path)
        check_requirement(dependencies[name].version_requirement, f"{path}.VersionRequirement")
    here = {**machine(), "runtime": flavour.runtime}
    chosen: tuple[Steps, _Manifest] | None = None
    for index, manifest in enumerate(raw.manifests):  # all are checked, not only the one that fits
        steps = _steps(raw, manifest, f"$.Manifests[{index}]")
        _check_artifacts(manifest, f"$.Manifests[{index}]")
        if chosen is None and _fits(manifest.platform, here, flavour, f"$.Manifests[{index}].Platform"):
            chosen = steps, manifest
    if chosen is None:
        place = ", ".join(f"{key}={value}" for key, value in here.items())
        hint = f'; nucleus lite demands `runtime: "*"` or `runtime: {flavour.runtime}`' if flavour.needs_runtime else ""
        raise ConfigError(f"No manifest fits {place}{hint}.", "$.Manifests")
    if flavour.every_brace_is_a_variable:
        for step, script in chosen[0].scripts.items():
            variables.check_braces(script.script, f"{chosen[0].path}.{step}")
    return Recipe(
        raw.component_name,
        raw.component_version,
        raw.component_description,
        raw.component_publisher,
        defaults,
        dependencies,
        chosen[0],
        tuple(chosen[1].artifacts),
        file,
    )


def _convert(document: Any, form: type[Any], path: str) -> Any:
    """Validate one part; an unknown key is told together with what may have been meant."""
    try:
        return msgspec.convert(document, form, strict=False)
    except msgspec.ValidationError as error:
        message, _, inner = str(error).partition(" - at `")
        where = path + inner.rstrip("`").removeprefix("$")
        unknown = re.search(r"unknown field `(.*)`", message)
        if unknown is not None:
            known = _KEYS if form is not _Lifecycle else (*_LIFECYCLE_KEYS, *_KEYS)
            raise ConfigError(f"There is no such key{_meant(unknown[1], known)}", f"{where}.{unknown[1]}") from error
        raise ConfigError(f"{message}.", where) from error


_KEYS = tuple(
    name
    for part in (Script, _Permission, Artifact, _Manifest, _Configuration, Dependency, _Recipe)
    for name in part.__struct_encode_fields__
)


def _meant(name: str, known: tuple[str, ...]) -> str:
    lower = {candidate.lower(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(name.lower(), lower, 1)
    return f"; did you mean `{lower[close[0]]}`?" if close else "."


def _steps(raw: _Recipe, manifest: _Manifest, path: str) -> Steps:
    """The manifest's own lifecycle; the recipe's where the manifest has none, by its selections."""
    if manifest.lifecycle or not raw.lifecycle:
        return _lifecycle(manifest.lifecycle, f"{path}.Lifecycle")
    if not _LIFECYCLE_KEYS.isdisjoint(raw.lifecycle) or any(not isinstance(v, dict) for v in raw.lifecycle.values()):
        return _lifecycle(raw.lifecycle, "$.Lifecycle")
    sections = {key: _lifecycle(section, f"$.Lifecycle.{key}") for key, section in raw.lifecycle.items()}
    for selection in manifest.selections or ["all"]:
        if selection in sections:
            return sections[selection]
    raise ConfigError("None of the manifest's selections stands in the recipe's Lifecycle.", f"{path}.Selections")


def _lifecycle(document: dict[str, Any], path: str) -> Steps:
    lifecycle: _Lifecycle = _convert(document, _Lifecycle, path)
    scripts: dict[str, Script] = {}
    for step in _STEPS:
        value = getattr(lifecycle, step)
        if value is not UNSET:
            scripts[step] = script = Script(script=value) if isinstance(value, str) else value
            if script.skipif is not None and not _SKIPIF.fullmatch(script.skipif.strip()):
                raise ConfigError("It reads `onpath PROGRAM` or `exists FILE`.", f"{path}.{step}.Skipif")
            for text in (script.script, script.skipif or "", *map(str, script.setenv.values())):
                variables.check(text, f"{path}.{step}")
    if "run" in scripts and "startup" in scripts:
        raise ConfigError("A component has `run` or `startup`, not both.", path)
    for name, setting in lifecycle.setenv.items():
        variables.check(str(setting), f"{path}.Setenv.{name}")
    return Steps(path, {name: as_text(setting) for name, setting in lifecycle.setenv.items()}, scripts)


def as_text(value: Any) -> str:
    """Return a value as it stands in an environment variable or a script: JSON, but strings as they are."""
    return value if isinstance(value, str) else json.dumps(value)


def skips(condition: str) -> bool:
    """Return whether `onpath PROGRAM` or `exists FILE` holds; `!` before it turns it round."""
    turned = condition.strip().startswith("!")
    kind, what = condition.strip().removeprefix("!").split(None, 1)
    return (shutil.which(what) is not None if kind == "onpath" else Path(what).exists()) != turned


def _fits(wanted: dict[str, str], here: dict[str, str], flavour: Flavour, path: str) -> bool:
    for key in wanted:
        if key not in _PLATFORM_KEYS and key.lower() in _PLATFORM_KEYS:
            raise ConfigError(f"There is no such key; did you mean `{key.lower()}`?", f"{path}.{key}")
    if flavour.needs_runtime and "runtime" not in wanted:
        return False
    return all(_matches(value, here.get(key)) for key, value in wanted.items())


def _matches(wanted: str, have: str | None) -> bool:
    """A value, `*`, or a regular expression between slashes, such as `/linux|darwin/`."""
    if wanted == "*":
        return True
    if len(wanted) > 2 and wanted[0] == wanted[-1] == "/":
        return have is not None and have in wanted[1:-1].split("|")
    return wanted == have


def _check_artifacts(manifest: _Manifest, path: str) -> None:
    seen: set[str] = set()
    for index, artifact in enumerate(manifest.artifacts):
        where = f"{path}.Artifacts[{index}].Uri"
        if artifact.file in ("", ".", ".."):
            raise ConfigError("An artifact's URI ends with the name of a file.", where)
        if artifact.file in seen:
            raise ConfigError(f"Two artifacts are called {artifact.file!r}.", where)
        seen.add(artifact.file)
