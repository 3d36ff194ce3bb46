"""The cloud back end: the same job to SageMaker Neo, and an artifact of what it makes in the same place.

A local model is packed and uploaded beside the job's S3OutputLocation; `neo` makes of what comes back an artifact.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lisiere.errors import ConfigError, Permanent, Rejected, Retryable
from lisiere.machine import this_machine
from lisiere_compile import artifact, neo, s3
from lisiere_compile.compiler import Log
from lisiere_compile.job import Job
from lisiere_compile.neo import Known
from lisiere_compile.source import ARCHIVE_SUFFIXES, unpack

STAGES = ("import", "upload", "compile", "download", "verify", "pack")
RUNTIME_S = 900  # SageMaker's own default of MaxRuntimeInSeconds
# Beyond what the job allows: SageMaker starts a machine, and writes what it has made.
_GRACE_S = 900
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0
_MOST_FAILURES = 5  # of the question how the job is, one after another
_OUTPUT = "$.OutputConfig.S3OutputLocation"
# What this compiler calls a device and SageMaker a platform.
_PLATFORMS = {"x86_64": "X86_64", "aarch64": "ARM64", "armv7l": "ARM_EABIHF"}


def compile_in_cloud(
    job: Job,
    given: Path,
    output: Path,
    *,
    name: str | None = None,
    keep_onnx: bool = True,
    log: Log | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Have SageMaker compile a job, and return the artifact's folder, `<output>/<name>-<target>`.

    Args:
        job: the document; its S3Uri may be local, its S3OutputLocation not.
        given: the model on this machine, fetched where the job has it in S3.
        output: the folder for the artifact.
        name: of the model, in place of its own.
        keep_onnx: put the ONNX file into the artifact too.
        log: where progress goes.
        pause: waits for seconds.

    Raises:
        ConfigError: the job lacks what SageMaker needs.
        Rejected: AWS refuses something, the compilation fails, or the result is not what the reference gives.
        Permanent: the job was stopped, or did not end in its time.
        KeyboardInterrupt: after the job has been stopped.
    """
    log = log or Log()
    _check(job)
    sagemaker = s3.client("sagemaker")
    with tempfile.TemporaryDirectory(prefix="lisiere-cloud-") as scratch:
        work = Path(scratch)
        with log.stage("import"):
            known = neo.look(job, given, name, work)
        uri = job.InputConfig.S3Uri
        if not s3.in_s3(uri):
            with log.stage("upload"):
                place = f"{job.OutputConfig.S3OutputLocation.rstrip('/')}/{job.CompilationJobName}"
                uri = s3.upload(_packed(given, known, work), place, _OUTPUT)
        with log.stage("compile"):
            made = _run(sagemaker, _request(job, uri, known), log, pause)
        with log.stage("download"):
            unpack(s3.download(made, work / "made", _OUTPUT), work / "neo")
        files = neo.find_files(work / "neo", made)
        target = neo.target_name(job, neo.arch_of(files[artifact.LIBRARY]))
        with artifact.placed(output / f"{known.source.name}-{target}") as folder:
            for file, found in files.items():
                shutil.copyfile(found, folder / file)
            with log.stage("verify"):
                neo.complete(folder, job, known, keep_onnx, log)
            with log.stage("pack"):
                artifact.pack(folder)
    return output / f"{known.source.name}-{target}"


def _check(job: Job) -> None:
    if job.RoleArn is None:
        raise ConfigError(
            "SageMaker needs the ARN of a role that may read and write the job's S3 locations: `RoleArn` in the job, "
            "or `--role`.",
            "$.RoleArn",
        )
    if not s3.in_s3(job.OutputConfig.S3OutputLocation):
        raise ConfigError(
            f"SageMaker writes to S3, and {job.OutputConfig.S3OutputLocation} is no s3:// location: give one in the "
            "job, or with `--s3`.",
            _OUTPUT,
        )
    if job.InputConfig.Framework == "LIGHTGBM":
        raise ConfigError("SageMaker does not take LIGHTGBM; compile it here.", "$.InputConfig.Framework")


