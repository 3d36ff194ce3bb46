from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
from onnx import helper

from lisiere.backends import open_backend
from lisiere.models import open_package

from .conftest import Compile, make_model

ALLOCATE = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int
)  # fmt: skip


def asked(folder: Path) -> list[int]:
    """How many bytes the kernels of an artifact ask the host for in one run."""
    package = open_package(folder)
    model = open_backend("graph", package)
    slot = ctypes.c_void_p.in_dll(ctypes.CDLL(str(folder / "compiled.so")), "__TVMBackendAllocWorkspace")
    before, sizes = slot.value, []
    own = ALLOCATE(before or 0)

    def allocate(kind: int, device: int, size: int, code: int, bits: int) -> int:
        sizes.append(size)
        return int(own(kind, device, size, code, bits))

    hook = ALLOCATE(allocate)
    slot.value = ctypes.cast(hook, ctypes.c_void_p).value
    try:
        model.run({"x": np.ones(package.manifest.inputs[0].shape, np.float32)})
    finally:
        slot.value = before
    return sizes


def test_accumulators_and_small_borders_are_on_the_stack(compile_model: Compile) -> None:
    """Asking the host for them, tile by tile, took a third of the time of a small network."""
    weights = {"w": np.ones((64, 16, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    folder, log = compile_model(make_model(nodes, {"x": (1, 16, 20, 20)}, {"y": (1, 64, 20, 20)}, weights))
    assert log.unscheduled == ()
    assert asked(folder) == []


def test_what_the_stack_has_no_room_for_is_asked_of_the_host(compile_model: Compile) -> None:
    """One line of this padded image is larger than the stack is to hold."""
    weights = {"w": np.ones((8, 64, 3, 3), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    folder, _ = compile_model(make_model(nodes, {"x": (1, 64, 3, 400)}, {"y": (1, 8, 3, 400)}, weights))
    sizes = asked(folder)
    assert sizes
    assert min(sizes) > 64 << 10
