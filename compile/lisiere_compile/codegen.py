"""Code generation: scheduled kernels -> one object file, by TVM and its LLVM."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends.onnx import first_line
from lisiere_compile.target import Target


def build(scheduled: Mapping[str, Any], functions: Mapping[str, Any], target: Target, file: Path) -> tuple[str, ...]:
    """Compile the kernels into an object file; a schedule that cannot be lowered costs that kernel its speed only.

    Args:
        scheduled: kernel name -> PrimFunc to compile.
        functions: kernel name -> PrimFunc as lowering gave it, which takes the place of one that does not compile.
        target: the machine.
        file: the object file to write.

    Returns:
        The kernels that were compiled as they were given, in order.

    Raises:
        Rejected: TVM cannot compile a kernel even as it was given.
    """
    failed: tuple[str, ...] = ()
    try:
        module = _module(scheduled, target)
    except Exception:  # noqa: BLE001 - TVM raises in many classes
        # When each compiles alone, but not together, none is kept.
        failed = tuple(name for name in scheduled if not _compiles(name, scheduled[name], target)) or tuple(scheduled)
        mixed = {name: (functions if name in failed else scheduled)[name] for name in scheduled}
        try:
            module = _module(mixed, target)
        except Exception as error:  # TVM raises in many classes
            raise Rejected(f"The kernels cannot be compiled for {target.cpu}: {first_line(error)}") from error
    _write(module, file)
    return failed


def _write(module: Any, file: Path) -> None:
    """Write the object, on Linux through memory: LLVM ends the whole process when a disk refuses to take more.

    Raises:
        OSError: the file cannot be written.
    """
    if not hasattr(os, "memfd_create"):
        module.mod.write_to_file(str(file))
        return
    with os.fdopen(os.memfd_create("kernels.o"), "rb") as memory:
        # TVM goes by the ending of the name.
        link = file.with_name(f"{file.name}.memory.o")
        link.symlink_to(f"/proc/self/fd/{memory.fileno()}")
        try:
            module.mod.write_to_file(str(link))
            with file.open("wb") as to:
                shutil.copyfileobj(memory, to)
        finally:
            link.unlink()


def _compiles(name: str, function: Any, target: Target) -> bool:
    try:
        _module({name: function}, target)
    except Exception:  # noqa: BLE001 - TVM raises in many classes
        return False
    return True


def _module(functions: Mapping[str, Any], target: Target) -> Any:
    import tvm

    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    # Loops that a tile does not divide run their last tile apart, so that the others need not ask where they end.
    options = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    with tvm.transform.PassContext(opt_level=3, config=options):
        return tvm.compile(tvm.IRModule(named), tvm.target.Target(target.tvm()))
