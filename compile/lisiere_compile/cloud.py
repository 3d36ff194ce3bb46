"""The cloud back end: the same job to SageMaker Neo, and an artifact like any other of what it makes.

A local model is packed and uploaded beside the job's S3OutputLocation. What comes back is completed with a manifest and
golden vectors, and passes the same gate where this machine can run it; where it cannot, the manifest says why.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from lisiere.errors import ConfigError, Permanent, Rejected, Retryable
from lisiere.machine import this_machine
from lisiere.models import TensorSpec
from lisiere.models.manifest import Build, Verified
from lisiere.models.package import Graph
from lisiere_compile import artifact, s3
from lisiere_compile.compiler import Log, make_golden
from lisiere_compile.frontends import to_onnx
from lisiere_compile.frontends.onnx import OnnxModel, read_onnx
from lisiere_compile.job import Job, compiler_options, input_shapes
from lisiere_compile.link import read_needs
from lisiere_compile.source import ARCHIVE_SUFFIXES, Source, open_source, plain_name, unpack
from lisiere_compile.target import host_name
from lisiere_compile.verify import verify_apart

STAGES = ("import", "upload", "compile", "download", "verify", "pack")
RUNTIME_S = 900  # SageMaker's own default of MaxRuntimeInSeconds
# Beyond what the job allows: SageMaker starts a machine, and writes what it has made.
_GRACE_S = 900
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 30.0
_MOST_FAILURES = 5  # of the question how the job is, one after another
_OUTPUT = "$.OutputConfig.S3OutputLocation"
# What this compiler calls a device and SageMaker a platform.
_PLATFORMS = {"x86_64": "X86_64", "aarch64": "ARM64", "armv7l": "ARM_EABIHF"}
_MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l"}  # ELF's e_machine


@dataclass(frozen=True)
class _Known:
    """What is known of the model on this machine.

    Attributes:
        source: the model; for a framework without a front end, whatever was given.
        onnx, model: what the reference runtime runs; None without one.
        why_not: why there is none.
    """

    source: Source
    onnx: Path | None = None
    model: OnnxModel | None = None
    why_not: str = ""


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
            known = _look(job, given, name, work)
        uri = job.InputConfig.S3Uri
        if not s3.in_s3(uri):
            with log.stage("upload"):
                place = f"{job.OutputConfig.S3OutputLocation.rstrip('/')}/{job.CompilationJobName}"
                uri = s3.upload(_packed(given, known, work), place, _OUTPUT)
        with log.stage("compile"):
            made = _run(sagemaker, _request(job, uri, known), log, pause)
        with log.stage("download"):
            unpack(s3.download(made, work / "made", _OUTPUT), work / "neo")
        files = _neo_files(work / "neo", made)
        arch = _arch(files[artifact.LIBRARY])
        final = output / f"{known.source.name}-{_target_name(job, arch)}"
        with artifact.placed(final) as folder:
            for file, found in files.items():
                shutil.copyfile(found, folder / file)
            with log.stage("verify"):
                _complete(folder, job, known, arch, keep_onnx, log)
            with log.stage("pack"):
                artifact.pack(folder)
    return final


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


def _look(job: Job, given: Path, name: str | None, work: Path) -> _Known:
    """Read the model as far as this machine can; what it cannot read may still be for SageMaker."""
    framework = job.InputConfig.Framework
    if not given.exists():
        raise Rejected(f"There is nothing at {given}.")
    bare = Source(given, framework, None, given.parent, name or plain_name(given.name.partition(".")[0]))
    try:
        source = open_source(given, work, framework)
        source = replace(source, given_name=name)
        bare = source
        (work / "converted").mkdir()
        onnx = to_onnx(source.file, framework, work / "converted", input_shapes(job))
        return _Known(source, onnx, read_onnx(onnx, input_shapes(job)))
    except (Rejected, Permanent) as error:
        return _Known(bare, why_not=str(error))


def _packed(given: Path, known: _Known, work: Path) -> Path:
    """Return the archive that SageMaker gets: the one given, or one of the model file or of all in the folder."""
    if given.is_file() and given.name.endswith(ARCHIVE_SUFFIXES):
        return given
    members = {known.source.file.name: known.source.file}
    if given.is_dir() and known.source.manifest is None:
        members = {str(one.relative_to(given)): one for one in given.rglob("*") if one.is_file()}
    return artifact.write_archive(work / "model.tar.gz", members)


def _request(job: Job, uri: str, known: _Known) -> dict[str, Any]:
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


def _neo_files(folder: Path, uri: str) -> dict[str, Path]:
    """Return the files that a runtime loads, by the names that an artifact here has for them.

    Raises:
        Rejected: they are not one graph with its parameters and library; the archive stays where it is.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    libraries = [file for file in files if file.suffix == ".so" and not file.name.startswith("libdlr")]
    graphs = [file for file in files if file.suffix == ".json" and _is_graph(file)]
    params = [file for file in files if file.suffix == ".params"]
    if not len(libraries) == len(graphs) == len(params) == 1:
        held = ", ".join(file.name for file in files)
        raise Rejected(
            f"SageMaker's artifact holds {held or 'nothing'}, and not the graph, the parameters and the library of one "
            f"model, so it is not kept here. It stays at {uri}."
        )
    found = {artifact.LIBRARY: libraries[0], artifact.GRAPH: graphs[0], artifact.PARAMS: params[0]}
    metas = [file for file in files if file.suffix == ".meta"]
    return {**found, artifact.META: metas[0]} if len(metas) == 1 else found


