"""Targets: the machines that can be built for, in one table, and what a job's words for one resolve to.

A target is a CPU: what its name leaves open (vectors, registers, features) is asked of LLVM, and what LLVM does not
know (caches) stands in the table. To add a device, add its line to `_DEVICES`, and its CPU's to `_CACHES`.
Sources: the vendors' data sheets of the chips; SageMaker's OutputConfig for the names and `CompilerOptions`.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError, Rejected
from lisiere.machine import known_features, this_machine
from lisiere_compile.job import Job, compiler_options
from lisiere_compile.quiet import quiet

_KIB = 1024
# Architecture, as `platform.machine()` says -> LLVM's triple and what any CPU of the kind has.
_TRIPLES = {"armv7l": "armv7l-linux-gnueabihf", "aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}
_BASELINES = {"armv7l": "generic", "aarch64": "generic", "x86_64": "x86-64-v2"}
# The device -> its architecture and CPU. Those of a Jetson are its CPUs alone; jetson_tx2's code runs on its Denver
# cores too.
_DEVICES = {
    "rasp3b": ("armv7l", "cortex-a53"),
    "rasp4b": ("aarch64", "cortex-a72"),
    "rasp5": ("aarch64", "cortex-a76"),
    "jetson_nano": ("aarch64", "cortex-a57"),
    "jetson_tx2": ("aarch64", "cortex-a57"),
    "jetson_xavier": ("aarch64", "carmel"),
    "jetson_orin": ("aarch64", "cortex-a78ae"),
    "ml_c5": ("x86_64", "skylake-avx512"),
    "ml_m5": ("x86_64", "skylake-avx512"),
    "x86_64": ("x86_64", _BASELINES["x86_64"]),
    "aarch64": ("aarch64", _BASELINES["aarch64"]),
}
# CPU -> L1 data and L2 cache that one core reaches, in KiB; a shared L2 counts whole. Other CPUs get the careful one.
_CACHES = {
    "cortex-a53": (32, 512),
    "cortex-a57": (32, 2048),
    "cortex-a72": (32, 1024),
    "cortex-a76": (64, 512),
    "cortex-a78ae": (64, 256),
    "carmel": (64, 2048),
    "skylake-avx512": (32, 1024),
}
_CAREFUL_CACHES = (32, 256)
_PLATFORMS = {"X86_64": "x86_64", "ARM64": "aarch64", "ARM_EABIHF": "armv7l"}
_OPTIONS = "$.OutputConfig.CompilerOptions"
_GPU = (
    "This compiler builds for CPUs: `--cloud` gives the job to SageMaker. The CPU of a Jetson is a target by its name, "
    "such as jetson_nano, without `gpu-code`, `trt-ver` and `cuda-ver`."
)


@dataclass(frozen=True, slots=True)
class Target:
    """A machine to build for.

    Attributes:
        name: goes into the artifact's name, such as rasp4b.
        triple: LLVM's.
        arch: as `platform.machine()` says on the target.
        cpu: LLVM's name of the CPU.
        attributes: features to add or to leave out, such as +dotprod, in LLVM's form.
        features: what the code may use, in LLVM's names, sorted; those that `lisiere.machine` can tell of.
        vector: how many float32 numbers a vector register holds.
        registers: how many vector registers there are.
        l1_bytes, l2_bytes: the data caches that one core reaches; a shared one counts whole.
        threads: the most threads that one run uses.
    """

    name: str
    triple: str
    arch: str
    cpu: str
    attributes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    vector: int = 4
    registers: int = 16
    l1_bytes: int = _CAREFUL_CACHES[0] * _KIB
    l2_bytes: int = _CAREFUL_CACHES[1] * _KIB
    threads: int = 1

    def tvm(self) -> dict[str, Any]:
        """Return the target as TVM takes it."""
        target: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.attributes:
            target["mattr"] = list(self.attributes)
        if self.arch == "armv7l":
            target["mfloat-abi"] = "hard"
        return target

    @property
    def cross(self) -> bool:
        """Whether it is for another kind of machine than this one, and needs another tool chain."""
        machine = this_machine()
        return self.arch != machine.arch or ("linux" in self.triple) != (machine.system == "Linux")

    @property
    def runs_here(self) -> bool:
        """Whether this machine runs code for it, as far as can be told."""
        features = this_machine().features
        return not self.cross and (features is None or features.issuperset(self.features))


def target_names() -> tuple[str, ...]:
    """Return the names that `TargetDevice` may have here."""
    return (*_DEVICES, "native")


def host_name() -> str:
    """Return this machine's target name, such as linux_x86_64."""
    return f"{platform.system().lower()}_{platform.machine()}"


