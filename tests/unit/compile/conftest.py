"""Small ONNX models as packages, and a compiler run on them."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lisiere_compile.compiler import Log, compile_job
from lisiere_compile.job import Job, parse_job
from support import require

Shape = Sequence[int | str]
Weights = Mapping[str, np.ndarray[Any, Any]]


def make_job(source: str | Path, **changes: Any) -> dict[str, Any]:
    """A job document for this machine; `changes` go into InputConfig or OutputConfig by their name."""
    document: dict[str, Any] = {
        "CompilationJobName": "test",
        "InputConfig": {"S3Uri": str(source), "Framework": "ONNX"},
        "OutputConfig": {"S3OutputLocation": "out", "TargetDevice": "native"},
    }
    for name, value in changes.items():
        part = "InputConfig" if name in ("Framework", "DataInputConfig") else "OutputConfig"
        document[part][name] = value
    return document


def parse(document: Mapping[str, Any]) -> Job:
    return parse_job(json.dumps(document).encode())


def make_model(
    nodes: list[Any],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    weights: Weights,
    dtypes: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """An ONNX model of float32 tensors, except where `dtypes` says otherwise."""

    def info(name: str, shape: Shape) -> Any:
        return helper.make_tensor_value_info(name, (dtypes or {}).get(name, onnx.TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        nodes,
        "test",
        [info(*one) for one in inputs.items()],
        [info(*one) for one in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_package(folder: Path, model: onnx.ModelProto, **changes: Any) -> Path:
    """Write a model and a model.yaml as an author does, without `files`: numbers in, a forecast out."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "m.onnx"))

    def specs(values: Any) -> list[dict[str, Any]]:
        found = []
        for value in values:
            tensor = value.type.tensor_type
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            found.append(
                {"name": value.name, "shape": [dim.dim_value or 1 for dim in tensor.shape.dim], "dtype": dtype}
            )
        return found

    inputs, outputs = specs(model.graph.input), specs(model.graph.output)
    horizon = int(np.prod(outputs[0]["shape"]))
    document = {
        "schema": "lisiere.model/1",
        "name": "small",
        "version": "1.0.0",
        "inputs": inputs,
        "outputs": outputs,
        "input": {"type": "window", "channels": ["a"], "length": int(np.prod(inputs[0]["shape"])), "step_s": 1},
        "task": {"type": "forecasting", "horizon": horizon, "quantiles": [0.5], "channel": "a"},
        "onnx": "m.onnx",
        "licence": "CC0-1.0",
        "data": {"name": "none", "licence": "CC0-1.0", "source": "made up"},
        "figures": {"error": 0.25},
    }
    (folder / "model.yaml").write_text(json.dumps({**document, **changes}))
    return folder


def dense(batch: int | str = "N", relu: str = "Relu") -> onnx.ModelProto:
    """Eight numbers in, four out."""
    random = np.random.default_rng(1)
    weights = {
        "w": random.normal(size=(8, 4)).astype(np.float32),
        "b": random.normal(size=4).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="first"),
        helper.make_node(relu, ["h"], ["y"], name="second"),
    ]
    return make_model(nodes, {"x": [batch, 8]}, {"y": [batch, 4]}, weights)


@dataclass(frozen=True)
class Aws:
    """S3 with one bucket, and SageMaker, by moto over HTTP; the environment points boto3 there."""

    bucket: str
    s3: Any


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    require(importlib.util.find_spec("boto3") and importlib.util.find_spec("moto"), "moto and boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Aws:
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }.items():
        monkeypatch.setenv(name, value)
    s3 = boto3.client("s3")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return Aws(bucket, s3)


Compile = Callable[..., tuple[Path, Log]]


@pytest.fixture
def compile_model(tmp_path: Path) -> Compile:
    """Compile a model as a package of its own; returns the artifact and what the compiler logged."""

    def run(model: onnx.ModelProto, *, keep_onnx: bool = True, **changes: Any) -> tuple[Path, Log]:
        package = write_package(tmp_path / "package", model)
        log = Log()
        folder = compile_job(parse(make_job(package, **changes)), tmp_path, keep_onnx=keep_onnx, log=log)
        return folder, log

    return run
