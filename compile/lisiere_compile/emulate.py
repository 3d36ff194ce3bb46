"""Running an artifact under qemu-user: its own library, parameters and storage plan, on the instructions of its CPU.

A small C program, built by the cross compiler, plays the host (`runner.c`). What it takes is a flat binary plan made
from the artifact's files, so that nothing has to parse JSON there; `_plan` and `runner.c` are the two ends of it.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.backends.graph import read_params
from lisiere.errors import Permanent, Rejected
from lisiere.machine import known_features
from lisiere.models import Package
from lisiere.models.manifest import Build
from lisiere.models.package import Graph
from lisiere_compile.link import KINDS, build_program
from lisiere_compile.target import Target

Tensors = dict[str, NDArray[Any]]
# No further case begins after this; a case alone may take a few times as long (runner.c).
BUDGET_S = 40
_QEMU = {"armv7l": "qemu-arm", "aarch64": "qemu-aarch64", "x86_64": "qemu-x86_64"}
# What qemu emulates of x86; of ARM it has all that LLVM uses.
_EMULATED_X86 = known_features("x86_64") - {
    name for name in known_features("x86_64") if name.startswith(("avx512", "avxi", "avxn", "avxv", "gfni"))
} - {"fma4", "tbm", "xop"}  # fmt: skip
_CODES = {"int": 0, "uint": 1, "float": 2}


@dataclass(frozen=True, slots=True)
class Emulator:
    """How programs for another machine are run here: qemu's command, and the compiler that builds them."""

    command: tuple[str, ...]
    target: Target

    def run(self, package: Package, feeds: Sequence[Tensors]) -> list[Tensors]:
        """Run an artifact on each feed; fewer results come back when time runs out, but always one.

        Raises:
            Permanent: the emulator cannot be started or the runner cannot be built.
            Rejected: a kernel fails, the program ends by a signal, or its first case takes too long.
        """
        manifest = package.manifest
        assert manifest.neo is not None  # noqa: S101 - the caller has made the artifact
        with tempfile.TemporaryDirectory(prefix="lisiere-emulate-") as scratch:
            work = Path(scratch)
            trees = manifest.neo.graph is None
            source = Path(__file__).parent / ("trees/runner.c" if trees else "runner.c")
            runner = build_program(work, source.read_text(encoding="ascii"), "runner", self.target)
            (work / "plan").write_bytes(_rows(package, feeds) if trees else _plan(package, feeds))
            library = package.file(manifest.neo.library).resolve()
            command = [*self.command, str(runner), "plan", str(library), "output", str(BUDGET_S)]
            _run(command, work, self.target)
            data = (work / "output").read_bytes()
        size = sum(spec.size * np.dtype(spec.dtype).itemsize for spec in manifest.outputs)
        results: list[Tensors] = []
        for case in range(len(data) // size):
            at, result = case * size, {}
            for spec in manifest.outputs:
                result[spec.name] = np.frombuffer(data, spec.dtype, spec.size, at).reshape(spec.shape)
                at += result[spec.name].nbytes
            results.append(result)
        return results


def find_emulator(build: Build) -> Emulator | str:
    """Return what runs an artifact of this build here, or a sentence that says what is missing for it."""
    name = _QEMU.get(build.arch)
    if name is None:
        return f"qemu-user is not known to run {build.arch}"
    qemu = shutil.which(name) or shutil.which(f"{name}-static")
    if qemu is None:
        return f"{name} is not installed (Debian's package qemu-user)"
    if build.arch == "x86_64" and (beyond := sorted(set(build.features) - _EMULATED_X86)):
        return f"neither this machine nor qemu has {', '.join(beyond)}"
    target = Target(build.target, build.triple, build.arch, build.cpu)
    if not target.cross:  # this machine's own C library serves
        return Emulator((qemu, "-cpu", "max"), target)
    root = Path(os.environ.get("QEMU_LD_PREFIX") or f"/usr/{KINDS[build.arch]}")
    if not any(root.glob("lib*/ld-linux*")):
        kind = {"armv7l": "armhf", "aarch64": "arm64", "x86_64": "amd64"}[build.arch]
        return f"the C library of {build.arch} is not installed (Debian's package libc6-{kind}-cross)"
    return Emulator((qemu, "-cpu", "max", "-L", str(root)), target)


def _run(command: list[str], work: Path, target: Target) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - qemu, on what was just compiled
            command, cwd=work, capture_output=True, text=True, errors="replace", timeout=5 * BUDGET_S, check=False
        )
    except OSError as error:
        raise Permanent(f"{command[0]} cannot be run: {error.strerror}.") from error
    except subprocess.TimeoutExpired as error:
        raise Rejected(_too_long(target)) from error
    said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    if done.returncode == -signal.SIGALRM:
        raise Rejected(_too_long(target))
    if done.returncode < 0:
        raise Rejected(
            f"The compiled model was ended by {signal.Signals(-done.returncode).name} under {Path(command[0]).name}."
        )
    if done.returncode:
        raise Rejected(f"The compiled model failed under {Path(command[0]).name}: {said}.")


