"""What `lisiere doctor` says: of this machine, and whether an artifact can run on it, before anything is loaded.

Nothing of an artifact is run or mapped here, so an artifact that would end the process is told of in sentences.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from lisiere.backends import BACKENDS
from lisiere.backends.dlr import ENVIRONMENT, find_library
from lisiere.backends.requirements import obstacles
from lisiere.errors import Rejected
from lisiere.machine import Machine, this_machine
from lisiere.models import Manifest, open_package
from lisiere.models.manifest import Build
from lisiere.models.package import find_manifest, read_manifest

_MIB = 1 << 20


class Check(Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        name: such as features.
        state: `ok`; `note` where it is worth knowing and nothing is kept from running; `stop` where it is.
        sentence: what was found.
        fix: what would help; empty when nothing need be done.
    """

    name: str
    state: Literal["ok", "note", "stop"]
    sentence: str
    fix: str = ""


class Report(Struct, frozen=True):
    """What there is to say.

    Attributes:
        machine: this machine.
        backends: each backend, and why it cannot be used here; empty when it can.
        artifact: the folder that was looked at.
        model: its name, version and target.
        checks: in the order in which they matter.
        backend: which one would run it.
        runs: whether it can run here; None without an artifact.
    """

    machine: Machine
    backends: dict[str, str]
    artifact: str | None = None
    model: str = ""
    checks: tuple[Check, ...] = ()
    backend: str | None = None
    runs: bool | None = None


def examine(artifact: Path | None) -> Report:
    """Look at this machine, and at an artifact where one is given.

    Raises:
        Rejected: there is no model folder, or its manifest cannot be read.
    """
    machine = this_machine()
    backends = {"dlr": _dlr(), "graph": "", "onnx": _onnx()}
    if artifact is None:
        return Report(machine, backends)
    manifest = read_manifest(find_manifest(artifact))
    checks = [_digests(artifact)]
    if manifest.neo is not None and manifest.build is not None:
        checks += _build(manifest.build, machine)
        checks.append(_memory(manifest, manifest.build, machine))
        checks.append(_verified(manifest.build))
    whole = not any(check.state == "stop" for check in checks)
    wanted = [name for name in BACKENDS if (manifest.onnx if name == "onnx" else manifest.neo) is not None]
    able = [name for name in wanted if not backends[name]]
    runs = whole and bool(able)
    if whole:
        checks.append(_backend(wanted, able, backends))
    elif "onnx" in able and checks[0].state == "ok" and manifest.neo is not None:
        # Still not run here: what was asked about is the compiled code.
        sentence = "The backend onnx would run the model's ONNX file, which is in the folder too."
        checks.append(Check("backend", "note", sentence))
    target = f" for {manifest.build.target} ({manifest.build.cpu})" if manifest.build else ""
    return Report(
        machine=machine,
        backends=backends,
        artifact=str(artifact),
        model=f"{manifest.name} {manifest.version}{target}",
        checks=tuple(checks),
        backend=able[0] if runs else None,
        runs=runs,
    )


def _digests(artifact: Path) -> Check:
    try:
        package = open_package(artifact)
    except Rejected as error:
        return Check("files", "stop", str(error), "Copy the artifact again, whole.")
    return Check("files", "ok", f"All {len(package.manifest.files)} files are as the manifest says.")


def _build(build: Build, machine: Machine) -> list[Check]:
    """What the machine must have, a check each; the sentences of what lacks are those of the backends."""
    lacking = {one.kind: one for one in obstacles(build, machine)}
    glibc = f"It needs glibc {build.min_glibc}, and this machine has {machine.glibc}."
    fine = {
        "arch": f"It is code for {build.arch}, as this machine runs.",
        "features": f"This machine has all of the CPU's features that it was compiled for ({len(build.features)}).",
        "glibc": glibc if build.min_glibc else "It needs no particular glibc.",
    }
    checks = []
    for kind in dict.fromkeys([*lacking, *fine]):
        if kind in lacking:
            checks.append(Check(kind, "stop", lacking[kind].sentence, lacking[kind].fix))
        elif kind == "features" and ("arch" in lacking or machine.features is None or not build.features):
            checks.append(Check(kind, "note", "The features of the CPU cannot be compared."))
        else:
            checks.append(Check(kind, "ok", fine[kind]))
    if build.threads > machine.cores:
        sentence = f"It uses {build.threads} threads, and this process may use {machine.cores} cores."
        checks.append(Check("threads", "note", sentence, f"Compile it with `--threads {machine.cores}`."))
    else:
        checks.append(Check("threads", "ok", f"It uses {build.threads} of {machine.cores} cores."))
    return checks


def _memory(manifest: Manifest, build: Build, machine: Machine) -> Check:
    """Parameters are held twice while they are read: as the file and as tensors."""
    neo = manifest.neo
    params = manifest.files[neo.params].bytes if neo is not None and neo.params in manifest.files else 0
    needed = 2 * params + (build.peak_activation_bytes or 0)
    if machine.memory_bytes is None:
        return Check("memory", "note", f"It takes {needed / _MIB:.1f} MiB; what is free here cannot be told.")
    sentence = f"It takes {needed / _MIB:.1f} MiB, and {machine.memory_bytes / _MIB:.0f} MiB are free."
    if needed > machine.memory_bytes:
        return Check("memory", "stop", sentence, "End other programs, or take a smaller or a quantised model.")
    return Check("memory", "ok", sentence)


def _verified(build: Build) -> Check:
    verified = build.verified
    if verified is None or verified.by == "nothing":
        why = f": {verified.note}" if verified is not None and verified.note else ""
        return Check(
            "verified",
            "note",
            f"The compiler has not run it{why}.",
            "`lisiere models verify` holds it against its golden vectors here.",
        )
    sentence = f"The compiler ran {verified.cases} cases by {verified.by} against {verified.reference}."
    return Check("verified", "ok", sentence)


def _backend(wanted: Sequence[str], able: Sequence[str], backends: dict[str, str]) -> Check:
    if not able:
        reasons = " ".join(f"Not {name}: {backends[name]}" for name in wanted)
        return Check("backend", "stop", f"No backend can take it. {reasons}", "Install one of them.")
    if able[0] != wanted[0]:
        return Check("backend", "ok", f"{able[0]} would run it, since {wanted[0]} cannot: {backends[wanted[0]]}")
    return Check("backend", "ok", f"{able[0]} would run it.")


def _dlr() -> str:
    library = find_library()
    if library is None:
        return f"libdlr was not found; `pip install lisiere[dlr]` brings it on x86-64 Linux, else set {ENVIRONMENT}."
    return "" if library.is_file() else f"{library}, which {ENVIRONMENT} names, is not there."


def _onnx() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        return "ONNX Runtime is not installed; `pip install lisiere[onnx]` brings it."
    return ""
