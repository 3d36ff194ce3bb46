"""Real networks with real weights: MLPerf Tiny under DLR, and a quantised MobileNet by ONNX Runtime."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lisiere.backends import Backend
from lisiere.backends.dlr import find_library
from lisiere.clock import SystemClock
from lisiere.config import parse_config
from lisiere.models import Manifest, TensorSpec, write_manifest
from lisiere.models.manifest import Classification, ImageInput
from lisiere.runtime import Runtime
from lisiere.sources.images import read_image
from lisiere.spool import SpoolReader
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere_compile.compiler import compile_job
from lisiere_compile.job import load_job
from support import require, shared_data

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NETWORKS = {
    "ic01_fp32": ((1, 32, 32, 3), CIFAR, ImageInput(layout="NHWC")),
    "vww01_fp32": ((1, 96, 96, 3), ["no person", "person"], ImageInput(layout="NHWC", scale=(1 / 255,))),
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ten labelled photographs alone, in a folder."""
    source = shared_data() / "images_ovms10"
    folder = tmp_path_factory.mktemp("photographs")
    for name in labels():
        (folder / name).symlink_to((source / name).resolve())
    return folder


def labels() -> dict[str, int]:
    """File name -> ImageNet class."""
    with (shared_data() / "images_ovms10" / "labels.csv").open(newline="") as stream:
        rows = [row for row in csv.reader(stream) if row and row[-1].strip().isdigit()]
    return {Path(row[0]).name: int(row[-1]) for row in rows}


def package(folder: Path, name: str, shape: tuple[int, ...], classes: list[str], how: ImageInput, scores: Any) -> Path:
    """A model package around a shared ONNX file."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes((shared_data() / "models" / f"{name}.onnx").read_bytes())
    (folder / "labels.txt").write_text("\n".join(classes) + "\n")
    session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    dtype: Any = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
    manifest = Manifest(
        schema="lisiere.model/1",
        name=name,
        version="1.0.0",
        inputs=(TensorSpec(name=given.name, shape=shape, dtype=dtype[given.type]),),
        outputs=(TensorSpec(name=made.name, shape=(1, len(classes)), dtype=dtype[made.type]),),
        input=how,
        task=Classification(labels="labels.txt", scores=scores, top=5 if len(classes) > 5 else len(classes)),
        files={},
        onnx="model.onnx",
    )
    write_manifest(manifest, folder / "model.yaml")
    return folder


def compiled(folder: Path, shape: tuple[int, ...], name: str) -> Path:
    job = folder / "job.json"
    job.write_text(
        json.dumps(
            {
                "CompilationJobName": "real",
                "RoleArn": "arn:aws:iam::000000000000:role/none",
                "InputConfig": {"S3Uri": ".", "DataInputConfig": json.dumps({name: shape}), "Framework": "ONNX"},
                "OutputConfig": {"S3OutputLocation": "out", "TargetDevice": "native"},
                "StoppingCondition": {"MaxRuntimeInSeconds": 900},
            }
        )
    )
    return compile_job(load_job(job), folder)


def run(folder: Path, model: Path, photographs: Path, backend: Backend) -> list[dict[str, Any]]:
    """Run a pipeline over the photographs and return its results, in the order of the files."""
    document = {
        "device": "pi-1",
        "pipelines": [
            {
                "name": "photographs",
                "source": {"type": "images", "path": str(photographs)},
                "model": str(model),
                "backend": backend,
            }
        ],
    }
    Runtime(parse_config(document, folder), SystemClock()).run()
    reader = SpoolReader(folder / "spool")
    results = [json.loads(row.body) for row in reader.after(0, 100)]
    reader.close()
    return results


@pytest.mark.parametrize("name", NETWORKS)
def test_a_compiled_network_under_dlr_names_what_onnx_runtime_names(
    name: str, tmp_path: Path, photographs: Path
) -> None:
    require(find_library(), "libdlr")
    shape, classes, how = NETWORKS[name]
    source = package(tmp_path / "source", name, shape, classes, how, "probabilities")
    session = ort.InferenceSession(str(source / "model.onnx"), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    results = run(tmp_path, compiled(source, shape, given), photographs, "dlr")
    files = sorted(photographs.iterdir())
    assert len(results) == len(files) == 10
    preprocess = ImagePreprocess(how, TensorSpec(name=given, shape=shape))
    for file, result in zip(files, results, strict=True):
        expected = session.run(None, {given: preprocess(read_image(file, 64_000_000))})[0].reshape(-1)
        found = {entry["label"]: entry["score"] for entry in result["result"]["top"]}
        assert result["model"]["backend"] == "dlr"
        assert result["result"]["label"] == classes[int(np.argmax(expected))], file.name
        for label, score in found.items():
            assert score == pytest.approx(float(expected[classes.index(label)]), abs=1e-4), file.name


def test_a_quantised_mobilenet_names_at_least_seven_of_ten(tmp_path: Path, photographs: Path) -> None:
    classes = (shared_data() / "models" / "imagenet_labels.txt").read_text().splitlines()
    numbered = [f"{at}: {label.strip()}" for at, label in enumerate(classes)]
    how = ImageInput(layout="NHWC", fit="crop")
    source = package(tmp_path / "source", "mnv1_025_128_q", (1, 128, 128, 3), numbered, how, "uint8")
    results = run(tmp_path, source, photographs, "onnx")
    # The network has a class 0, background, before ImageNet's thousand.
    offset = len(classes) - 1000
    right = [
        int(result["result"]["label"].split(":")[0]) - offset == truth
        for result, (_, truth) in zip(results, sorted(labels().items()), strict=True)
    ]
    assert sum(right) >= 7, right
