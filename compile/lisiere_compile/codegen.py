"""Code generation: scheduled kernels -> one object file, by TVM and its LLVM."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends.onnx import first_line
from lisiere_compile.target import Target

_PIPELINE = "lisiere"
_STACK_BYTES = 64 << 10  # of one buffer


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
        module = compile_kernels(scheduled, target)
    except Exception:  # noqa: BLE001 - TVM raises in many classes
        # When each compiles alone, but not together, none is kept.
        failed = tuple(name for name in scheduled if not _compiles(name, scheduled[name], target)) or tuple(scheduled)
        mixed = {name: (functions if name in failed else scheduled)[name] for name in scheduled}
        try:
            module = compile_kernels(mixed, target)
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
        compile_kernels({name: function}, target)
    except Exception:  # noqa: BLE001 - TVM raises in many classes
        return False
    return True


def compile_kernels(functions: Mapping[str, Any], target: Target) -> Any:
    """Compile PrimFuncs together; return TVM's executable, whose functions have their names."""
    import tvm

    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    # Loops that a tile does not divide run their last tile apart, so that the others need not ask where they end.
    options = {"s_tir.LoopPartition": {"partition_const_loop": True}}
    tvm.tirx.compilation_pipeline.register_tir_pipeline(_PIPELINE, _pipeline)
    with tvm.transform.PassContext(opt_level=3, config=options):
        return tvm.compile(tvm.IRModule(named), tvm.target.Target(target.tvm()), tir_pipeline=_PIPELINE)


def _pipeline() -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    """TVM's own pipeline, but small buffers are on the stack: it would ask the host for those of every tile."""
    import tvm

    lower, _, device = tvm.tirx.compilation_pipeline.get_tir_pipeline("s_tir")
    passes = tvm.tirx.transform

    def keep(module: Any, _context: Any) -> Any:
        for name, function in module.functions_items():
            module.update_func(name, _on_stack(function))
        return module

    def host() -> Any:
        kept = tvm.transform.module_pass(keep, opt_level=0)
        return tvm.transform.Sequential([kept, passes.LowerTVMBuiltin(), passes.LowerIntrin()])

    return lower, host, device


def _on_stack(function: Any) -> Any:
    """Mark the buffers of a PrimFunc that the stack has room for."""
    import tvm
    import tvm_ffi

    yes = tvm.tirx.const(1, "int32")

    def visit(node: Any) -> Any:
        kind = node.buffer.ty
        if not all(isinstance(size, tvm.tirx.IntImm | int) for size in kind.shape):
            return node
        dtype = tvm.DataType(str(kind.dtype))  # of a vector, as the elements are by now
        if math.prod(int(size) for size in kind.shape) * dtype.bits * dtype.lanes > 8 * _STACK_BYTES:
            return node
        return tvm.tirx.AllocBuffer(node.buffer, {**node.annotations, "disable_lower_builtin": yes})

    return tvm_ffi.structural_map(function, [(tvm.tirx.AllocBuffer, visit)])
