"""The job document: SageMaker's `CreateCompilationJob` request, validated once into frozen structs.

A document that SageMaker takes is taken here as it is. What differs: the two S3 URIs may be local paths, and there is
the framework LIGHTGBM, which SageMaker has not.
Unknown keys are errors, and every error names its path. Source: the API reference of CreateCompilationJob.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta, Struct, field

from lisiere.errors import ConfigError

JOB_MAX_BYTES = 1 << 20

# SageMaker's, and LIGHTGBM.
Framework = Literal[
    "TENSORFLOW", "KERAS", "MXNET", "ONNX", "PYTORCH", "XGBOOST", "TFLITE", "DARKNET", "SKLEARN", "LIGHTGBM"
]  # fmt: skip
Dimension = Annotated[int, Meta(ge=1, le=1 << 31)]
Shape = tuple[Dimension, ...]
Feature = Annotated[str, Meta(pattern=r"^[+-][A-Za-z0-9_.-]{1,32}$")]


class _Part(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What all parts share: unknown keys are errors. Type checkers want the rest said at each class."""


class InputConfig(_Part, frozen=True, kw_only=True):
    """Where the model lies and what it is. `DataInputConfig` is a JSON string: input name -> shape."""

    S3Uri: Annotated[str, Meta(min_length=1, max_length=1024)]
    Framework: Framework
    DataInputConfig: Annotated[str, Meta(min_length=1, max_length=16384)] | None = None
    FrameworkVersion: Annotated[str, Meta(max_length=10)] | None = None


class TargetPlatform(_Part, frozen=True, kw_only=True):
    """A target by what it is rather than by its name."""

    Os: Literal["LINUX", "ANDROID"]
    Arch: Literal["X86_64", "X86", "ARM64", "ARM_EABI", "ARM_EABIHF"]
    Accelerator: Literal["INTEL_GRAPHICS", "MALI", "NVIDIA", "NNA"] | None = None


class OutputConfig(_Part, frozen=True, kw_only=True):
    """Where the artifact goes and for which machine it is. `CompilerOptions` is a JSON string."""

    S3OutputLocation: Annotated[str, Meta(min_length=1, max_length=1024)]
    TargetDevice: str | None = None
    TargetPlatform: TargetPlatform | None = None
    CompilerOptions: Annotated[str, Meta(min_length=3, max_length=1024)] | None = None
    KmsKeyId: Annotated[str, Meta(max_length=2048)] | None = None


class StoppingCondition(_Part, frozen=True, kw_only=True):
    """When SageMaker gives up."""

    MaxRuntimeInSeconds: Annotated[int, Meta(ge=1)] | None = None
    MaxWaitTimeInSeconds: Annotated[int, Meta(ge=1)] | None = None
    MaxPendingTimeInSeconds: Annotated[int, Meta(ge=1)] | None = None


class Job(_Part, frozen=True, kw_only=True):
    """A compilation job. What only the cloud needs (role, network, tags) is carried and not used here."""

    CompilationJobName: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$")]
    InputConfig: InputConfig
    OutputConfig: OutputConfig
    RoleArn: str | None = None
    StoppingCondition: StoppingCondition | None = None
    VpcConfig: dict[str, Any] | None = None
    Tags: list[dict[str, str]] = field(default_factory=list)


def load_job(file: Path) -> Job:
    """Read and validate a job file.

    Raises:
        ConfigError: it cannot be read or is not such a document; `path` names the place.
    """
    try:
        if file.stat().st_size > JOB_MAX_BYTES:
            raise ConfigError(f"{file} is larger than {JOB_MAX_BYTES} bytes, which no job needs.")
        text = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"The job {file} cannot be read: {error.strerror}.") from error
    return parse_job(text)


def parse_job(text: bytes) -> Job:
    """Validate a job document.

    Raises:
        ConfigError: not JSON, or not such a document; `path` names the place.
    """
    try:
        job = msgspec.json.decode(text, type=Job)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        raise ConfigError(f"{message}.", path.rstrip("`") or "$") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"The job is not JSON: {error}.") from error
    if (job.OutputConfig.TargetDevice is None) == (job.OutputConfig.TargetPlatform is None):
        raise ConfigError("A job names either a `TargetDevice` or a `TargetPlatform`.", "$.OutputConfig")
    input_shapes(job)
    compiler_options(job)
    return job


