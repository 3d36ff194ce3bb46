from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisiere.errors import Rejected
from lisiere_compile.codegen import build
from lisiere_compile.target import describe_cpu


def kernel(broken: bool) -> Any:
    """A kernel that adds one; a broken one calls an intrinsic that has no code on a CPU."""
    from tvm import te, tirx

    source = te.placeholder((8,), "float32", "a")

    def element(i: Any) -> Any:
        if broken:
            return tirx.call_intrin("float32", "tirx.lookup_param", source[i])
        return source[i] + tirx.const(1, "float32")

    return te.create_prim_func([source, te.compute((8,), element, "b")])


def test_a_schedule_that_does_not_compile_costs_one_kernel_its_speed(tmp_path: Path) -> None:
    plain = {"one": kernel(False), "two": kernel(False)}
    target = describe_cpu()
    assert build(plain, plain, target, tmp_path / "k.o") == ()
    (tmp_path / "k.o").unlink()
    assert build({**plain, "two": kernel(True)}, plain, target, tmp_path / "k.o") == ("two",)
    assert (tmp_path / "k.o").stat().st_size > 0


def test_a_kernel_that_does_not_compile_as_given_is_refused(tmp_path: Path) -> None:
    broken = {"one": kernel(True)}
    with pytest.raises(Rejected, match="cannot be compiled"):
        build(broken, broken, describe_cpu(), tmp_path / "k.o")


def test_a_full_disk_is_an_error_rather_than_the_end_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "k.o").symlink_to("/dev/full")
    plain = {"one": kernel(False)}
    with pytest.raises(OSError, match="No space left"):
        build(plain, plain, describe_cpu(), tmp_path / "k.o")
    assert [file.name for file in tmp_path.iterdir()] == ["k.o"]