def resolve_target(job: Job, threads: int = 1) -> Target:
    """Return the target of a job.

    Raises:
        Rejected: it is a machine that this compiler does not build for.
        ConfigError: `mcpu` is no CPU of the architecture, or `mattr` has no feature of it.
    """
    device, where = job.OutputConfig.TargetDevice, job.OutputConfig.TargetPlatform
    options = compiler_options(job)
    if where is not None:
        wanted = " ".join(part for part in (where.Os, where.Arch, where.Accelerator) if part)
        if where.Accelerator is not None:
            raise Rejected(f"{wanted} is a GPU target. {_GPU}")
        arch = _PLATFORMS.get(where.Arch, "")
        if where.Os != "LINUX" or not arch:
            raise Rejected(
                f"{wanted} is no target here. There are LINUX with {', '.join(_PLATFORMS)}, and the devices "
                f"{', '.join(target_names())}; `--cloud` gives the job to SageMaker, which builds for more."
            )
        name, cpu = f"linux_{arch}", options.mcpu or _BASELINES[arch]
    else:
        name = device or "native"
        if name not in target_names():
            raise Rejected(
                f"The device {name!r} is no target here. There are {', '.join(target_names())}; `--cloud` gives the "
                "job to SageMaker, which builds for more."
            )
        if options.gpu:
            raise Rejected(f"`{options.gpu}` asks for the GPU of {name!r}. {_GPU}")
        if name == "native":
            return describe_cpu(options.mcpu, options.mattr, threads)
        arch, cpu = _DEVICES[name]
        cpu = options.mcpu or cpu
    return _describe(name, _TRIPLES[arch], arch, cpu, _attributes(arch, options.mattr), threads)


def describe_cpu(cpu: str | None = None, mattr: tuple[str, ...] = (), threads: int = 1) -> Target:
    """Return this machine as a target, with another CPU of its architecture where one is named.

    Raises:
        ConfigError: LLVM does not know the CPU or a feature.
    """
    from tvm.target import codegen

    machine = this_machine()
    triple = _TRIPLES[machine.arch] if machine.system == "Linux" else str(codegen.llvm_get_system_triple())
    attributes = _attributes(machine.arch, mattr)
    if cpu is None:
        cpu = str(codegen.llvm_get_system_cpu())
        if machine.features is not None:
            # A hypervisor may hide what the model of the CPU has.
            has = _describe(host_name(), triple, machine.arch, cpu, (), threads).features
            attributes = (*(f"-{hidden}" for hidden in has if hidden not in machine.features), *attributes)
    return _describe(host_name(), triple, machine.arch, cpu, attributes, threads, _own_caches())


def _describe(
    name: str,
    triple: str,
    arch: str,
    cpu: str,
    attributes: tuple[str, ...],
    threads: int,
    caches: tuple[int, int] | None = None,
) -> Target:
    """Ask LLVM what a CPU has."""
    import tvm
    from tvm.target import codegen

    bare = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    if cpu != "generic" and cpu not in {str(known) for known in codegen.llvm_get_cpu_archlist(bare)}:
        raise ConfigError(f"{cpu!r} is no CPU that LLVM knows for {arch}.", _OPTIONS)
    draft = Target(name, triple, arch, cpu, attributes)
    with quiet():  # LLVM tells the terminal of features that it does not know; here they are errors
        found = {str(feature) for feature in codegen.llvm_get_cpu_features(tvm.target.Target(draft.tvm()))}
    if unknown := [one for one in attributes if one.startswith("+") and one[1:] not in found]:
        raise ConfigError(f"{', '.join(unknown)}: LLVM knows no such feature of {arch}.", _OPTIONS)
    # Not by llvm_get_vector_width, which says 512 for every CPU of x86-64.
    vector, registers = 4, 32 if arch == "aarch64" else 16
    if "avx512f" in found:
        vector, registers = 16, 32
    elif "avx" in found:
        vector = 8
    l1, l2 = caches or _CACHES.get(cpu, _CAREFUL_CACHES)
    return Target(
        name=name,
        triple=triple,
        arch=arch,
        cpu=cpu,
        attributes=attributes,
        features=tuple(sorted(found & known_features(arch))),
        vector=vector,
        registers=registers,
        l1_bytes=l1 * _KIB,
        l2_bytes=l2 * _KIB,
        threads=threads,
    )


def _attributes(arch: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the features to ask for by name: a 32-bit ARM has NEON, whatever LLVM's generic one has."""
    # GCC's name stands in SageMaker's own example.
    plain = tuple(one.replace("vfpv", "vfp") for one in given)
    return ("+neon", *plain) if arch == "armv7l" and "-neon" not in plain and "+neon" not in plain else plain


def _own_caches() -> tuple[int, int] | None:
    """Return the L1 data and L2 cache of this machine's first core in KiB, as Linux tells them."""
    sizes: dict[str, int] = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((cache / part).read_text().strip() for part in ("level", "type", "size"))
            if kind != "Instruction" and size.endswith("K"):
                sizes[level] = int(size[:-1])
        except (OSError, ValueError):
            continue
    return (sizes["1"], sizes["2"]) if {"1", "2"} <= sizes.keys() else None
