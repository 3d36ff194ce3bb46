from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lisiere.errors import Permanent, Rejected
from lisiere_compile.link import Needs, compiler_version, find_compiler, link, read_needs
from lisiere_compile.program import COPY, Call, Program, Value, Wrapper
from lisiere_compile.target import Target, describe_cpu
from lisiere_compile.wrapper import wrapper_source
from support import cross_tools

PI3 = Target("rasp3b", "armv7l-linux-gnueabihf", "armv7l", "cortex-a53")
PI4 = Target("rasp4b", "aarch64-linux-gnu", "aarch64", "cortex-a72")
SOURCE = "#include <math.h>\nfloat f(float x) { return expf(x); }\n"


def test_cc_comes_first_and_may_have_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", f"{sys.executable} -x")
    assert find_compiler() == [sys.executable, "-x"]


def test_without_any_compiler_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(Permanent, match=r"\$CC, cc, gcc, clang and `python -m ziglang cc`"):
        find_compiler()


def test_zig_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert find_compiler() == [sys.executable, "-m", "ziglang", "cc"]


@pytest.mark.parametrize(
    ("target", "package"), [(PI4, "gcc-aarch64-linux-gnu"), (PI3, "gcc-arm-linux-gnueabihf")], ids=lambda one: str(one)
)
def test_without_a_cross_compiler_both_packages_are_named(
    target: Target, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", sys.executable)  # which is for this machine
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(Permanent, match=rf"{target.name} was found.* {package} .*ziglang"):
        find_compiler(target)


def test_zig_links_for_another_machine_with_an_old_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert find_compiler(PI4)[-2:] == ["-target", "aarch64-linux-gnu.2.17"]
    assert find_compiler(PI3)[-2:] == ["-target", "arm-linux-gnueabihf.2.17"]


@pytest.mark.parametrize("target", [PI4, PI3], ids=lambda target: target.arch)
def test_a_cross_compiler_links_for_its_machine(target: Target, tmp_path: Path) -> None:
    cross_tools(target.arch)
    library = link(tmp_path, SOURCE, None, "x.so", target)
    assert library.read_bytes()[18:20] == {"aarch64": b"\xb7\0", "armv7l": b"\x28\0"}[target.arch]  # e_machine
    needs = read_needs(library)
    assert set(needs.libraries) <= {"libc.so.6", "libm.so.6"}
    assert needs.glibc == "2.27"  # where expf got the version that it has now


def test_division_on_a_32_bit_arm_needs_no_other_library(tmp_path: Path) -> None:
    """GCC's own helpers would come from libgcc_s.so.1 otherwise."""
    cross_tools("armv7l")
    source = "long long f(long long a, long long b) { return a / b; }\n"
    assert set(read_needs(link(tmp_path, source, None, "x.so", PI3)).libraries) <= {"libc.so.6", "libm.so.6"}


@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_library_that_needs_more_than_libc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "extra.c").write_text("int extra(void) { return 1; }\n")
    compiler = find_compiler()
    subprocess.run([*compiler, "-shared", "-fPIC", "-o", "libextra.so", "extra.c"], cwd=tmp_path, check=True)
    monkeypatch.setenv("CC", f"{compiler[0]} -Wl,--no-as-needed libextra.so")
    with pytest.raises(Rejected, match=r"need libextra.so, and a device may have libc and libm alone"):
        link(tmp_path, SOURCE, None, "x.so", describe_cpu())


def test_what_is_not_elf_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.dylib").write_bytes(b"\xcf\xfa\xed\xfe" * 16)
    assert read_needs(tmp_path / "x.dylib") == Needs()


def test_what_needs_more_than_libc_is_refused_by_name(tmp_path: Path) -> None:
    source = "extern int some_runtime(void); int f(void) { return some_runtime(); }"
    with pytest.raises(Rejected, match="some_runtime"):
        link(tmp_path, source, None, "x.so")


def test_a_compiler_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(Rejected, match="could not link"):
        link(tmp_path, "", None, "x.so")
    assert compiler_version(["/no/such/thing"]) == "unknown"


def test_numbers_are_passed_to_the_kernel(tmp_path: Path) -> None:
    """A stand-in kernel records what a wrapper hands it between the tensors."""
    slots = (None, -(1 << 63), 0.1, 7, None)
    source = wrapper_source({Wrapper("k", slots, ("float32", "bool")): "lisiere_k"})
    source += """
int64_t integers[2]; double real; int dtype_code, kinds[5];
int __tvm_ffi_k(void* self, TVMFFIAny* a, int32_t n, TVMFFIAny* r) {
  int i;
  (void)self; (void)r;
  for (i = 0; i < n; ++i) kinds[i] = a[i].type_index;
  integers[0] = a[1].v_int64; real = a[2].v_float64; integers[1] = a[3].v_int64;
  dtype_code = ((DLTensor*)a[4].v_ptr)->dtype.code;
  return 0;
}
"""
    library = ctypes.CDLL(str(link(tmp_path, source, None, "x.so")))
    tensors = [(ctypes.c_uint8 * 64)() for _ in range(2)]
    tensors[1][20:22] = [1, 8]  # code uint, 8 bits
    values = (ctypes.c_void_p * 2)(*(ctypes.addressof(tensor) for tensor in tensors))
    assert library.lisiere_k(values, (ctypes.c_int * 2)(7, 13), 2, None, None, None) == 0
    assert list((ctypes.c_int64 * 2).in_dll(library, "integers")) == [-(1 << 63), 7]
    assert ctypes.c_double.in_dll(library, "real").value == 0.1
    assert ctypes.c_int.in_dll(library, "dtype_code").value == 6
    assert list((ctypes.c_int * 5).in_dll(library, "kinds")) == [7, 1, 3, 1, 7]
    assert tensors[1][20] == 1  # the host's own tensor is left as it was


def test_each_way_of_calling_a_kernel_has_a_symbol() -> None:
    one, two, three = (Value(key, (1,), "float32") for key in range(3))
    calls = (
        Call("k", (one, 1), (two,)),
        Call("k", (two, 2), (three,)),
        Call("k", (two, 1), (three,)),
        Call(COPY, (one,), (two,)),
    )
    symbols = Program((one,), (three,), calls, {}, {}).symbols()
    assert list(symbols.values()) == ["lisiere_k", "lisiere_k_v2", f"lisiere_{COPY}"]
