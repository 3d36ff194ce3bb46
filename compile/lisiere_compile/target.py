"""Targets: what a job names, as what the code generator and the manifest need.

This is the place where further targets go. For now there is one, the CPU of the machine that compiles, under
two descriptions: `native` uses all that this CPU has, and a `TargetPlatform` runs on any CPU of its kind
unless `CompilerOptions.mcpu` says more.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from lisiere.errors import ConfigError, Rejected
from lisiere_compile.job import Job, compiler_options

# TargetPlatform's names -> this host's, and the CPU that every machine of the kind has.
_ARCHES = {"X86_64": ("x86_64", "x86-64-v2"), "ARM64": ("aarch64", "generic")}
_ONLY_HERE = "This compiler builds for this machine for now"


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to build for.

    Attributes:
        name: goes into the artifact's name, such as linux_x86_64.
        arch: as `platform.machine()` says on the target.
        cpu: LLVM's name of the CPU.
        vector: how many float32 numbers a vector register holds.
        registers: how many vector registers there are.
    """

    name: str
    arch: str
    cpu: str
    vector: int
    registers: int

    def tvm(self) -> dict[str, str | int]:
        """Return the target as TVM takes it."""
        return {"kind": "llvm", "mcpu": self.cpu}


def host_name() -> str:
    """Return this machine's target name, such as linux_x86_64."""
    return f"{platform.system().lower()}_{platform.machine()}"


def resolve_target(job: Job) -> Target:
    """Return the target of a job.

    Raises:
        Rejected: it is a machine that this compiler does not build for.
        ConfigError: `mcpu` is no CPU that LLVM knows.
    """
    device, where = job.OutputConfig.TargetDevice, job.OutputConfig.TargetPlatform
    cpu = compiler_options(job).mcpu
    if where is not None:
        arch, baseline = _ARCHES.get(where.Arch, ("", ""))
        if where.Os != "LINUX" or where.Accelerator is not None or f"linux_{arch}" != host_name():
            wanted = " ".join(part for part in (where.Os, where.Arch, where.Accelerator) if part)
            raise Rejected(f"{_ONLY_HERE}, which is {host_name()}, and not for {wanted}.")
        cpu = cpu or baseline
    elif device != "native":
        raise Rejected(
            f"{_ONLY_HERE}: give the `TargetDevice` `native` on a machine of the kind, in place of {device!r}."
        )
    return describe_cpu(cpu)


def describe_cpu(cpu: str | None = None) -> Target:
    """Return this machine as a target, with another CPU of its architecture where one is named.

    Raises:
        ConfigError: LLVM does not know the CPU.
    """
    import tvm
    from tvm.target import codegen

    if cpu is None:
        cpu = str(codegen.llvm_get_system_cpu())
    elif cpu != "generic" and cpu not in {str(name) for name in codegen.llvm_get_cpu_archlist(_triple_only())}:
        raise ConfigError(f"{cpu!r} is no CPU that LLVM knows for this machine.", "$.OutputConfig.CompilerOptions")
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    # Not by llvm_get_vector_width, which says 512 for every CPU of x86-64.
    vector, registers = 4, 32 if platform.machine() == "aarch64" else 16
    for feature, floats, count in (("avx512f", 16, 32), ("avx", 8, 16)):
        if platform.machine() == "x86_64" and codegen.llvm_cpu_has_features(feature, target):
            vector, registers = floats, count
            break
    return Target(host_name(), platform.machine(), cpu, vector, registers)


def _triple_only() -> object:
    import tvm

    return tvm.target.Target({"kind": "llvm"})
