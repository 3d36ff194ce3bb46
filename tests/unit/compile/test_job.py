from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lisiere.errors import ConfigError
from lisiere_compile.job import compiler_options, input_shapes, is_job, load_job, local_path, model_job, parse_job

from .conftest import make_job, parse


def changed(path: str, value: Any) -> dict[str, Any]:
    document = make_job("model")
    *parents, last = path.split(".")
    part = document
    for parent in parents:
        part = part[parent]
    part[last] = value
    return document


def test_a_whole_request_of_sagemaker_is_taken() -> None:
    document = make_job("s3://bucket/model.tar.gz", DataInputConfig='{"x": [1, 8]}')
    document |= {
        "RoleArn": "arn:aws:iam::123456789012:role/neo",
        "StoppingCondition": {"MaxRuntimeInSeconds": 900},
        "Tags": [{"Key": "a", "Value": "b"}],
    }
    del document["OutputConfig"]["TargetDevice"]
    document["OutputConfig"]["TargetPlatform"] = {"Os": "LINUX", "Arch": "ARM64", "Accelerator": "NVIDIA"}
    job = parse(document)
    assert input_shapes(job) == {"x": (1, 8)}
    assert job.OutputConfig.TargetPlatform is not None


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("OutputConfig.TargetDevices", "native", "$.OutputConfig"),
        ("OutputConfig.TargetDevice", 5, "$.OutputConfig.TargetDevice"),
        ("OutputConfig.TargetDevice", None, "$.OutputConfig"),
        ("OutputConfig.TargetPlatform", {"Os": "LINUX", "Arch": "X86_64"}, "$.OutputConfig"),
        ("OutputConfig.CompilerOptions", '{"mcpu": 5}', "$.OutputConfig.CompilerOptions"),
        ("OutputConfig.CompilerOptions", '{"ANDROID_PLATFORM": 28}', "$.OutputConfig.CompilerOptions"),
        ("OutputConfig.CompilerOptions", "mcpu", "$.OutputConfig.CompilerOptions"),
        ("InputConfig.Framework", "CAFFE", "$.InputConfig.Framework"),
        ("InputConfig.S3Uri", "", "$.InputConfig.S3Uri"),
        ("InputConfig.DataInputConfig", "[1, 2]", "$.InputConfig.DataInputConfig"),
        ("InputConfig.DataInputConfig", '{"x": [0]}', "$.InputConfig.DataInputConfig"),
        ("InputConfig.DataInputConfig", '{"x": [1,', "$.InputConfig.DataInputConfig"),
        ("CompilationJobName", "a/b", "$.CompilationJobName"),
        ("StoppingCondition", {"MaxRuntimeInSeconds": 0}, "$.StoppingCondition.MaxRuntimeInSeconds"),
        ("Extra", 1, "$"),
    ],
)
def test_an_error_names_its_place(path: str, value: Any, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value))
    assert caught.value.path == where


def test_what_is_not_json_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        parse_job(b"{")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(tmp_path / "none.json")


def test_options_default_to_none() -> None:
    assert compiler_options(parse(make_job("m"))).mcpu is None
    assert compiler_options(parse(make_job("m", CompilerOptions='{"mcpu": "skylake"}'))).mcpu == "skylake"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("model", "/base/model"),
        ("../a b#c?d%20", "/base/../a b#c?d%20"),
        ("/abs/model.onnx", "/abs/model.onnx"),
        ("file:///abs/a%20b", "/abs/a b"),
        ("file://localhost/abs", "/abs"),
    ],
)
def test_local_paths(uri: str, expected: str) -> None:
    assert local_path(uri, Path("/base"), "$") == Path(expected)


@pytest.mark.parametrize(
    ("uri", "words"),
    [("s3://bucket/key", "lies in S3"), ("http://host/x", "neither"), ("file://host/x", "neither")],
)
def test_other_uris_are_configuration_errors(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        local_path(uri, Path("/base"), "$.InputConfig.S3Uri")
    assert caught.value.path == "$.InputConfig.S3Uri"


def test_shapes_may_come_as_a_list_as_for_pytorch() -> None:
    assert input_shapes(parse(make_job("m", DataInputConfig="[[1, 3, 8, 8], [1]]"))) == {
        "input0": (1, 3, 8, 8),
        "input1": (1,),
    }


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("job.json", '{"InputConfig": {}}', True),
        ("job", '{"InputConfig": {}}', True),
        ("job.json", "{", True),  # read as a job, it says what is wrong
        ("job.json", None, True),
        ("trees.json", '{"version": [3, 0, 0], "learner": {}}', False),
        ("model.onnx", "\x08\x08", False),
        ("other", '{"a": 1}', False),
        ("model.onnx", None, False),
    ],
)
def test_a_job_is_told_from_a_model_by_its_content(
    tmp_path: Path, name: str, content: str | None, expected: bool
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert is_job(tmp_path / name) is expected


def test_a_command_line_with_a_model_makes_a_job() -> None:
    job = model_job("a b.onnx", "ONNX", "rasp4b", "out", {"x": [1, 8]}, "my_net.v2")
    assert job.CompilationJobName == "my-net-v2-rasp4b"
    assert input_shapes(job) == {"x": (1, 8)}
    with pytest.raises(ConfigError, match="DataInputConfig"):
        model_job("m.onnx", "ONNX", "native", "out", {"x": [0]}, "m")
