"""The machine that this runs on: what compiled code needs to know of one before it is loaded.

Features have LLVM's names, since those stand in an artifact's manifest; only the ones that a compiler uses of its own
accord are told, so neither cryptography nor what is for the kernel. Sources: Linux's cpuinfo flags (x86:
arch/x86/include/asm/cpufeatures.h, ARM: Documentation/arch/arm64/elf_hwcaps.rst) and LLVM's X86.td, ARM.td, AArch64.td.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

# LLVM's feature -> the kernel's flag where it is another name.
_X86 = {
    **{name: name for name in ("avx", "avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "avx512ifma")},
    **{
        name: name
        for name in ("bmi2", "cmov", "cx16", "f16c", "fma", "fma4", "gfni", "mmx", "movbe", "popcnt", "sse", "sse2")
    },
    **{name: name for name in ("sse4a", "ssse3", "tbm", "xop")},
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512fp16": "avx512_fp16",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnni": "avx_vnni",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
}
_ARM64 = {
    "bf16": "bf16",
    "complxnum": "fcma",
    "dotprod": "asimddp",
    "fp-armv8": "fp",
    "fp16fml": "asimdfhm",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "lse": "atomics",
    "neon": "asimd",
    "rcpc": "lrcpc",
    "rdm": "asimdrdm",
    "sve": "sve",
    "sve2": "sve2",
}
# A 32-bit kernel and a 64-bit one name the same things differently.
_ARM32 = {
    "bf16": "asimdbf16 bf16",
    "dotprod": "asimddp",
    "fp-armv8": "v8 asimd",
    "fullfp16": "asimdhp",
    "hwdiv": "idivt asimd",
    "hwdiv-arm": "idiva asimd",
    "i8mm": "i8mm",
    "neon": "neon asimd",
    "v8": "v8 asimd",
    "vfp3": "vfpv3 asimd",
    "vfp4": "vfpv4 asimd",
}
_FLAGS = {"x86_64": _X86, "aarch64": _ARM64, "armv7l": _ARM32}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, as far as it can be told; None stands for what cannot.

    Attributes:
        system: as `platform.system()` says.
        arch: what this process runs as: armv7l for a 32-bit one on a 64-bit kernel.
        features: the CPU's, in LLVM's names; what not all cores have is left out.
        glibc: its version, such as 2.36.
        cores: how many this process may use.
        memory_bytes: what is free for new processes.
    """

    system: str
    arch: str
    features: frozenset[str] | None
    glibc: str | None
    cores: int
    memory_bytes: int | None


def this_machine() -> Machine:
    """Look at this machine."""
    arch = process_arch(platform.machine(), wide=sys.maxsize > 1 << 32)
    return Machine(
        system=platform.system(),
        arch=arch,
        features=cpu_features(_text("/proc/cpuinfo"), arch),
        glibc=_glibc(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=available_memory(_text("/proc/meminfo")),
    )


def process_arch(machine: str, wide: bool) -> str:
    """Return what a process runs as: a 64-bit kernel names itself to 32-bit processes too."""
    if machine == "arm64":  # macOS's name
        return "aarch64"
    if wide:
        return machine
    return {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)


def known_features(arch: str) -> frozenset[str]:
    """Return the features that can be told of a CPU of an architecture, in LLVM's names."""
    return frozenset(_FLAGS.get(arch, {}))


def cpu_features(cpuinfo: str, arch: str) -> frozenset[str] | None:
    """Return the features that all cores have, in LLVM's names.

    Args:
        cpuinfo: what Linux says in /proc/cpuinfo.
        arch: of the process, as in `Machine`.
    """
    cores: list[set[str]] = []
    eighth = False
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            cores.append(set(value.split()))
        elif key.strip() == "CPU architecture":
            eighth = value.strip() in ("8", "AArch64")
    table = _FLAGS.get(arch)
    if table is None or not cores:
        return None
    flags = set.intersection(*cores) | ({"v8"} if eighth else set())
    return frozenset(name for name, said in table.items() if flags & set(said.split()))


def available_memory(meminfo: str) -> int | None:
    """Return the bytes that /proc/meminfo calls available."""
    for line in meminfo.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _glibc() -> str | None:
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return None
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ").strip() or None
    except OSError:  # another C library
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
