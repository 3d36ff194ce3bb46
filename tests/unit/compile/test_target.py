from __future__ import annotations

import json
import platform
from dataclasses import replace
from typing import Any

import pytest

from lisiere.errors import ConfigError, Rejected
from lisiere.machine import this_machine
from lisiere_compile import target as target_module
from lisiere_compile.target import Target, describe_cpu, host_name, resolve_target, target_names

from .conftest import make_job, parse

HERE = {"x86_64": "X86_64", "aarch64": "ARM64"}.get(platform.machine(), "")


def for_platform(arch: str, os: str = "LINUX", accelerator: str | None = None, **options: Any) -> dict[str, Any]:
    document = make_job("m")
    del document["OutputConfig"]["TargetDevice"]
    document["OutputConfig"]["TargetPlatform"] = {"Os": os, "Arch": arch}
    if accelerator:
        document["OutputConfig"]["TargetPlatform"]["Accelerator"] = accelerator
    if options:
        document["OutputConfig"]["CompilerOptions"] = json.dumps(options)
    return document


def device(name: str, **options: Any) -> Target:
    changes = {"CompilerOptions": json.dumps(options)} if options else {}
    return resolve_target(parse(make_job("m", TargetDevice=name, **changes)))


def test_native_is_this_machine() -> None:
    target = device("native")
    assert (target.name, target.arch) == (host_name(), platform.machine())
    assert target.cpu
    assert not target.cross
    assert target.vector in (4, 8, 16)
    features = this_machine().features
    assert features is None or set(target.features) <= features


def test_native_leaves_out_what_a_hypervisor_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = this_machine()
    if not whole.features:
        pytest.skip("The features of this machine cannot be told.")
    hidden = device("native").features[0]
    less = replace(whole, features=whole.features - {hidden})
    monkeypatch.setattr(target_module, "this_machine", lambda: less)
    assert f"-{hidden}" in device("native").attributes
    assert hidden not in device("native").features


@pytest.mark.parametrize(
    ("name", "triple", "cpu", "vector", "registers", "l2"),
    [
        ("rasp3b", "armv7l-linux-gnueabihf", "cortex-a53", 4, 16, 512),
        ("rasp4b", "aarch64-linux-gnu", "cortex-a72", 4, 32, 1024),
        ("jetson_orin", "aarch64-linux-gnu", "cortex-a78ae", 4, 32, 256),
        ("ml_c5", "x86_64-linux-gnu", "skylake-avx512", 16, 32, 1024),
        ("x86_64", "x86_64-linux-gnu", "x86-64-v2", 4, 16, 256),
    ],
)
def test_a_device_is_what_the_table_and_llvm_say(
    name: str, triple: str, cpu: str, vector: int, registers: int, l2: int
) -> None:
    target = device(name)
    assert (target.name, target.triple, target.cpu) == (name, triple, cpu)
    assert (target.vector, target.registers, target.l2_bytes) == (vector, registers, l2 * 1024)


def test_features_are_the_devices() -> None:
    assert "dotprod" in device("rasp5").features
    assert device("rasp4b").features == ("fp-armv8", "neon")  # no cryptography, which a Raspberry Pi 4 lacks
    assert {"neon", "vfp4"} <= set(device("rasp3b").features)
    assert "avx512vnni" not in device("ml_c5").features


def test_every_name_is_a_target_that_llvm_builds_for() -> None:
    import tvm

    for name in target_names():
        target = device(name)
        assert tvm.target.Target(target.tvm()).attrs["mcpu"] == target.cpu
        assert target.features


def test_threads_are_of_the_target() -> None:
    assert device("rasp4b").threads == 1
    assert resolve_target(parse(make_job("m", TargetDevice="rasp4b")), threads=4).threads == 4


@pytest.mark.parametrize(
    ("arch", "name", "cpu"),
    [
        ("X86_64", "linux_x86_64", "x86-64-v2"),
        ("ARM64", "linux_aarch64", "generic"),
        ("ARM_EABIHF", "linux_armv7l", "generic"),
    ],
)
def test_a_platform_is_any_machine_of_its_kind(arch: str, name: str, cpu: str) -> None:
    target = resolve_target(parse(for_platform(arch)))
    assert (target.name, target.cpu) == (name, cpu)
    assert target.cross == (arch != HERE)


def test_a_platform_takes_a_cpu_and_features() -> None:
    same = resolve_target(parse(for_platform("ARM64", mcpu="cortex-a72")))
    assert (same.cpu, same.features, same.l2_bytes) == ("cortex-a72", ("fp-armv8", "neon"), 1 << 20)
    # SageMaker's own example, with GCC's name of a feature.
    assert "vfp4" in resolve_target(parse(for_platform("ARM_EABIHF", mattr=["+neon", "+vfpv4"]))).features
    assert "fma" in resolve_target(parse(for_platform("X86_64", mcpu="x86-64-v3", mattr=["-avx2"]))).features
    assert "avx2" not in resolve_target(parse(for_platform("X86_64", mcpu="x86-64-v3", mattr=["-avx2"]))).features


@pytest.mark.parametrize(("os", "arch"), [("ANDROID", "ARM64"), ("LINUX", "X86"), ("LINUX", "ARM_EABI")])
def test_other_platforms_are_refused_with_what_there_is(os: str, arch: str) -> None:
    with pytest.raises(Rejected, match=rf"{os} {arch} is no target here.*ARM_EABIHF.*rasp4b.*--cloud"):
        resolve_target(parse(for_platform(arch, os)))


@pytest.mark.parametrize("name", ["deeplens", "rk3399", "imx8qm", "sitara_am57x", "qcs605", "nonsense"])
def test_other_devices_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(Rejected, match=rf"{name}' is no target here.*rasp4b.*--cloud"):
        device(name)


def test_a_gpu_goes_to_the_cloud() -> None:
    with pytest.raises(Rejected, match=r"LINUX ARM64 NVIDIA is a GPU target.*--cloud.*jetson_nano"):
        resolve_target(parse(for_platform("ARM64", accelerator="NVIDIA")))
    with pytest.raises(Rejected, match=r"`gpu-code` asks for the GPU of 'jetson_nano'.*--cloud"):
        device("jetson_nano", **{"gpu-code": "sm_53", "trt-ver": "6.0.1"})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("native", {"mcpu": "z80"}, "'z80' is no CPU that LLVM knows"),
        ("rasp4b", {"mcpu": "znver3"}, "'znver3' is no CPU that LLVM knows for aarch64"),
        ("rasp4b", {"mattr": ["+avx"]}, r"\+avx: LLVM knows no such feature of aarch64"),
    ],
)
def test_unknown_cpus_and_features_are_errors(
    name: str, options: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        device(name, **options)
    assert caught.value.path == "$.OutputConfig.CompilerOptions"
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUs of x86-64")
@pytest.mark.parametrize(("cpu", "vector"), [("x86-64-v2", 4), ("x86-64-v3", 8), ("x86-64-v4", 16)])
def test_vectors_follow_the_cpu(cpu: str, vector: int) -> None:
    assert describe_cpu(cpu).vector == vector