def _too_long(target: Target) -> str:
    return f"The compiled model for {target.name} did not finish one case within {4 * BUDGET_S} seconds under qemu."


def _rows(package: Package, feeds: Sequence[Tensors]) -> bytes:
    """Return the feeds of an ensemble as `trees/runner.c` reads them."""
    (spec,) = package.manifest.inputs
    return b"".join(np.ascontiguousarray(feed[spec.name]).tobytes() for feed in feeds)


def _plan(package: Package, feeds: Sequence[Tensors]) -> bytes:
    """Return the artifact's graph, parameters and the feeds as `runner.c` reads them."""
    manifest = package.manifest
    neo, build = manifest.neo, manifest.build
    assert neo is not None  # noqa: S101 - the caller has made the artifact
    assert build is not None  # noqa: S101 - the caller has made the artifact
    graph = msgspec.json.decode(package.file(neo.graph or "").read_bytes(), type=Graph)
    params = read_params(package.file(neo.params or ""))
    dtypes = [np.dtype(name) for name in graph.attrs.dltype[1]]
    shapes, storage = graph.attrs.shape[1], graph.attrs.storage_id[1]
    sizes = [0] * (max(storage) + 1)
    for dtype, shape, one in zip(dtypes, shapes, storage, strict=True):
        sizes[one] = max(sizes[one], dtype.itemsize * math.prod(shape))
    parts = [_numbers(build.threads, len(sizes), *sizes, len(shapes))]
    for dtype, shape, one in zip(dtypes, shapes, storage, strict=True):
        code = _CODES[dtype.name.rstrip("0123456789")]
        parts.append(_numbers(one, code, dtype.itemsize * 8, len(shape), *shape))

    def entry(node: int, output: int = 0, *_: int) -> int:
        return graph.node_row_ptr[node] + output

    names = {node.name: index for index, node in enumerate(graph.nodes)}
    parts.append(_numbers(len(params)))
    for name, array in params.items():
        if name not in names:
            raise Rejected(f"The parameter {name!r} is not in the graph.")
        parts += [_numbers(entry(names[name])), _bytes(np.ascontiguousarray(array).tobytes())]
    calls = [
        (index, node)
        for index, node in enumerate(graph.nodes)
        if node.op != "null" and node.attrs.get("func_name") != "__nop"
    ]
    parts.append(_numbers(len(calls)))
    for index, node in calls:
        arguments = [entry(*source) for source in node.inputs]
        arguments += [entry(index, output) for output in range(int(node.attrs["num_outputs"]))]
        parts += [_bytes(node.attrs["func_name"].encode() + b"\0"), _numbers(len(arguments), *arguments)]
    parts.append(_numbers(len(manifest.inputs), *(entry(names[spec.name]) for spec in manifest.inputs)))
    parts.append(_numbers(len(graph.heads), *(entry(*head) for head in graph.heads)))
    parts.append(_numbers(len(feeds)))
    for feed in feeds:
        parts += [_bytes(np.ascontiguousarray(feed[spec.name]).tobytes()) for spec in manifest.inputs]
    return b"".join(parts)


def _numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _bytes(data: bytes) -> bytes:
    return _numbers(len(data)) + data + b"\0" * (-len(data) % 8)
