"""The cloud back end against moto's HTTP server for S3 and SageMaker.

moto takes and describes jobs but compiles nothing: what SageMaker would have made is made by the compiler here, without
its manifest, and the states of a job are set on moto's own object.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from lisiere.backends.dlr import find_library
from lisiere.cli import main
from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere.models import open_package
from lisiere.models.manifest import Verified
from lisiere_compile import compiler
from lisiere_compile import neo as neo_module
from lisiere_compile.artifact import archive_of, write_archive
from lisiere_compile.cloud import STAGES, compile_in_cloud
from lisiere_compile.compiler import Log, compile_job
from lisiere_compile.job import Job
from lisiere_compile.target import host_name
from lisiere_compile.trees import load as trees
from support import require
from support.ensembles import saved

from .conftest import Aws, dense, make_job, parse, write_package

ROLE = "arn:aws:iam::123456789012:role/neo"


def moto_job(name: str = "test") -> Any:
    from moto.sagemaker.models import sagemaker_backends

    return sagemaker_backends["123456789012"]["eu-west-1"].compilation_jobs[name]


@pytest.fixture
def cloud(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """A SageMaker whose jobs start as STARTING, and which forgets them after the test."""
    from moto.sagemaker.models import SageMakerModelBackend, sagemaker_backends

    create = SageMakerModelBackend.create_compilation_job

    def starting(self: Any, **request: Any) -> Any:
        answer = create(self, **request)
        self.compilation_jobs[request["compilation_job_name"]].compilation_job_status = "STARTING"
        return answer

    monkeypatch.setattr(SageMakerModelBackend, "create_compilation_job", starting)
    yield aws
    sagemaker_backends["123456789012"]["eu-west-1"].compilation_jobs.clear()


@pytest.fixture(scope="module")
def neo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SageMaker would make of the model: the files of its artifact, without a manifest."""
    base = tmp_path_factory.mktemp("neo")
    onnx.save(dense(), base / "m.onnx")
    folder = compile_job(parse(make_job("m.onnx")), base)
    names = ("compiled.json", "compiled.params", "compiled.so", "compiled.meta")
    return write_archive(base / "made.tar.gz", {name.replace("compiled.j", "x.j"): folder / name for name in names})


