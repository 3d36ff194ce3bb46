"""Kernels for several threads: under libdlr's pool, and where there is none."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from lisiere.backends import open_backend
from lisiere.backends.dlr import find_library
from lisiere.models import open_package
from lisiere_compile.compiler import compile_job
from support import require

from ..conftest import make_job, make_model, parse, write_package

FEEDS = {"x": np.random.default_rng(2).normal(size=(1, 16, 32, 32)).astype(np.float32)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A dense and a depthwise convolution, both large enough to be shared."""
    random = np.random.default_rng(1)
    weights = {
        "a": random.normal(0, 0.1, (32, 16, 3, 3)).astype(np.float32),
        "b": random.normal(0, 0.1, (32, 1, 3, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["m"], pads=[1] * 4),
        helper.make_node("Conv", ["m", "b"], ["y"], pads=[1] * 4, group=32),
    ]
    model = make_model(nodes, {"x": (1, 16, 32, 32)}, {"y": (1, 32, 32, 32)}, weights)
    return write_package(tmp_path / "source", model)


class Environment(ctypes.Structure):
    _fields_ = [("sync", ctypes.c_void_p), ("tasks", ctypes.c_int)]


BODY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


@contextmanager
def three_tasks(library: Path) -> Iterator[list[int]]:
    """Let a library run what it would share as three tasks, the last one first; count how often it shares."""
    slot = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library.resolve())), "__TVMBackendParallelLaunch")
    before, calls = slot.value, []

    def launch(body: int, closure: int, tasks: int) -> int:
        calls.append(tasks)
        environment = Environment(None, 3)
        return max(int(BODY(body)(task, ctypes.addressof(environment), closure)) for task in (2, 1, 0))

    hook = LAUNCH(launch)
    slot.value = ctypes.cast(hook, ctypes.c_void_p).value
    try:
        yield calls
    finally:
        slot.value = before


@pytest.mark.parametrize("threads", [1, 2])
def test_large_kernels_are_shared_when_threads_are_asked_for(source: Path, tmp_path: Path, threads: int) -> None:
    folder = compile_job(parse(make_job(source)), tmp_path, output=tmp_path / "out", threads=threads)
    package = open_package(folder)
    assert package.manifest.build is not None
    assert package.manifest.build.threads == threads
    alone = open_backend("graph", package).run(FEEDS)["y"]
    with three_tasks(folder / "compiled.so") as calls:
        shared = open_backend("graph", package).run(FEEDS)["y"]
    assert len(calls) == (2 if threads > 1 else 0)
    np.testing.assert_array_equal(shared, alone)


def test_one_library_serves_two_backends_in_any_order(source: Path, tmp_path: Path) -> None:
    require(find_library(), "libdlr")
    folder = compile_job(parse(make_job(source)), tmp_path, output=tmp_path / "out", threads=2)
    package, found = open_package(folder), []
    held = open_backend("dlr", package, 2)
    for backend in ("graph", "dlr", "graph"):
        model = open_backend(backend, package, 2)
        found.append(model.run(FEEDS)["y"])
        model.close()
        del model
        gc.collect()  # what the library was given must outlive the model that gave it
    found.append(held.run(FEEDS)["y"])
    held.close()
    for value in found:
        np.testing.assert_array_equal(value, found[0])
