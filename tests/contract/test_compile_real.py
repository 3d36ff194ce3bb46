"""Every shared model through the compiler: by the real libdlr and the graph backend here, under qemu-user for ARM.

Each network is there as ONNX and as TFLite. The quick tests send one form to each target, `soak` both to all.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from lisiere.backends import open_backend
from lisiere.backends.dlr import find_library
from lisiere.models import Package, open_package
from lisiere_compile.compiler import compile_job
from lisiere_compile.job import parse_job
from support import cross_tools, require, shared_data

FILES = (
    *("ad01_fp32.onnx", "ic01_fp32.onnx", "kws01_fp32.onnx", "vww01_fp32.onnx"),
    *("ad01_int8.onnx", "ic01_int8.onnx", "kws01_int8.onnx", "vww01_int8.onnx", "mnv1_025_128_q.onnx"),
    *("ad01_fp32.tflite", "pretrainedResnet.tflite", "kws_ref_model_float32.tflite", "vww_96_float.tflite"),
    *("ad01_int8.tflite", "pretrainedResnet_quant.tflite", "kws_ref_model.tflite", "vww_96_int8.tflite"),
    "mobilenet_v1_0.25_128_quant.tflite",
)
ARM = {"rasp4b": "aarch64", "rasp3b": "armv7l"}
QUICK = {"rasp4b": ".onnx", "rasp3b": ".tflite"}
_FOLDER = tempfile.TemporaryDirectory(prefix="lisiere-tests-")


@functools.cache
def compiled(file: str, target: str) -> Package:
    """The artifact of a shared model. Never written to."""
    source = shared_data() / "models" / file
    job = {
        "CompilationJobName": "test",
        "InputConfig": {"S3Uri": str(source), "Framework": source.suffix[1:].upper()},
        "OutputConfig": {"S3OutputLocation": f"{_FOLDER.name}/{file}", "TargetDevice": target},
    }
    if source.suffix == ".onnx":
        given = onnx.load(str(source)).graph.input
        shapes = {one.name: [dim.dim_value or 1 for dim in one.type.tensor_type.shape.dim] for one in given}
        job["InputConfig"]["DataInputConfig"] = json.dumps(shapes)  # type: ignore[index]
    return open_package(compile_job(parse_job(json.dumps(job).encode()), Path(_FOLDER.name)))


def check_here(package: Package, backend: str) -> None:
    """Other inputs than the gate's, against ONNX Runtime."""
    session = ort.InferenceSession(str(package.path / "model.onnx"), providers=["CPUExecutionProvider"])
    spec, golden = package.manifest.inputs[0], package.manifest.golden
    assert golden is not None
    model = open_backend(backend, package)  # type: ignore[arg-type]
    random = np.random.default_rng(7)
    try:
        for _ in range(3):
            image = random.random(spec.shape).astype(spec.dtype)
            if spec.dtype != "float32":
                limits = np.iinfo(spec.dtype)
                image = random.integers(limits.min, limits.max + 1, spec.shape, spec.dtype)
            (found,) = model.run({spec.name: image}).values()
            wanted = session.run(None, {spec.name: image})[0]
            np.testing.assert_allclose(found.astype(float), wanted.astype(float), rtol=1e-4, atol=golden.atol)
    finally:
        model.close()


def check_there(file: str, target: str) -> None:
    cross_tools(ARM[target])
    build = compiled(file, target).manifest.build
    assert build is not None
    assert build.verified is not None
    assert (build.arch, build.verified.by) == (ARM[target], "qemu-user")
    assert build.verified.cases == 4


def test_every_shared_model_is_compiled() -> None:
    found = {file.name for suffix in (".onnx", ".tflite") for file in (shared_data() / "models").glob(f"*{suffix}")}
    assert found == set(FILES)


@pytest.mark.parametrize("backend", ["dlr", "graph"])
@pytest.mark.parametrize("file", [file for file in FILES if file.endswith(".onnx")])
def test_it_gives_what_onnx_runtime_gives(file: str, backend: str) -> None:
    if backend == "dlr":
        require(find_library(), "libdlr")
    check_here(compiled(file, "native"), backend)


@pytest.mark.parametrize(
    ("file", "target"),
    [(file, target) for target in ARM for file in FILES if file.endswith(QUICK[target])],
)
def test_it_gives_the_same_on_the_instructions_of_a_raspberry_pi(file: str, target: str) -> None:
    check_there(file, target)


@pytest.mark.soak
@pytest.mark.parametrize("file", FILES)
def test_every_form_gives_the_same_everywhere(file: str) -> None:
    for backend in ("dlr", "graph"):
        check_here(compiled(file, "native"), backend)
    for target in ARM:
        check_there(file, target)


@pytest.mark.parametrize("file", ["ic01_fp32.onnx"])
def test_libdlr_finds_one_file_of_each_kind(file: str) -> None:
    for suffix in (".json", ".params", ".so"):
        assert len(list(compiled(file, "native").path.glob(f"*{suffix}"))) == 1
