"""Ensembles of trees on the device, by libraries written as SageMaker Neo and as this project's compiler write them."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lisiere.backends import Backend, open_backend
from lisiere.backends.dlr import find_library
from lisiere.errors import Permanent
from lisiere.models import Manifest, Package, TensorSpec, open_package, write_manifest
from lisiere.models.manifest import NeoFiles
from lisiere_compile.link import link
from support import require

# Tells for each of three features what it was given; -7 where it was given nothing.
ECHO = """
#include <stddef.h>
union Entry { int missing; float fvalue; };
size_t get_num_feature(void) { return 3; }
size_t get_num_output_group(void) { return GROUPS; }
static float seen(union Entry* data, int i) { return data[i].missing == -1 ? -7 : data[i].fvalue; }
size_t predict_multiclass(union Entry* data, int margin, float* result) {
  for (int i = 0; i < GIVEN; ++i) result[i] = seen(data, i);
  return GIVEN;
}
float predict(union Entry* data, int margin) { return seen(data, 0); }
"""
OWN = "const float lisiere_missing = -2.5f;\n"


def package(folder: Path, source: str = ECHO, groups: int = 3, given: int = 3, features: int = 3) -> Package:
    folder.mkdir()
    library = link(folder, f"#define GROUPS {groups}\n#define GIVEN {given}\n{source}", None, "compiled.so")
    (folder / "wrappers.c").unlink()
    manifest = Manifest(
        schema="lisiere.model/1",
        name="echo",
        version="1.0.0",
        inputs=(TensorSpec(name="row", shape=(1, features)),),
        outputs=(TensorSpec(name="seen", shape=(1, given)),),
        files={},
        neo=NeoFiles(library=library.name),
    )
    write_manifest(manifest, folder / "manifest.yaml")
    return open_package(folder)


@pytest.fixture(params=["dlr", "graph"])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: Backend = request.param
    if name == "dlr":
        require(find_library(), "libdlr")
    return name


def seen(backend: Backend, package: Package, row: list[float]) -> list[float]:
    model = open_backend(backend, package)
    found = model.run({"row": np.array([row], np.float32)})["seen"]
    model.close()
    assert found.shape == package.manifest.outputs[0].shape
    return [float(value) for value in found[0]]


def test_what_is_missing_is_left_out_for_a_library_of_neo(backend: Backend, tmp_path: Path) -> None:
    assert seen(backend, package(tmp_path / "m"), [1.5, np.nan, -2]) == [1.5, -7, -2]


def test_what_is_missing_reaches_a_library_that_asks_for_it(backend: Backend, tmp_path: Path) -> None:
    one, two, three = seen(backend, package(tmp_path / "m", OWN + ECHO), [1.5, np.nan, -2])
    assert (one, three) == (1.5, -2)
    assert two == -2.5 or np.isnan(two)


def test_one_group_goes_by_the_function_for_one(backend: Backend, tmp_path: Path) -> None:
    assert seen(backend, package(tmp_path / "m", groups=1, given=1), [4, 5, 6]) == [4]


def test_an_answer_may_be_shorter_than_the_groups(backend: Backend, tmp_path: Path) -> None:
    """The class alone, as of multi:softmax."""
    assert seen(backend, package(tmp_path / "m", groups=3, given=1), [4, 5, 6]) == [4]


def test_a_manifest_that_does_not_fit_the_library_is_refused(backend: Backend, tmp_path: Path) -> None:
    whole = package(tmp_path / "m")
    for change in (
        {"outputs": (TensorSpec(name="seen", shape=(1, 2)),)},
        {"inputs": (TensorSpec(name="row", shape=(1, 4)),)},
        {"inputs": (TensorSpec(name="row", shape=(3,)),)},
        {"inputs": (*whole.manifest.inputs, TensorSpec(name="more", shape=(1, 3)))},
    ):
        other = Package(whole.path, msgspec.structs.replace(whole.manifest, **change), whole.digest)
        with pytest.raises(Permanent):
            open_backend(backend, other)


def test_a_library_without_trees_is_refused(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"get_num_feature|libdlr failed"):
        open_backend(backend, package(tmp_path / "m", "int nothing;\n"))
    broken = package(tmp_path / "n")
    broken.file("compiled.so").write_bytes(b"\x7fELF")
    with pytest.raises(Permanent, match=r"cannot be loaded|could not be loaded"):
        open_backend(backend, broken)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity on this system")
def test_loading_leaves_the_thread_on_its_cpus(backend: Backend, tmp_path: Path) -> None:
    """libdlr binds the thread that loads trees to the first CPU, where everything else on the device would follow."""
    before = os.sched_getaffinity(0)
    require(len(before) > 1, "second CPU")
    seen(backend, package(tmp_path / "m"), [1, 2, 3])
    assert os.sched_getaffinity(0) == before