def _is_graph(file: Path) -> bool:
    try:
        msgspec.json.decode(file.read_bytes(), type=Graph)
    except msgspec.DecodeError:
        return False
    return True


def _arch(library: Path) -> str:
    """Return the architecture of an ELF library, as `platform.machine()` says there."""
    with library.open("rb") as stream:
        head = stream.read(20)
    machine = struct.unpack_from("<H", head, 18)[0] if head.startswith(b"\x7fELF") and len(head) == 20 else 0
    return _MACHINES.get(machine, "unknown")


def _target_name(job: Job, arch: str) -> str:
    platform, device = job.OutputConfig.TargetPlatform, job.OutputConfig.TargetDevice
    if platform is None:
        return host_name() if device in (None, "native") else str(device)
    return "_".join(filter(None, (platform.Os.lower(), arch, (platform.Accelerator or "").lower())))


def _complete(folder: Path, job: Job, known: _Known, arch: str, keep_onnx: bool, log: Log) -> None:
    """Write the manifest, pass the artifact through the gate where this machine can, and record what was done."""
    inputs, outputs = _tensors(folder, job, known)
    if known.source.manifest is not None:
        artifact.check_agreement(known.source.manifest, inputs, outputs)
    manifest = artifact.declared(known.source, inputs, outputs)
    onnx, options = known.onnx, compiler_options(job)
    if onnx is not None and manifest.golden is None:
        manifest = msgspec.structs.replace(manifest, golden=make_golden(folder, onnx, manifest))
    build = Build(
        target=_target_name(job, arch),
        arch=arch,
        cpu=options.mcpu or "generic",
        source_sha256=_digest(known.source.file),
        tools={"lisiere": version("lisiere"), "sagemaker-neo": job.CompilationJobName},
        min_glibc=read_needs(folder / artifact.LIBRARY).glibc,
    )
    manifest = msgspec.structs.replace(manifest, build=build, neo=artifact.GRAPH_FILES)
    manifest = artifact.write_meaning(folder, known.source, manifest, onnx if keep_onnx else None)
    accelerator = job.OutputConfig.TargetPlatform.Accelerator if job.OutputConfig.TargetPlatform else None
    if accelerator or options.gpu:
        verified = Verified(by="nothing", note="It is for a GPU, and the gate runs on the CPU.")
    elif arch != this_machine().arch:
        verified = Verified(by="nothing", note=f"It is for {arch}, and this machine is {this_machine().arch}.")
    elif onnx is None:
        verified = Verified(by="nothing", note=f"There is nothing to compare it with: {known.why_not}")
    else:
        log.verdict = verify_apart(folder, onnx)
        verified = Verified(by=log.verdict.backend, cases=log.verdict.cases)
    artifact.write_verified(folder, manifest, verified)


def _digest(model: Path) -> str:
    """Return the SHA-256 of a model's file, or of all files of a folder in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(model.rglob("*")) if model.is_dir() else [model]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


class _Tensor(msgspec.Struct):
    """A tensor in a compiled.meta; SageMaker may say more of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class _Model(msgspec.Struct):
    """`Model` of a compiled.meta."""

    Inputs: tuple[_Tensor, ...]
    Outputs: tuple[_Tensor, ...]


class _Meta(msgspec.Struct):
    """A compiled.meta, as far as it is read here."""

    Model: _Model


def _tensors(folder: Path, job: Job, known: _Known) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs: from SageMaker's compiled.meta, else from the graph and the job's input names.

    Outputs have the names of the ONNX model where that is known, since the graph may have lost them.
    """
    names = [spec.name for spec in known.model.inputs] if known.model else list(input_shapes(job))
    try:
        if (folder / artifact.META).is_file():
            model = msgspec.json.decode((folder / artifact.META).read_bytes(), type=_Meta).Model
            inputs, outputs = (
                tuple(msgspec.convert(msgspec.to_builtins(tensor), TensorSpec) for tensor in tensors)
                for tensors in (model.Inputs, model.Outputs)
            )
        else:
            inputs, outputs = _graph_tensors(folder / artifact.GRAPH, names)
            artifact.write_meta(folder, inputs, outputs, _arch(folder / artifact.LIBRARY))
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, IndexError) as error:
        raise Rejected(f"SageMaker's artifact does not say what its tensors are: {error}.") from error
    if known.model and len(known.model.outputs) == len(outputs):
        renamed = zip(outputs, known.model.outputs, strict=True)
        outputs = tuple(msgspec.structs.replace(spec, name=name) for spec, name in renamed)
    return inputs, outputs


def _graph_tensors(file: Path, names: list[str]) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    graph = msgspec.json.decode(file.read_bytes(), type=Graph)
    places = {node.name: row for node, row in zip(graph.nodes, graph.node_row_ptr, strict=False)}
    absent = [name for name in names if name not in places]
    if absent or not names:
        raise ValueError(f"its graph has no input {', '.join(absent) or 'that the job names in DataInputConfig'}")

    def spec(name: str, row: int) -> TensorSpec:
        found = {"name": name, "shape": graph.attrs.shape[1][row], "dtype": graph.attrs.dltype[1][row]}
        return msgspec.convert(found, TensorSpec)

    heads = [(graph.nodes[node].name, graph.node_row_ptr[node] + output) for node, output, *_ in graph.heads]
    return tuple(spec(name, places[name]) for name in names), tuple(spec(*head) for head in heads)
