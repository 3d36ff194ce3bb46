"""Real models through the compiler, run by the real libdlr and by the graph backend, against ONNX Runtime."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lisiere.backends import open_backend
from lisiere.backends.dlr import find_library
from lisiere.models import Package, open_package
from lisiere_compile.compiler import compile_job
from lisiere_compile.job import parse_job
from support import require, shared_data

IMAGE = {"type": "image", "layout": "NHWC", "scale": [1 / 255]}
CLASSES = {"type": "classification", "labels": "labels.txt"}
MODELS: dict[str, dict[str, Any]] = {
    "ic01_fp32": {"shape": [1, 32, 32, 3], "output": [1, 10], "input": IMAGE, "task": CLASSES},
    "vww01_fp32": {"shape": [1, 96, 96, 3], "output": [1, 2], "input": IMAGE, "task": CLASSES},
    "kws01_fp32": {
        "shape": [1, 49, 10, 1],
        "output": [1, 12],
        "input": {**IMAGE, "colour": "gray"},
        "task": CLASSES,
    },
    "ad01_fp32": {
        "shape": [1, 640],
        "output": [1, 640],
        "input": {"type": "window", "channels": ["a"], "length": 640, "step_s": 1},
        "task": {"type": "anomaly", "output": "reconstruction", "threshold": 1.0},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    name = request.param
    source = shared_data() / "models" / f"{name}.onnx"
    folder, model = tmp_path_factory.mktemp(name), MODELS[name]
    shutil.copyfile(source, folder / "model.onnx")
    (folder / "labels.txt").write_text("".join(f"class {index}\n" for index in range(model["output"][1])))
    manifest = {
        "schema": "lisiere.model/1",
        "name": name,
        "version": "1.0.0",
        "inputs": [{"name": "input_1", "shape": model["shape"]}],
        "outputs": [{"name": "Identity", "shape": model["output"]}],
        "input": model["input"],
        "task": model["task"],
        "onnx": "model.onnx",
    }
    (folder / "model.yaml").write_text(json.dumps(manifest))
    job = {
        "CompilationJobName": name.replace("_", "-"),
        "InputConfig": {
            "S3Uri": "model.onnx",
            "Framework": "ONNX",
            "DataInputConfig": json.dumps({"input_1": model["shape"]}),
        },
        "OutputConfig": {"S3OutputLocation": "out", "TargetDevice": "native"},
    }
    return open_package(compile_job(parse_job(json.dumps(job).encode()), folder))


@pytest.mark.parametrize("backend", ["dlr", "graph"])
def test_it_gives_what_onnx_runtime_gives(artifact: Package, backend: str) -> None:
    if backend == "dlr":
        require(find_library(), "libdlr")
    session = ort.InferenceSession(str(artifact.path / "model.onnx"), providers=["CPUExecutionProvider"])
    model = open_backend(backend, artifact)  # type: ignore[arg-type]
    random = np.random.default_rng(7)
    try:
        for _ in range(5):
            image = random.random(artifact.manifest.inputs[0].shape).astype(np.float32)
            found = model.run({"input_1": image})["Identity"]
            np.testing.assert_allclose(found, session.run(None, {"input_1": image})[0], rtol=0, atol=1e-4)
    finally:
        model.close()


def test_libdlr_finds_one_file_of_each_kind(artifact: Package) -> None:
    for suffix in (".json", ".params", ".so"):
        assert len(list(artifact.path.glob(f"*{suffix}"))) == 1
