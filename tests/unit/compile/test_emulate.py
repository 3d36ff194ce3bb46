from __future__ import annotations

import functools
import json
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lisiere.backends.graph import read_params
from lisiere.backends.requirements import obstacles
from lisiere.errors import Rejected
from lisiere.machine import Machine
from lisiere.models import open_package, write_manifest
from lisiere.models.manifest import Build, Verified
from lisiere.models.package import read_draft
from lisiere_compile import emulate, verify
from lisiere_compile.compiler import Log, compile_job
from lisiere_compile.emulate import Emulator, find_emulator
from lisiere_compile.link import link
from lisiere_compile.params import encode_params
from lisiere_compile.verify import Verdict
from support import cross_tools, require

from .conftest import Compile, dense, make_job, parse, write_package

DEVICES = {"rasp4b": "aarch64", "rasp3b": "armv7l"}
_FOLDER = tempfile.TemporaryDirectory(prefix="lisiere-tests-")


@functools.cache
def compiled(target: str) -> tuple[Path, Verdict]:
    """The dense model for a target and what the gate said. Never written to."""
    if target in DEVICES:
        cross_tools(DEVICES[target])
    log = Log()
    package = write_package(Path(_FOLDER.name) / target, dense())
    return compile_job(parse(make_job(package, TargetDevice=target)), package, log=log), log.verdict


@pytest.fixture
def artifact(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a target's artifact, to be changed."""

    def copy(target: str) -> Path:
        return Path(shutil.copytree(compiled(target)[0], tmp_path / "artifact"))

    return copy


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    cross_tools(DEVICES[request.param])
    return str(request.param)


def spoil(folder: Path) -> None:
    """Change the parameters of an artifact, as a compiler with a fault would have."""
    file = folder / "compiled.params"
    arrays = {name: array + np.float32(0.01) for name, array in read_params(file).items()}
    file.write_bytes(encode_params(arrays))
    write_manifest(read_draft(folder / "manifest.yaml"), folder / "manifest.yaml")


def test_an_artifact_for_another_machine_is_run_under_qemu(device: str) -> None:
    folder, verdict = compiled(device)
    build = open_package(folder).manifest.build
    assert build is not None
    assert (build.target, build.arch) == (device, DEVICES[device])
    assert build.verified == Verified(by="qemu-user", cases=4)
    assert build.min_glibc is not None
    assert "neon" in build.features
    assert verdict.max_difference < 1e-5


@pytest.mark.parametrize("target", ["native", *DEVICES])
def test_a_wrong_parameter_is_found_out(target: str, artifact: Callable[[str], Path]) -> None:
    folder = artifact(target)
    spoil(folder)
    verdict = verify.verify(folder, folder / "model.onnx")
    assert "wrong and was not kept" in verdict.refusal
    assert verdict.backend == ("qemu-user" if target in DEVICES else verdict.backend)


def test_several_threads_share_the_work(artifact: Callable[[str], Path], device: str) -> None:
    """The runner gives each task of a parallel region its part, one after the other."""
    folder = artifact(device)
    source = """
#include <stddef.h>
int (*__TVMBackendParallelLaunch)(int (*)(int, void*, void*), void*, int) = NULL;
typedef struct { void* sync; int tasks; } Group;
static int part(int task, void* group, void* sum) {
  *(int*)sum += 10 * ((Group*)group)->tasks + task;
  return 0;
}
int lisiere_probe(void** tensors, int* codes, int n, void* r, int* k, void* s) {
  int sum = 0;
  (void)codes; (void)n; (void)r; (void)k; (void)s;
  if (!__TVMBackendParallelLaunch || __TVMBackendParallelLaunch(part, &sum, 0)) return -1;
  return sum == 3 * 30 + 0 + 1 + 2 ? 0 : -1;
}
"""
    replace_kernels(folder, device, source, threads=3)
    assert len(run(folder)) == 1


def replace_kernels(folder: Path, device: str, source: str, threads: int = 1) -> None:
    """Put another library into an artifact, whose first kernel is `lisiere_probe`."""
    graph = json.loads((folder / "compiled.json").read_text())
    for node in graph["nodes"]:
        if node["op"] != "null":
            node["attrs"]["func_name"] = "lisiere_probe"
    (folder / "compiled.json").write_text(json.dumps(graph))
    manifest = read_draft(folder / "manifest.yaml")
    assert manifest.build is not None
    emulator = find_emulator(manifest.build)
    assert isinstance(emulator, Emulator)
    library = link(folder, source, None, "new.so", emulator.target)
    shutil.move(library, folder / "compiled.so")
    (folder / "wrappers.c").unlink()
    build = msgspec.structs.replace(manifest.build, threads=threads)
    write_manifest(msgspec.structs.replace(manifest, build=build), folder / "manifest.yaml")


def run(folder: Path) -> list[dict[str, np.ndarray]]:
    package = open_package(folder)
    assert package.manifest.build is not None
    emulator = find_emulator(package.manifest.build)
    assert isinstance(emulator, Emulator)
    return emulator.run(package, [{"x": np.zeros((1, 8), np.float32)}])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return -1;", "a kernel failed: lisiere_probe"),
        ("*(volatile int*)0 = 1; return 0;", "ended by SIGSEGV under qemu-"),
        ("__builtin_trap();", "ended by SIG(ILL|TRAP) under qemu-"),
        ("for (;;) {}", "did not finish one case within 4 seconds"),
    ],
)
def test_how_kernels_fail_is_told(
    body: str, message: str, artifact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate, "BUDGET_S", 1)
    folder = artifact("rasp4b")
    replace_kernels(folder, "rasp4b", f"int lisiere_probe(void) {{ {body} }}")
    with pytest.raises(Rejected, match=message):
        run(folder)


