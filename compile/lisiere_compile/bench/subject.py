"""What is measured: one model in the forms that the contestants take, and the compiled one among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lisiere.backends import Tensor, open_model
from lisiere.errors import LisiereError, Rejected
from lisiere.models import TensorSpec, open_package
from lisiere_compile.quiet import quiet
from lisiere_compile.verify import random_inputs

ONNX, TFLITE = ".onnx", ".tflite"
# Numbers from 0 to 1: no activation dies of them, and no exponential overflows.
_CASE = 1


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        name: in the table.
        onnx: with static shapes, for the compiler and its peers.
        tflite: the same model for LiteRT, if there is one.
        artifact: compiled already, if it is.
        inputs: of the ONNX model.
        feeds: random, the same for all contestants and on every machine.
    """

    name: str
    onnx: Path
    tflite: Path | None
    artifact: Path | None
    inputs: tuple[TensorSpec, ...]
    feeds: dict[str, Tensor]


def open_subject(model: Path, work: Path, tflite: Path | None = None, name: str | None = None) -> Subject:
    """Read a model for measuring.

    Args:
        model: an ONNX file, a TFLite file, or the folder of an artifact with its ONNX file inside.
        work: an empty folder for what is made of it.
        tflite: the same model for LiteRT; a TFLite model is its own.
        name: in the table, in place of the file's.

    Raises:
        Rejected: it is none of these.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    from lisiere_compile import frontends
    from lisiere_compile.frontends.onnx import input_specs

    artifact = None
    if model.is_dir():
        package = open_package(model)
        if package.manifest.onnx is None:
            raise Rejected(f"{model} holds no ONNX file, so no peer can run its model. Compile it without --no-onnx.")
        if package.manifest.neo is not None:
            artifact = model
        file = package.file(package.manifest.onnx)
    elif model.is_file() and model.suffix == ONNX:
        file = model
    elif model.is_file() and model.suffix == TFLITE:
        file, tflite = frontends.to_onnx(model, "TFLITE", work, {}), model
    elif model.exists():
        raise Rejected(f"{model} is neither an .onnx file, nor a .tflite file, nor the folder of an artifact.")
    else:
        raise Rejected(f"There is nothing at {model}.")
    try:
        proto = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise Rejected(f"{file} is not an ONNX file, or is cut short.") from error
    if not proto.graph.output:
        raise Rejected(f"{file} is not an ONNX file, or is cut short: it has no graph with outputs.")
    inputs = input_specs(proto, {}, file)  # not by the compiler's reader: peers may run what it cannot compile
    fixed = _fixed(proto, inputs, work / "fixed.onnx")
    return Subject(name or model.resolve().stem, fixed, tflite, artifact, inputs, random_inputs(inputs)[_CASE])


def _fixed(proto: Any, inputs: tuple[TensorSpec, ...], to: Path) -> Path:
    """Write the model with the shapes of its inputs filled in, so that every runtime may plan for them."""
    import onnx

    by_name = {spec.name: spec for spec in inputs}
    for value in proto.graph.input:
        if (spec := by_name.get(value.name)) is not None:
            value.type.tensor_type.shape.Clear()
            for size in spec.shape:
                value.type.tensor_type.shape.dim.add().dim_value = size
    del proto.graph.value_info[:]  # what it says of shapes in between may be dynamic still
    onnx.save(proto, str(to))
    return to


@dataclass
class Made:
    """How the artifact came to be.

    Attributes:
        folder: of the artifact.
        seconds: stage -> seconds, in order; none for an artifact that was there.
        kernels, unscheduled: as the compiler reports them.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    kernels: int = 0
    unscheduled: tuple[str, ...] = ()


def make_artifact(subject: Subject, work: Path, threads: int, say: Callable[[str], None]) -> Made:
    """Compile a subject for this machine and so many threads, unless it is an artifact already.

    Raises:
        LisiereError: it cannot be compiled.
    """
    from lisiere_compile.compiler import Log, compile_job
    from lisiere_compile.frontends.onnx import first_line
    from lisiere_compile.job import parse_job

    if subject.artifact is not None:
        return Made(subject.artifact)
    job = {
        "CompilationJobName": "bench",
        "InputConfig": {"S3Uri": str(subject.onnx), "Framework": "ONNX"},
        "OutputConfig": {"S3OutputLocation": str(work / "out"), "TargetDevice": "native"},
    }
    log = Log(ended=lambda stage, seconds: say(f"{subject.name}: {stage} {seconds:.1f} s"))
    try:
        made = compile_job(parse_job(json.dumps(job).encode()), work, threads=threads, log=log)
    except LisiereError:
        raise
    except Exception as error:  # what TVM raises in its passes; the other contestants are measured all the same
        raise Rejected(f"the compiler failed: {type(error).__name__}: {first_line(error)}") from error
    return Made(made, dict(log.seconds), log.kernels, log.unscheduled)


class Compiled:
    """The compiled model in the device's own backend, libdlr or else the graph executor, with its inputs in place."""

    def __init__(self, folder: Path, feeds: dict[str, Tensor], threads: int) -> None:
        with quiet():  # libdlr tells of its threads
            opened = open_model(open_package(folder), threads=threads)
        if opened.backend == "onnx":
            raise Rejected(f"Neither libdlr nor the graph executor can run it: {opened.why}")
        self.backend = opened.backend
        model: Any = opened.model
        model.run(feeds)  # from here on they are in place
        self.call, self._model, self._feeds = model.infer, model, feeds

    def outputs(self) -> list[Tensor]:
        """Return what the inputs give."""
        return list(self._model.run(self._feeds).values())

    def close(self) -> None:
        """Let go of the model."""
        self._model.close()