def input_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Return what `DataInputConfig` says: input name -> shape; empty when the job has none.

    Raises:
        ConfigError: it is not a JSON object of shapes.
    """
    text = job.InputConfig.DataInputConfig
    if text is None:
        return {}
    try:
        found = msgspec.json.decode(text, type=dict[str, Shape] | list[Shape])
        # The form that SageMaker takes for PyTorch, with the names that it gives such inputs.
        return found if isinstance(found, dict) else {f"input{index}": shape for index, shape in enumerate(found)}
    except msgspec.DecodeError as error:
        raise ConfigError(
            f'`DataInputConfig` is a JSON string such as {{"input": [1, 3, 32, 32]}}: {error}.',
            "$.InputConfig.DataInputConfig",
        ) from error


class CompilerOptions(_Part, frozen=True, kw_only=True):
    """What `CompilerOptions` may say. What is for a GPU is taken, so that the target can say where such a job goes.

    Attributes:
        mcpu: the CPU in LLVM's names, such as skylake-avx512.
        mattr: features to add to it or to leave out, such as +neon.
        dtype: of the inputs of a PyTorch model.
        gpu_code, trt_ver, cuda_ver: for NVIDIA.
    """

    mcpu: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = None
    mattr: Annotated[tuple[Feature, ...], Meta(max_length=64)] = ()
    dtype: Literal["float", "float32", "int64", "long"] | None = None
    gpu_code: str | None = field(default=None, name="gpu-code")
    trt_ver: str | None = field(default=None, name="trt-ver")
    cuda_ver: str | None = field(default=None, name="cuda-ver")

    @property
    def gpu(self) -> str:
        """The first option that is for a GPU, or nothing."""
        given = {"gpu-code": self.gpu_code, "trt-ver": self.trt_ver, "cuda-ver": self.cuda_ver}
        return next((name for name, value in given.items() if value is not None), "")


def compiler_options(job: Job) -> CompilerOptions:
    """Return what `CompilerOptions` says.

    Raises:
        ConfigError: it is not JSON, or has an option that is not known here.
    """
    text = job.OutputConfig.CompilerOptions
    if text is None:
        return CompilerOptions()
    try:
        return msgspec.json.decode(text, type=CompilerOptions)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f'`CompilerOptions` is a JSON string such as {{"mcpu": "x86-64-v3"}}: {error}.',
            "$.OutputConfig.CompilerOptions",
        ) from error


def is_job(file: Path) -> bool:
    """Whether a file is a job's document rather than a model: JSON, and not what XGBoost saves.

    A name that ends in .json counts where the content does not tell, so that reading it as a job says what is wrong.
    """
    named = file.suffix.lower() == ".json"
    try:
        if file.stat().st_size > JOB_MAX_BYTES:
            return False
        document = msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return named
    return "learner" not in document and (named or "InputConfig" in document)


def model_job(
    model: str, framework: str, target: str, output: str, shapes: Mapping[str, Sequence[int]], name: str
) -> Job:
    """Return the job that a command line with a model, rather than a job, stands for.

    Raises:
        ConfigError: what was given makes no valid job.
    """
    called = re.sub(r"[^A-Za-z0-9]+", "-", f"{name}-{target}").strip("-")[:63].rstrip("-")
    document: dict[str, Any] = {
        "CompilationJobName": called,
        "InputConfig": {"S3Uri": model, "Framework": framework},
        "OutputConfig": {"S3OutputLocation": output, "TargetDevice": target},
    }
    if shapes:
        document["InputConfig"]["DataInputConfig"] = json.dumps(shapes)
    return parse_job(json.dumps(document).encode())


def local_path(uri: str, base: Path, where: str) -> Path:
    """Return the local path that a URI of a job stands for.

    Args:
        uri: a path, or a `file://` URI.
        base: the folder that relative paths start from.
        where: the path in the document, for the message.

    Raises:
        ConfigError: it names something that is not on this machine.
    """
    # A path is not parsed as a URI: it may well hold `#`, `?` or `%`.
    if "://" not in uri:
        return base / Path(uri).expanduser()
    parts = urlsplit(uri)
    if parts.scheme == "s3":
        raise ConfigError(f"{uri} lies in S3, where a local path or a file:// URI is wanted.", where)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(f"{uri} is neither a local path nor a file:// URI of this machine.", where)
    return Path(unquote(parts.path))
