from __future__ import annotations

from dataclasses import replace

import pytest

from lisiere.backends.requirements import obstacles, version
from lisiere.machine import Machine
from lisiere.models.manifest import Build

PI4 = Machine("Linux", "aarch64", frozenset({"fp-armv8", "neon"}), "2.31", 4, 1 << 30)
BUILD = Build(
    target="rasp4b",
    triple="aarch64-linux-gnu",
    arch="aarch64",
    cpu="cortex-a72",
    features=("fp-armv8", "neon"),
    min_glibc="2.27",
    source_sha256="0" * 64,
    tools={},
)


def changed(**fields: object) -> Build:
    whole = {name: getattr(BUILD, name) for name in BUILD.__struct_fields__} | fields
    return Build(**whole)


def test_nothing_keeps_an_artifact_from_its_own_machine() -> None:
    assert obstacles(BUILD, PI4) == ()
    assert obstacles(changed(min_glibc=None), PI4) == ()


@pytest.mark.parametrize(
    ("fields", "machine", "kind", "says", "fix"),
    [
        ({"arch": "armv7l", "features": ("vfp4",)}, {}, "arch", "for armv7l, but this machine is aarch64", "aarch64"),
        (
            {"cpu": "cortex-a76", "features": ("dotprod", "lse", "neon")},
            {},
            "features",
            "the CPU cortex-a76, but this machine's lacks dotprod, lse",
            "for aarch64, or for `native`",
        ),
        ({"min_glibc": "2.36"}, {}, "glibc", "needs glibc 2.36 or newer, but this machine has 2.31", "ziglang"),
        ({}, {"glibc": None}, "glibc", "but this machine has none", "zig"),
        ({}, {"glibc": "2.4"}, "glibc", "has 2.4", "zig"),  # by numbers, not by letters
        ({}, {"system": "Darwin"}, "system", "for Linux, but this machine is Darwin", "native"),
        ({}, {"arch": "riscv64"}, "arch", "this machine is riscv64", "the backend onnx"),
    ],
)
def test_what_lacks_is_named_with_what_helps(
    fields: dict[str, object], machine: dict[str, object], kind: str, says: str, fix: str
) -> None:
    (only,) = obstacles(changed(**fields), replace(PI4, **machine))  # type: ignore[arg-type]
    assert only.kind == kind
    assert says in only.sentence
    assert fix in only.fix
    assert str(only) == f"{only.sentence} {only.fix}"


def test_features_that_cannot_be_told_keep_nothing_back() -> None:
    assert obstacles(changed(features=("sve2",)), replace(PI4, features=None)) == ()


def test_an_artifact_of_another_compiler_asks_for_its_architecture_alone() -> None:
    bare = Build(target="ml_c5", arch="aarch64", cpu="", source_sha256="0" * 64, tools={})
    assert obstacles(bare, replace(PI4, system="Darwin", glibc=None)) == ()


def test_versions_are_numbers() -> None:
    assert version("2.36") > version("2.4")
