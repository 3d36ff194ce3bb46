"""What an artifact asks of the machine that runs it, and what of that a machine lacks.

Code for a richer CPU ends the process by an illegal instruction, so this is asked before anything is loaded.
"""

from __future__ import annotations

from msgspec import Struct

from lisiere.machine import Machine
from lisiere.models.manifest import Build

# Architecture -> the target that runs on every machine of the kind.
_ANY = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7l": "rasp3b"}


class Obstacle(Struct, frozen=True):
    """One thing that keeps an artifact from running: what it is, and what would help, as sentences."""

    kind: str
    sentence: str
    fix: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.fix}"


def obstacles(build: Build, machine: Machine) -> tuple[Obstacle, ...]:
    """Return what keeps an artifact from running on a machine; nothing when it can, as far as can be told."""
    found: list[Obstacle] = []
    compile_it = (
        f"Compile the model for {_ANY[machine.arch]}, or for `native` on a machine of the same kind."
        if machine.arch in _ANY
        else "There is no target for such a machine; the backend onnx may run the model."
    )
    if "linux" in build.triple and machine.system != "Linux":
        found.append(
            Obstacle(
                "system", f"The artifact was compiled for Linux, but this machine is {machine.system}.", compile_it
            )
        )
    if build.arch != machine.arch:
        sentence = f"The artifact was compiled for {build.arch}, but this machine is {machine.arch}."
        return (*found, Obstacle("arch", sentence, compile_it))
    if machine.features is not None and (lacking := sorted(set(build.features) - machine.features)):
        found.append(
            Obstacle(
                "features",
                f"The artifact was compiled for the CPU {build.cpu}, but this machine's lacks {', '.join(lacking)}.",
                compile_it,
            )
        )
    if build.min_glibc is not None and (machine.glibc is None or version(machine.glibc) < version(build.min_glibc)):
        has = "has none" if machine.glibc is None else f"has {machine.glibc}"
        found.append(
            Obstacle(
                "glibc",
                f"The artifact needs glibc {build.min_glibc} or newer, but this machine {has}.",
                "Compile it where GCC comes with an older glibc, or by zig (`pip install ziglang`, without a GCC for "
                "the target), which links for 2.17; or update this machine's system.",
            )
        )
    return tuple(found)


def version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version such as 2.36."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())
