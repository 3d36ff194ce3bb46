"""One compilation from end to end: a job in, an artifact in its place out, or nothing."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere.models import Manifest, TensorSpec
from lisiere.models.manifest import Dtype, Golden, Verified
from lisiere_compile import artifact, codegen, lower
from lisiere_compile.frontends import check_framework, to_onnx
from lisiere_compile.frontends import onnx as onnx_frontend
from lisiere_compile.graph import build_graph, peak_activation_bytes
from lisiere_compile.job import Job, input_shapes, local_path
from lisiere_compile.kernels.rules import pack_weights, schedule
from lisiere_compile.kernels.tune import tune
from lisiere_compile.link import find_compiler, link
from lisiere_compile.params import encode_params
from lisiere_compile.program import Program
from lisiere_compile.quiet import quiet
from lisiere_compile.source import Source, open_source
from lisiere_compile.target import Target, resolve_target
from lisiere_compile.trees.build import compile_trees
from lisiere_compile.trees.load import FRAMEWORKS, Loaded, load
from lisiere_compile.verify import Verdict, golden_tolerance, random_inputs, reference_outputs, verify_apart
from lisiere_compile.wrapper import wrapper_source

STAGES = ("import", "optimise", "schedule", "build", "link", "verify", "pack")
KERNELS = "kernels.o"


@dataclass
class Log:
    """What a compilation reports while it runs and leaves to be read after it.

    Attributes:
        began, ended: called with a stage's name, and with its seconds at its end.
        said: called with how a stage is getting on, such as what the cloud answers.
        warned: called with what the user must hear of, however quiet the rest is.
        seconds: stage -> seconds, in order.
        verdict: of the gate.
        kernels, unscheduled: how many kernels there are, and which run as TVM gave them.
        tuned: what tuning did; empty when nobody asked for it.
        interrupted: set by a signal handler; the stage then ends in KeyboardInterrupt even where TVM has swallowed it
            or made another error of it, as its passes do.
    """

    began: Callable[[str], None] = lambda _stage: None
    ended: Callable[[str, float], None] = lambda _stage, _seconds: None
    said: Callable[[str], None] = lambda _text: None
    warned: Callable[[str], None] = lambda _text: None
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    kernels: int = 0
    unscheduled: tuple[str, ...] = ()
    tuned: str = ""
    interrupted: bool = False

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as a stage."""
        self.began(name)
        start = time.monotonic()
        try:
            yield
        finally:  # a stage that fails has ended too, and the terminal is left as it was
            self.seconds[name] = time.monotonic() - start
            self.ended(name, self.seconds[name])
            self.heed()

    def heed(self) -> None:
        """End in KeyboardInterrupt when there was one."""
        if self.interrupted:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        """Tell how a long stage is getting on, unless it was interrupted."""
        self.heed()
        self.said(text)


def compile_job(
    job: Job,
    base: Path,
    *,
    output: Path | None = None,
    name: str | None = None,
    threads: int = 1,
    tune_s: float = 0,
    keep_onnx: bool = True,
    log: Log | None = None,
) -> Path:
    """Compile a job and return the artifact's folder, `<output>/<name>-<target>`; its archive lies beside it.

    An artifact that was there before is replaced at the end, and stays when anything fails.

    Args:
        job: the validated document, whose S3Uri and S3OutputLocation are local.
        base: the folder that the document's relative paths start from.
        output: in place of the job's S3OutputLocation.
        name: of the model, in place of the one that its model.yaml or its file has.
        threads: the most that a run of the artifact uses.
        tune_s: how many seconds to spend on kernels that are faster on this machine; the same job then gives other
            bytes each time.
        keep_onnx: put the ONNX file into the artifact too, so that the onnx backend can run it.
        log: where progress goes.

    Raises:
        ConfigError: the job names something that is not on this machine, or what cannot be tuned is to be.
        Rejected: the model or the target cannot be compiled, or the result is not what its reference gives.
        Permanent: there is no C compiler for the target, or nothing can be written.
    """
    log = log or Log()
    check_framework(job.InputConfig.Framework)
    where = local_path(job.InputConfig.S3Uri, base, "$.InputConfig.S3Uri")
    if output is None:
        output = local_path(job.OutputConfig.S3OutputLocation, base, "$.OutputConfig.S3OutputLocation")
    target = resolve_target(job, threads)
    find_compiler(target)  # what is missing is better said before the work than after it
    if tune_s and not target.runs_here:
        raise ConfigError(
            f"Tuning measures, and this machine cannot run code for {target.name}. Tune on the device itself, with the "
            "target `native`, or compile without it.",
            "--tune",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="lisiere-compile-") as scratch:
            work = Path(scratch)
            with log.stage("import"):
                source = dataclasses.replace(open_source(where, work, job.InputConfig.Framework), given_name=name)
                model: Loaded | _Imported
                if tune_s and source.framework in FRAMEWORKS:
                    raise ConfigError("An ensemble of trees has no kernels to tune. Leave this out.", "--tune")
                if source.framework in FRAMEWORKS:
                    model = load(source.file, source.framework, work)
                else:
                    model = _import(source, input_shapes(job), work)
            final = output / f"{source.name}-{target.name}"
            with artifact.placed(final) as folder:
                if isinstance(model, Loaded):
                    compile_trees(source, model, target, work, folder, log)
                else:
                    _compile_graph(source, model, target, work, folder, tune_s, keep_onnx, log)
                with log.stage("pack"):
                    artifact.pack(folder)
    except OSError as error:
        raise Permanent(f"The artifact could not be made: {error.strerror or error}.") from error
    return final