def _packed(given: Path, known: Known, work: Path) -> Path:
    """Return the archive that SageMaker gets: the one given, or one of the model file or of all in the folder."""
    if given.is_file() and given.name.endswith(ARCHIVE_SUFFIXES):
        return given
    members = {known.source.file.name: known.source.file}
    if given.is_dir() and known.source.manifest is None:
        members = {str(one.relative_to(given)): one for one in given.rglob("*") if one.is_file()}
    return artifact.write_archive(work / "model.tar.gz", members)


def _request(job: Job, uri: str, known: Known) -> dict[str, Any]:
    """Return the job as SageMaker takes it, with the shapes of an ONNX model where the job leaves them out."""
    document: dict[str, Any] = _without_none(msgspec.to_builtins(job))
    document["InputConfig"]["S3Uri"] = uri
    if job.InputConfig.DataInputConfig is None and known.model is not None:
        shapes = {spec.name: spec.shape for spec in known.model.inputs}
        document["InputConfig"]["DataInputConfig"] = msgspec.json.encode(shapes).decode()
    document["StoppingCondition"] = {"MaxRuntimeInSeconds": RUNTIME_S, **document.get("StoppingCondition", {})}
    device = job.OutputConfig.TargetDevice
    arch = this_machine().arch if device == "native" else device
    if device in ("native", "x86_64", "aarch64") and arch in _PLATFORMS:
        del document["OutputConfig"]["TargetDevice"]
        document["OutputConfig"]["TargetPlatform"] = {"Os": "LINUX", "Arch": _PLATFORMS[arch]}
    return document


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(one) for name, one in value.items() if one is not None and one != []}
    return value


def _run(sagemaker: Any, request: dict[str, Any], log: Log, pause: Callable[[float], None]) -> str:
    """Create the job, wait for its end, and return where its artifact lies; an interrupt stops the job."""
    name = request["CompilationJobName"]
    with s3.errors(f"The compilation job {name} could not be created"):
        sagemaker.create_compilation_job(**request)
    try:
        return _wait(sagemaker, name, request["StoppingCondition"], log, pause)
    except KeyboardInterrupt:
        try:
            with s3.errors("it could not be stopped"):
                sagemaker.stop_compilation_job(CompilationJobName=name)
        except (ConfigError, Rejected, Retryable) as error:
            log.warned(f"The compilation job {name} goes on in SageMaker: {error}")
        else:
            log.warned(f"The compilation job {name} is being stopped in SageMaker.")
        raise


def _wait(sagemaker: Any, name: str, limits: dict[str, int], log: Log, pause: Callable[[float], None]) -> str:
    most = sum(limits.get(key, 0) for key in ("MaxRuntimeInSeconds", "MaxPendingTimeInSeconds")) + _GRACE_S
    waited, delay, failures = 0.0, _FIRST_PAUSE_S, 0
    while True:
        try:
            with s3.errors(f"The compilation job {name} could not be asked after"):
                answer = sagemaker.describe_compilation_job(CompilationJobName=name)
            failures = 0
        except Retryable:
            failures += 1
            if failures == _MOST_FAILURES:
                raise
        else:
            status = answer["CompilationJobStatus"]
            log.said(f"{name}: {status.lower()}, {waited:.0f} s")
            if status == "COMPLETED":
                return str(answer["ModelArtifacts"]["S3ModelArtifacts"])
            if status == "FAILED":
                reason = answer.get("FailureReason") or "it gives no reason"
                raise Rejected(f"SageMaker could not compile {name}: {reason}")
            if status == "STOPPED":
                raise Permanent(f"The compilation job {name} was stopped in SageMaker.")
        if waited >= most:
            raise Permanent(
                f"The compilation job {name} has not ended after {most} seconds and goes on in SageMaker: "
                f"`aws sagemaker describe-compilation-job --compilation-job-name {name}` tells of it."
            )
        pause(delay)
        waited, delay = waited + delay, min(delay * 1.5, _LONGEST_PAUSE_S)