@pytest.fixture
def trees_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ensembles in this process, which has everything imported already."""

    def load(file: Path, framework: str, work: Path) -> trees.Loaded:
        return trees._loaded(work / "forest.npz", trees._read(file, framework, work / "forest.npz"))

    for module in (compiler, neo_module):
        monkeypatch.setattr(module, "load", load)


def make(aws: Aws, source: str | Path, **changes: Any) -> Job:
    output = {"S3OutputLocation": f"s3://{aws.bucket}/neo/", **changes}
    return parse({**make_job(source, **output), "RoleArn": ROLE})


def finish(aws: Aws, archive: Path, name: str = "test") -> None:
    """Do what SageMaker does at the end of a job."""
    aws.s3.upload_file(str(archive), aws.bucket, "neo/model-native.tar.gz")
    moto_job(name).compilation_job_status = "COMPLETED"
    moto_job(name).model_artifacts = {"S3ModelArtifacts": f"s3://{aws.bucket}/neo/model-native.tar.gz"}


def states(*steps: Callable[[], object]) -> Callable[[float], None]:
    """A pause in which the next thing happens."""
    left = list(steps)

    def pause(seconds: float) -> None:
        assert 0 < seconds <= 30
        left.pop(0)()

    return pause


def status(value: str, **more: Any) -> Callable[[], None]:
    def change() -> None:
        moto_job().compilation_job_status = value
        for name, one in more.items():
            setattr(moto_job(), name, one)

    return change


def test_a_local_model_comes_back_as_a_verified_artifact(cloud: Aws, neo: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", dense())
    said: list[str] = []
    log = Log(said=said.append)
    pause = states(status("INPROGRESS"), lambda: finish(cloud, neo))
    folder = compile_in_cloud(make(cloud, package), package, tmp_path / "out", log=log, pause=pause)
    assert folder == tmp_path / "out" / f"small-{host_name()}"
    manifest = open_package(folder).manifest
    assert manifest.build is not None
    assert manifest.build.verified == Verified(by=log.verdict.backend, cases=8)
    assert manifest.build.tools["sagemaker-neo"] == "test"
    assert manifest.task is not None
    assert main(["models", "verify", str(folder)]) == 0
    assert archive_of(folder).is_file()
    assert tuple(log.seconds) == STAGES
    assert [line.split(",")[0] for line in said] == ["test: starting", "test: inprogress", "test: completed"]
    # What SageMaker was asked for: the model alone, and shapes, which it wants for ONNX.
    request = moto_job()
    assert request.input_config["S3Uri"] == f"s3://{cloud.bucket}/neo/test/model.tar.gz"
    assert json.loads(request.input_config["DataInputConfig"]) == {"x": [1, 8]}
    assert request.output_config["TargetPlatform"]["Os"] == "LINUX"
    assert request.stopping_condition == {"MaxRuntimeInSeconds": 900}
    cloud.s3.download_file(cloud.bucket, "neo/test/model.tar.gz", str(tmp_path / "sent.tar.gz"))
    with tarfile.open(tmp_path / "sent.tar.gz") as stream:
        assert stream.getnames() == ["m.onnx"]


def test_the_command_line_does_the_same(
    cloud: Aws, neo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from moto.sagemaker.models import SageMakerModelBackend

    starting = SageMakerModelBackend.create_compilation_job

    def at_once(self: Any, **request: Any) -> Any:
        answer = starting(self, **request)
        finish(cloud, neo, request["compilation_job_name"])
        return answer

    monkeypatch.setattr(SageMakerModelBackend, "create_compilation_job", at_once)
    onnx.save(dense(), tmp_path / "net.onnx")
    cloud.s3.upload_file(str(tmp_path / "net.onnx"), cloud.bucket, "in/net.onnx")
    where = ["--s3", f"s3://{cloud.bucket}/neo", "--role", ROLE, "--output", str(tmp_path / "out")]
    assert main(["compile", f"s3://{cloud.bucket}/in/net.onnx", "--cloud", *where, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert Path(report["artifact"]) == tmp_path / "out" / f"net-{host_name()}"
    assert report["verified"]["cases"] == 8
    assert "upload" not in report["stages"]  # it lay in S3 already
    job = tmp_path / "job.json"
    job.write_text(json.dumps({**make_job("net.onnx"), "RoleArn": ROLE}))
    assert main(["compile", str(job), "--cloud"]) == 2
    assert "$.OutputConfig.S3OutputLocation" in capfd.readouterr().err
    assert main(["compile", str(job), "--role", ROLE]) == 2
    assert "--role: " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"TargetDevice": "jetson_nano", "CompilerOptions": '{"gpu-code": "sm_53", "trt-ver": "7.1"}'}, "for a GPU"),
        ({"TargetPlatform": {"Os": "LINUX", "Arch": "X86_64", "Accelerator": "NVIDIA"}, "TargetDevice": None}, "GPU"),
        ({"Framework": "TENSORFLOW"}, "nothing to compare it with: TENSORFLOW"),
    ],
)
def test_what_cannot_be_run_here_says_why(
    cloud: Aws, neo: Path, tmp_path: Path, changes: dict[str, Any], note: str
) -> None:
    model = tmp_path / ("saved.pb" if "Framework" in changes else "m.onnx")
    onnx.save(dense(), model)
    document = make_job(model, S3OutputLocation=f"s3://{cloud.bucket}/neo", **changes)
    job = parse({**document, "RoleArn": ROLE})
    folder = compile_in_cloud(job, model, tmp_path / "out", pause=states(lambda: finish(cloud, neo)))
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.verified is not None
    assert build.verified.by == "nothing"
    assert note in build.verified.note


def test_an_artifact_that_is_wrong_is_not_kept(cloud: Aws, neo: Path, tmp_path: Path) -> None:
    onnx.save(dense(relu="Sigmoid"), tmp_path / "m.onnx")
    pause = states(lambda: finish(cloud, neo))
    with pytest.raises(Rejected, match="is wrong and was not kept"):
        compile_in_cloud(make(cloud, tmp_path / "m.onnx"), tmp_path / "m.onnx", tmp_path / "out", pause=pause)
    assert not (tmp_path / "out").exists()


def test_without_metadata_the_graph_tells_of_the_tensors(cloud: Aws, neo: Path, tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    with tarfile.open(neo) as stream:
        stream.extractall(tmp_path / "files", filter="data")
    bare = {file.name: file for file in (tmp_path / "files").iterdir() if file.suffix != ".meta"}
    archive = write_archive(tmp_path / "bare.tar.gz", bare)
    pause = states(lambda: finish(cloud, archive))
    folder = compile_in_cloud(make(cloud, tmp_path / "m.onnx"), tmp_path / "m.onnx", tmp_path / "out", pause=pause)
    manifest = open_package(folder).manifest
    assert [(spec.name, spec.shape) for spec in (*manifest.inputs, *manifest.outputs)] == [("x", (1, 8)), ("y", (1, 4))]


@pytest.mark.usefixtures("trees_in_process")
def test_an_ensemble_of_trees_is_held_to_what_its_library_says(cloud: Aws, tmp_path: Path) -> None:
    require(find_library(), "libdlr")
    model = saved("xgb-binary")
    made = compile_job(parse(make_job(model, Framework="XGBOOST")), tmp_path / "made")
    archive = write_archive(tmp_path / "trees.tar.gz", {"compiled.so": made / "compiled.so"})
    job = make(cloud, model, Framework="XGBOOST")
    folder = compile_in_cloud(job, model, tmp_path / "out", pause=states(lambda: finish(cloud, archive)))
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.verified is not None
    assert (build.verified.by, build.verified.reference.split()[0]) == ("dlr", "xgboost")
    broken = tmp_path / "xgboost-model"
    broken.write_bytes(b"no model")
    job = parse({**make_job(broken, Framework="XGBOOST", S3OutputLocation=f"s3://{cloud.bucket}/neo"), "RoleArn": ROLE})
    job = msgspec.structs.replace(job, CompilationJobName="second")
    pause = states(lambda: finish(cloud, archive, "second"))
    with pytest.raises(Rejected, match="does not say how many features"):
        compile_in_cloud(job, broken, tmp_path / "out2", pause=pause)


def test_an_archive_that_no_runtime_here_loads_is_named_and_left(cloud: Aws, tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    (tmp_path / "code.ro").write_bytes(b"x")
    archive = write_archive(tmp_path / "other.tar.gz", {"code.ro": tmp_path / "code.ro"})
    pause = states(lambda: finish(cloud, archive))
    with pytest.raises(Rejected, match=rf"holds code\.ro.*stays at s3://{cloud.bucket}/neo/model-native\.tar\.gz"):
        compile_in_cloud(make(cloud, tmp_path / "m.onnx"), tmp_path / "m.onnx", tmp_path / "out", pause=pause)


def test_a_failure_is_told_whole(cloud: Aws, tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    reason = "ClientError: CompilationError: Unable to compile model:\nOperator Foo is not supported.\nline 3"
    pause = states(status("FAILED", failure_reason=reason))
    with pytest.raises(Rejected, match="could not compile test") as caught:
        compile_in_cloud(make(cloud, tmp_path / "m.onnx"), tmp_path / "m.onnx", tmp_path / "out", pause=pause)
    assert reason in str(caught.value)


def test_a_job_that_is_stopped_elsewhere_or_never_ends(cloud: Aws, tmp_path: Path) -> None:
    onnx.save(dense(), tmp_path / "m.onnx")
    model, job = tmp_path / "m.onnx", make(cloud, tmp_path / "m.onnx")
    with pytest.raises(Permanent, match="was stopped"):
        compile_in_cloud(job, model, tmp_path / "out", pause=states(status("STOPPED")))
    document = {**make_job(model, S3OutputLocation=f"s3://{cloud.bucket}/neo"), "RoleArn": ROLE}
    document |= {"CompilationJobName": "long", "StoppingCondition": {"MaxRuntimeInSeconds": 60}}
    pauses: list[float] = []
    with pytest.raises(Permanent, match="has not ended after 960 seconds"):
        compile_in_cloud(parse(document), model, tmp_path / "out", pause=pauses.append)
    assert 960 <= sum(pauses) <= 990
    assert max(pauses) == 30


def interrupt(_seconds: float) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("possible", [True, False])
def test_an_interrupt_stops_the_job_and_says_so(
    cloud: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, possible: bool
) -> None:
    from moto.sagemaker.responses import SageMakerResponse

    onnx.save(dense(), tmp_path / "m.onnx")
    stopped: list[str] = []
    warned: list[str] = []

    def stop(self: Any) -> str:
        stopped.append(json.loads(self.body)["CompilationJobName"])
        return "{}"

    if possible:  # moto itself does not know how to stop one
        monkeypatch.setattr(SageMakerResponse, "stop_compilation_job", stop, raising=False)
    log = Log(warned=warned.append)
    with pytest.raises(KeyboardInterrupt):
        compile_in_cloud(
            make(cloud, tmp_path / "m.onnx"), tmp_path / "m.onnx", tmp_path / "out", log=log, pause=interrupt
        )
    assert stopped == (["test"] if possible else [])
    assert ("is being stopped" if possible else "goes on in SageMaker") in warned[0]
    assert not (tmp_path / "out").exists()


def test_what_sagemaker_needs_is_asked_for_before_any_work(cloud: Aws, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(dense(), model)
    output = f"s3://{cloud.bucket}/neo"
    for document, path in [
        (make_job(model, S3OutputLocation=output), "$.RoleArn"),
        ({**make_job(model), "RoleArn": ROLE}, "$.OutputConfig.S3OutputLocation"),
        (
            {**make_job(model, S3OutputLocation=output, Framework="LIGHTGBM"), "RoleArn": ROLE},
            "$.InputConfig.Framework",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            compile_in_cloud(parse(document), model, tmp_path / "out")
        assert caught.value.path == path
    assert "Contents" not in cloud.s3.list_objects_v2(Bucket=cloud.bucket)


def test_what_aws_refuses_is_told_with_its_code(cloud: Aws, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(dense(), model)
    with pytest.raises(Rejected, match=r"s3://nowhere/x/test/model\.tar\.gz could not be written: .*NoSuchBucket"):
        compile_in_cloud(make(cloud, model, S3OutputLocation="s3://nowhere/x"), model, tmp_path / "out")
    bad = parse({**make_job(model, S3OutputLocation=f"s3://{cloud.bucket}/neo"), "RoleArn": "neo"})
    with pytest.raises(ConfigError, match="RoleArn"):
        compile_in_cloud(bad, model, tmp_path / "out")
    with pytest.raises(Permanent, match="was stopped"):
        compile_in_cloud(make(cloud, model), model, tmp_path / "out", pause=states(status("STOPPED")))
    with pytest.raises(Rejected, match=r"could not be created: AWS answered ResourceInUse.*already exists"):
        compile_in_cloud(make(cloud, model), model, tmp_path / "out")


def test_a_folder_of_another_framework_is_sent_whole(cloud: Aws, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    np.save(folder / "variables" / "v.npy", np.zeros(3))
    job = make(cloud, folder, Framework="TENSORFLOW")
    with pytest.raises(Permanent, match="was stopped"):
        compile_in_cloud(job, folder, tmp_path / "out", pause=states(status("STOPPED")))
    cloud.s3.download_file(cloud.bucket, "neo/test/model.tar.gz", str(tmp_path / "sent.tar.gz"))
    with tarfile.open(tmp_path / "sent.tar.gz") as stream:
        assert stream.getnames() == ["saved_model.pb", "variables/v.npy"]
