"""Code generation: scheduled kernels -> one object file, by TVM and its LLVM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends.onnx import first_line
from lisiere_compile.kernels.rules import schedule
from lisiere_compile.target import Target


@dataclass(frozen=True, slots=True)
class Generated:
    """What code generation did: the kernels that no schedule fitted, in order."""

    unscheduled: tuple[str, ...]


def generate(functions: dict[str, Any], target: Target, file: Path) -> Generated:
    """Schedule and compile the kernels into an object file.

    Raises:
        Rejected: TVM cannot compile a kernel even as it was given.
    """
    scheduled, plain = schedule(functions, target)
    try:
        _compile(scheduled, target, file)
    except Exception:  # noqa: BLE001 - one schedule that cannot be lowered must not cost the model
        plain = list(functions)
        try:
            _compile(functions, target, file)
        except Exception as error:  # TVM raises in many classes
            raise Rejected(f"The kernels cannot be compiled for {target.cpu}: {first_line(error)}") from error
    return Generated(tuple(plain))


def _compile(functions: dict[str, Any], target: Target, file: Path) -> None:
    import tvm

    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    tvm.compile(tvm.IRModule(named), tvm.target.Target(target.tvm())).mod.write_to_file(str(file))
