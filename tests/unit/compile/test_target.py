from __future__ import annotations

import platform
from typing import Any

import pytest

from lisiere.errors import ConfigError, Rejected
from lisiere_compile.target import describe_cpu, host_name, resolve_target

from .conftest import make_job, parse

HERE = {"x86_64": "X86_64", "aarch64": "ARM64"}.get(platform.machine(), "")
OTHER = "ARM64" if HERE == "X86_64" else "X86_64"


def for_platform(**fields: Any) -> dict[str, Any]:
    document = make_job("m")
    del document["OutputConfig"]["TargetDevice"]
    document["OutputConfig"]["TargetPlatform"] = fields
    return document


def test_native_is_this_machine() -> None:
    target = resolve_target(parse(make_job("m")))
    assert (target.name, target.arch) == (host_name(), platform.machine())
    assert target.cpu
    assert target.vector in (4, 8, 16)


@pytest.mark.skipif(not HERE or platform.system() != "Linux", reason="no TargetPlatform names this machine")
def test_this_platform_is_built_for_any_machine_of_its_kind() -> None:
    assert resolve_target(parse(for_platform(Os="LINUX", Arch=HERE))).cpu in ("x86-64-v2", "generic")


@pytest.mark.parametrize(
    "fields",
    [
        {"Os": "LINUX", "Arch": OTHER},
        {"Os": "ANDROID", "Arch": HERE or OTHER},
        {"Os": "LINUX", "Arch": "ARM_EABIHF"},
        {"Os": "LINUX", "Arch": HERE or OTHER, "Accelerator": "NVIDIA"},
    ],
)
def test_other_platforms_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(Rejected, match="builds for this machine for now"):
        resolve_target(parse(for_platform(**fields)))


@pytest.mark.parametrize("device", ["rasp4b", "jetson_nano", "ml_c5", "nonsense"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(Rejected, match=f"builds for this machine for now.*{device}"):
        resolve_target(parse(make_job("m", TargetDevice=device)))


def test_an_unknown_cpu_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no CPU that LLVM knows") as caught:
        resolve_target(parse(make_job("m", CompilerOptions='{"mcpu": "z80"}')))
    assert caught.value.path == "$.OutputConfig.CompilerOptions"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="CPUs of x86-64")
@pytest.mark.parametrize(("cpu", "vector"), [("x86-64-v2", 4), ("x86-64-v3", 8), ("x86-64-v4", 16)])
def test_vectors_follow_the_cpu(cpu: str, vector: int) -> None:
    assert describe_cpu(cpu).vector == vector