@dataclass(frozen=True)
class _Imported:
    """A graph of tensors: its ONNX file, what that file says, and the Relax module made of it."""

    onnx: Path
    model: onnx_frontend.OnnxModel
    module: Any


def _import(source: Source, shapes: dict[str, tuple[int, ...]], work: Path) -> _Imported:
    converted = work / "converted"
    converted.mkdir()
    onnx = to_onnx(source.file, source.framework, converted, shapes)
    model = onnx_frontend.read_onnx(onnx, shapes)
    with quiet():
        return _Imported(onnx, model, onnx_frontend.to_relax(model, source.file.name))


def _compile_graph(
    source: Source,
    imported: _Imported,
    target: Target,
    work: Path,
    folder: Path,
    tune_s: float,
    keep_onnx: bool,
    log: Log,
) -> None:
    """Compile a graph of tensors into `folder`, all but the archive of it."""
    onnx, model = imported.onnx, imported.model
    with log.stage("optimise"):
        with quiet():
            program = lower.to_program(lower.legalise(imported.module, model, target), model)
        outputs = _output_specs(program, model.outputs)
        if source.manifest is not None:
            artifact.check_agreement(source.manifest, model.inputs, outputs)
    program = _generate(program, target, work, tune_s, log)
    graph, parameters = build_graph(program, [spec.name for spec in model.inputs])
    with log.stage("link"):
        kernels = KERNELS if program.functions else None
        library = link(work, wrapper_source(program.symbols()), kernels, artifact.LIBRARY, target)
        params = encode_params({name: program.constants[value] for name, value in parameters.items()})
        artifact.write_graph(folder, graph, params, library)
        artifact.write_meta(folder, model.inputs, outputs, target.arch)
    with log.stage("verify"):
        manifest = artifact.declared(source, model.inputs, outputs)
        if manifest.golden is None:
            manifest = msgspec.structs.replace(manifest, golden=make_golden(folder, onnx, manifest))
        build = artifact.build_record(source, target, library, artifact.GRAPH_TOOLS, peak_activation_bytes(program))
        if log.tuned:
            build = msgspec.structs.replace(build, tools={**build.tools, "tune": f"{tune_s:g} s, {log.tuned}"})
        manifest = msgspec.structs.replace(manifest, build=build, neo=artifact.GRAPH_FILES)
        manifest = artifact.write_meaning(folder, source, manifest, onnx if keep_onnx else None)
        pass_gate(folder, manifest, onnx, log)


def pass_gate(folder: Path, manifest: Manifest, onnx: Path | None, log: Log, reference: str = "onnxruntime") -> None:
    """Hold a whole artifact to its reference, and record in its manifest what was done.

    Raises:
        Rejected: it does not give what the reference gives.
    """
    log.verdict = verify_apart(folder, onnx)
    verified = Verified(by=log.verdict.backend, reference=reference, cases=log.verdict.cases, note=log.verdict.note)
    if manifest.golden is not None and log.verdict.golden_atol > manifest.golden.atol:
        golden = msgspec.structs.replace(manifest.golden, atol=log.verdict.golden_atol)
        manifest = msgspec.structs.replace(manifest, golden=golden)
    artifact.write_verified(folder, manifest, verified)


def _generate(program: Program, target: Target, work: Path, tune_s: float, log: Log) -> Program:
    """Write the object file of the kernels, where the program has any; return the program with weights as they read."""
    log.kernels = len(program.functions)
    with log.stage("schedule"):
        with quiet():
            scheduled = schedule(program, target)
        if tune_s:
            tuned = tune(program, scheduled, target, tune_s, log.say)
            scheduled, log.tuned = tuned.scheduled, str(tuned)
    functions = {
        name: scheduled[name].function if name in scheduled else one for name, one in program.functions.items()
    }
    with log.stage("build"), quiet():
        failed = codegen.build(functions, program.functions, target, work / KERNELS) if functions else ()
    kept = {name: one for name, one in scheduled.items() if name not in failed}
    log.unscheduled = tuple(name for name in program.functions if name not in kept)
    return pack_weights(program, {name: one.packs for name, one in kept.items()})


def make_golden(folder: Path, onnx: Path, manifest: Manifest) -> Golden:
    """Write golden vectors from ONNX Runtime, with what the gate allows as their tolerance."""
    feeds = random_inputs(manifest.inputs)
    found = reference_outputs(onnx, manifest, feeds)
    outputs = {spec.name: np.stack([result[spec.name] for result in found]) for spec in manifest.outputs}
    inputs = {spec.name: np.stack([feed[spec.name] for feed in feeds]) for spec in manifest.inputs}
    artifact.write_golden(folder / artifact.GOLDEN, inputs, outputs)
    return Golden(file=artifact.GOLDEN, rtol=0.0, atol=golden_tolerance(onnx, outputs))


def _output_specs(program: Program, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, value in zip(names, program.outputs, strict=True):
        if value.dtype not in Dtype.__args__:  # type: ignore[attr-defined]
            raise Rejected(
                f"The output {name!r} is {value.dtype}, which no runtime here reads. Cast it to one of "
                f"{', '.join(Dtype.__args__)} in the model."  # type: ignore[attr-defined]
            )
        specs.append(TensorSpec(name=name, shape=value.shape, dtype=value.dtype))  # type: ignore[arg-type]
    return tuple(specs)
