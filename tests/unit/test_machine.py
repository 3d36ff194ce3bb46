from __future__ import annotations

import platform
import sys

import pytest

from lisiere.machine import available_memory, cpu_features, known_features, process_arch, this_machine

PI4 = """\
processor	: 0
Features	: fp asimd evtstrm crc32 cpuid
CPU architecture: 8
"""
ORIN = """\
processor	: 0
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU architecture: 8

processor	: 1
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop
CPU architecture: 8
"""
PI3_32 = """\
processor	: 0
Features	: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU architecture: {}
"""


def test_features_have_the_names_of_llvm() -> None:
    assert cpu_features(PI4, "aarch64") == frozenset({"fp-armv8", "neon"})
    assert cpu_features("flags\t\t: fpu sse sse2 pni sse4_1 avx_vnni avx512_vnni abm\n", "x86_64") == frozenset(
        {"sse", "sse2", "sse3", "sse4.1", "avxvnni", "avx512vnni", "lzcnt"}
    )


def test_what_not_all_cores_have_is_not_there() -> None:
    found = cpu_features(ORIN, "aarch64")
    assert found is not None
    assert "lse" in found
    assert "dotprod" not in found


def test_a_32_bit_process_is_told_the_same_by_both_kernels() -> None:
    thirty_two = cpu_features(PI3_32.format(8), "armv7l")
    assert thirty_two == cpu_features(PI4, "armv7l")
    assert thirty_two == frozenset({"fp-armv8", "hwdiv", "hwdiv-arm", "neon", "v8", "vfp3", "vfp4"})
    # A CPU of the seventh architecture, such as the Raspberry Pi 2's.
    assert cpu_features(PI3_32.format(7), "armv7l") == thirty_two - {"fp-armv8", "v8"}


@pytest.mark.parametrize(("text", "arch"), [("", "x86_64"), (PI4, "riscv64")])
def test_what_cannot_be_told_is_none(text: str, arch: str) -> None:
    assert cpu_features(text, arch) is None


@pytest.mark.parametrize(
    ("machine", "wide", "arch"),
    [
        ("x86_64", True, "x86_64"),
        ("x86_64", False, "i686"),
        ("aarch64", True, "aarch64"),
        ("aarch64", False, "armv7l"),
        ("armv7l", False, "armv7l"),
        ("arm64", True, "aarch64"),
    ],
)
def test_a_process_is_what_it_runs_as(machine: str, wide: bool, arch: str) -> None:
    assert process_arch(machine, wide) == arch


def test_memory_is_what_is_free() -> None:
    assert available_memory("MemTotal: 9 kB\nMemAvailable:    2048 kB\n") == 2 << 20
    assert available_memory("") is None


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells")
def test_this_machine_is_told() -> None:
    machine = this_machine()
    assert machine.system == "Linux"
    assert machine.cores >= 1
    assert machine.memory_bytes
    if platform.libc_ver()[0] == "glibc":
        assert machine.glibc == platform.libc_ver()[1]
    if machine.arch in ("x86_64", "aarch64"):
        assert machine.features
        assert machine.features <= known_features(machine.arch)