def test_a_missing_kernel_is_named(artifact: Callable[[str], Path]) -> None:
    folder = artifact("rasp4b")
    replace_kernels(folder, "rasp4b", "int other(void) { return 0; }")
    with pytest.raises(Rejected, match="lacks the kernel lisiere_probe"):
        run(folder)


def test_without_qemu_the_manifest_says_that_nothing_ran_it(
    compile_model: Compile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cross_tools("aarch64")
    gcc = shutil.which("aarch64-linux-gnu-gcc")
    assert gcc is not None
    # The check is a process of its own, so what it finds is what the path says.
    (tmp_path / "bin").mkdir()
    for name in ("aarch64-linux-gnu-gcc", "gcc", "cc"):
        (tmp_path / "bin" / name).symlink_to(gcc if "aarch64" in name else str(shutil.which("gcc")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    folder, log = compile_model(dense(), TargetDevice="rasp4b")
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.verified == Verified(by="nothing", note="qemu-aarch64 is not installed (Debian's package qemu-user)")
    assert log.verdict.backend == "nothing"


def build_of(**fields: object) -> Build:
    whole = {"target": "t", "arch": "aarch64", "cpu": "c", "source_sha256": "0" * 64, "tools": {}, **fields}
    return Build(**whole)  # type: ignore[arg-type]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert find_emulator(build_of(arch="riscv64")) == "qemu-user is not known to run riscv64"
    monkeypatch.setenv("QEMU_LD_PREFIX", str(tmp_path))
    assert "libc6-armhf-cross" in str(find_emulator(build_of(arch="armv7l")))
    avx512 = build_of(arch="x86_64", features=("avx2", "avx512f", "avx512vnni"))
    assert find_emulator(avx512) == "neither this machine nor qemu has avx512f, avx512vnni"


def test_qemu_runs_x86_that_this_machine_lacks(compile_model: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without AVX2, where a target has it."""
    if platform.machine() != "x86_64":
        pytest.skip("This machine is no x86-64.")
    require(shutil.which("qemu-x86_64"), "qemu-x86_64")
    folder, _ = compile_model(dense(), TargetDevice="x86_64", CompilerOptions='{"mcpu": "x86-64-v3"}')
    old = Machine("Linux", "x86_64", frozenset({"sse2"}), "2.99", 1, None)
    build = open_package(folder).manifest.build
    assert build is not None
    assert "avx2" in str(obstacles(build, old)[0])
    monkeypatch.setattr(verify, "this_machine", lambda: old)
    verdict = verify.verify(folder, folder / "model.onnx")
    assert (verdict.backend, verdict.refusal) == ("qemu-user", "")
