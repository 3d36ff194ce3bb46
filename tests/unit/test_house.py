"""The house: what imports what, how long files are, and what stays out of a bare import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import REPOSITORY

DEVICE = REPOSITORY / "device" / "lisiere"
HEAVY = (
    "cv2",
    "dlr",
    "onnxruntime",
    "onnx",
    "awsiot",
    "awscrt",
    "tvm",
    "amqtt",
    "rich",
    "pymodbus",
    "serial",
    "psutil",
)
# From the bottom up. A unit may import those on lower floors, and those of its own name.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "clock", "values"}),
    frozenset({"detector", "documents", "machine", "terminal"}),
    frozenset({"models", "settings", "timeline"}),
    frozenset({"brokers", "channels", "config", "health", "windows"}),
    frozenset({"sources", "sight", "backends", "spool", "ipc"}),
    frozenset({"tasks", "sync", "view"}),
    frozenset({"calibration", "pipeline", "supervisor", "schema", "asyncapi", "doctor", "reports", "subscriber"}),
    frozenset({"replay", "runtime", "subscribe"}),
    frozenset({"greengrass"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
# The same for the laptop nucleus.
NUCLEUS = REPOSITORY / "simulator" / "lisiere_sim" / "nucleus"
NUCLEUS_FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"call", "control", "flavour", "keep"}),
    frozenset({"configuration", "layout", "logs", "tokens"}),
    frozenset({"access", "cloud", "components", "shadows"}),
    frozenset({"ipc"}),
    frozenset({"administration"}),
    frozenset({"nucleus"}),
    frozenset({"console"}),
    frozenset({"cli"}),
)
# Files that may be longer than 400 lines, each with its reason.
LONG: dict[str, str] = {}


def python_files(*roots: str) -> list[Path]:
    return [file for root in roots for file in sorted((REPOSITORY / root).rglob("*.py"))]


def unit_of(file: Path) -> str:
    first = file.relative_to(DEVICE).parts[0]
    return first.removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Each module that a file names in an import, anywhere in it, in full."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_units(file: Path) -> set[str]:
    """The units of the package that a file imports; what `lisiere` itself defines counts for none."""
    known = {path.stem for path in DEVICE.iterdir()}
    named = {name.split(".")[1] for name in imports(file) if name.startswith("lisiere.")}
    return named & known


@pytest.mark.parametrize("file", sorted(DEVICE.rglob("*.py")), ids=lambda file: str(file.relative_to(DEVICE)))
def test_imports_point_down(file: Path) -> None:
    unit = unit_of(file)
    if unit == "__init__":
        assert own_units(file) == set()
        return
    floor = next(number for number, units in enumerate(FLOORS) if unit in units)
    below = frozenset[str]().union(*FLOORS[:floor])
    ground = FLOORS[0] if floor == 0 else frozenset[str]()
    # Rooms on one floor do not know each other, but for the ground floor.
    assert own_units(file) <= below | ground | {unit}


@pytest.mark.parametrize("file", sorted(NUCLEUS.rglob("*.py")), ids=lambda file: str(file.relative_to(NUCLEUS)))
def test_imports_in_the_laptop_nucleus_point_down(file: Path) -> None:
    unit = file.relative_to(NUCLEUS).parts[0].removesuffix(".py")
    above = "lisiere_sim.nucleus."
    named = {name.removeprefix(above).split(".")[0] for name in imports(file) if name.startswith(above)}
    if unit == "__init__":
        assert named == set()
        return
    floor = next(number for number, units in enumerate(NUCLEUS_FLOORS) if unit in units)
    assert named <= frozenset[str]().union(*NUCLEUS_FLOORS[:floor]) | {unit}


def test_every_unit_has_a_floor() -> None:
    units = {unit_of(file) for file in DEVICE.rglob("*.py")} - {"__init__"}
    assert units == frozenset[str]().union(*FLOORS)


@pytest.mark.parametrize("unit", ["values", "errors", "clock"])
def test_the_ground_floor_knows_nobody(unit: str) -> None:
    assert own_units(DEVICE / f"{unit}.py") <= {"values", "errors", "clock"}


@pytest.mark.parametrize("unit", ["sources", "backends", "spool"])
def test_adapters_know_nothing_of_what_stands_on_them(unit: str) -> None:
    above = {"tasks", "sync", "pipeline", "runtime", "cli", "supervisor"}
    for file in (DEVICE / unit).rglob("*.py"):
        assert own_units(file).isdisjoint(above), file


def test_the_device_imports_neither_compiler_nor_simulator() -> None:
    for file in DEVICE.rglob("*.py"):
        tops = {name.split(".")[0] for name in imports(file)}
        assert tops.isdisjoint({"lisiere_compile", "lisiere_sim"}), file


def test_native_libraries_are_imported_inside_functions_only() -> None:
    for file in DEVICE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        outside = {
            alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        } | {(node.module or "").split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert outside.isdisjoint(HEAVY), file


@pytest.mark.parametrize(
    "module",
    [
        "lisiere",
        "lisiere.cli",
        "lisiere.runtime",
        "lisiere.subscriber",
        "lisiere.tasks.classification",
        "lisiere.sight",
        "lisiere.sources.video",
        "lisiere.sources.images",
        "lisiere.backends.dlr",
        "lisiere.backends.onnx",
        "lisiere.backends.graph",
        "lisiere.backends.trees",
    ],
)
def test_a_bare_import_pulls_in_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []


def test_help_needs_no_numpy() -> None:
    program = "import sys\nfrom lisiere.cli import _parser\n_parser()\nprint('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("file", python_files("device", "compile", "simulator"), ids=lambda file: str(file.name))
def test_no_source_file_is_long_without_a_reason(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 400 or LONG.get(str(file.relative_to(REPOSITORY))), f"{file.name} has {lines} lines"


def test_no_reason_is_left_over() -> None:
    for name in LONG:
        assert len((REPOSITORY / name).read_text(encoding="utf-8").splitlines()) > 400


def test_every_module_says_what_it_is() -> None:
    for file in DEVICE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def test_no_module_holds_state() -> None:
    """A module's own names are constants, types and loggers: an empty list, dict or set would be there to be filled."""
    for file in DEVICE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            empty = isinstance(value, ast.List | ast.Dict | ast.Set) and not ast.unparse(value).strip("[]{}")
            assert not empty, f"{file}: {ast.unparse(node)}"


def test_only_the_clock_asks_the_time() -> None:
    for file in DEVICE.rglob("*.py"):
        if file.name != "clock.py":
            assert "time" not in set(imports(file)), file
            assert "datetime" not in {name.split(".")[0] for name in imports(file)}, file
