"""Backends: one file a runtime behind one small interface.

`dlr` runs a Neo artifact in the real libdlr, `graph` runs the same artifact without libdlr (ensembles of trees by the
module `trees`), and `onnx` runs the ONNX file in ONNX Runtime. A backend's library is imported when the backend is
opened, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

from lisiere.backends.base import Model, Tensor
from lisiere.backends.requirements import obstacles
from lisiere.errors import Permanent, Rejected
from lisiere.machine import this_machine
from lisiere.models import Package

__all__ = ["BACKENDS", "Backend", "Model", "Opened", "Tensor", "open_backend", "open_model"]

Backend = Literal["dlr", "graph", "onnx"]
# The order in which `auto` tries them.
BACKENDS: tuple[Backend, ...] = ("dlr", "graph", "onnx")


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model, by which backend, and why that one."""

    model: Model
    backend: Backend
    why: str


def open_backend(name: Backend, package: Package, threads: int = 1) -> Model:
    """Load a verified package by the named backend.

    Args:
        name: `dlr`, `graph` or `onnx`.
        package: a folder that `open_package` has verified.
        threads: how many threads one inference may use.

    Raises:
        Rejected: the folder has not what this backend runs, or is for another machine; the message says what lacks.
        Permanent: the backend's library is missing or refuses the model.
    """
    if name == "onnx":
        if package.manifest.onnx is None:
            raise Rejected("The model folder holds no ONNX file.")
    else:
        if package.manifest.neo is None:
            raise Rejected("The model folder holds no Neo artifact.")
        built = package.manifest.build
        if built is not None and (lacking := obstacles(built, this_machine())):
            raise Rejected(" ".join(map(str, lacking)))
    trees = name == "graph" and package.manifest.neo is not None and package.manifest.neo.graph is None
    # By name, so that only the library that is asked for is imported.
    module = import_module(f"lisiere.backends.{'trees' if trees else name}")
    load = cast("Callable[[Package, int], Model]", module.load)
    return load(package, threads)


def open_model(package: Package, wanted: Backend | Literal["auto"] = "auto", threads: int = 1) -> Opened:
    """Load a package by the wanted backend; `auto` takes the first of dlr, graph, onnx that can.

    Raises:
        Rejected, Permanent: as `open_backend`; for `auto`, when none can, with the reason of each.
    """
    if wanted != "auto":
        return Opened(open_backend(wanted, package, threads), wanted, "configured")
    refusals: list[str] = []
    for name in BACKENDS:
        try:
            model = open_backend(name, package, threads)
        except (Rejected, Permanent) as error:
            refusals.append(f"not {name}: {error}")
        else:
            return Opened(model, name, " ".join(["auto: first choice"] if not refusals else ["auto:", *refusals]))
    raise Rejected(f"No backend can run {package.path}. " + " ".join(refusals))
