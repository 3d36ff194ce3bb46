"""One compilation from end to end: a job in, an artifact in its place out, or nothing."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lisiere.errors import Rejected
from lisiere.models import Package, TensorSpec
from lisiere.models.manifest import Build, Dtype, Verified
from lisiere_compile import artifact, codegen, lower
from lisiere_compile.frontends import onnx as onnx_frontend
from lisiere_compile.frontends import to_onnx
from lisiere_compile.graph import build_graph, peak_activation_bytes
from lisiere_compile.job import Job, input_shapes, local_path
from lisiere_compile.kernels.rules import pack_weights, schedule
from lisiere_compile.link import compiler_version, find_compiler, link, read_needs
from lisiere_compile.params import encode_params
from lisiere_compile.program import Program
from lisiere_compile.quiet import quiet
from lisiere_compile.source import open_source
from lisiere_compile.target import Target, resolve_target
from lisiere_compile.verify import Verdict, random_inputs, reference_outputs, verify_apart
from lisiere_compile.wrapper import wrapper_source

STAGES = ("import", "optimise", "schedule", "build", "link", "verify", "pack")
KERNELS = "kernels.o"


@dataclass
class Log:
    """What a compilation reports while it runs and leaves to be read after it.

    Attributes:
        began, ended: called with a stage's name, and with its seconds at its end.
        seconds: stage -> seconds, in order.
        verdict: of the gate.
        kernels, unscheduled: how many kernels there are, and which run as TVM gave them.
        interrupted: set by a signal handler; the stage then ends in KeyboardInterrupt even where TVM has swallowed it
            or made another error of it, as its passes do.
    """

    began: Callable[[str], None] = lambda _stage: None
    ended: Callable[[str, float], None] = lambda _stage, _seconds: None
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    kernels: int = 0
    unscheduled: tuple[str, ...] = ()
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
            if self.interrupted:
                raise KeyboardInterrupt


def compile_job(
    job: Job, base: Path, *, output: Path | None = None, keep_onnx: bool = True, log: Log | None = None
) -> Path:
    """Compile a job and return the artifact's folder, `<output>/<name>-<target>`; its archive lies beside it.

    An artifact that was there before is replaced at the end, and stays when anything fails.

    Args:
        job: the validated document.
        base: the folder that the document's relative paths start from.
        output: in place of the job's S3OutputLocation.
        keep_onnx: put the ONNX file into the artifact too, so that the onnx backend can run it.
        log: where progress goes.

    Raises:
        ConfigError: the job names something that is not here, such as S3.
        Rejected: the model or the target cannot be compiled, or the result is not what ONNX Runtime gives.
        Permanent: there is no C compiler for the target.
    """
    log = log or Log()
    where = local_path(job.InputConfig.S3Uri, base, "$.InputConfig.S3Uri")
    if output is None:
        output = local_path(job.OutputConfig.S3OutputLocation, base, "$.OutputConfig.S3OutputLocation")
    target = resolve_target(job)
    find_compiler(target)  # what is missing is better said before the work than after it
    with tempfile.TemporaryDirectory(prefix="lisiere-compile-") as scratch:
        work = Path(scratch)
        with log.stage("import"):
            package = open_source(where, work)
            shapes = input_shapes(job)
            file = to_onnx(package.file(package.manifest.onnx or ""), job.InputConfig.Framework, work, shapes)
            model = onnx_frontend.read_onnx(file, shapes)
            with quiet():
                module = onnx_frontend.to_relax(model, file.name)
        with log.stage("optimise"):
            with quiet():
                program = lower.to_program(lower.legalise(module, model, target), model)
            outputs = _output_specs(program, model.outputs)
            artifact.check_agreement(package.manifest, model.inputs, outputs)
        program = _generate(program, target, work, log)
        graph, parameters = build_graph(program, [spec.name for spec in model.inputs])
        final = output / f"{package.manifest.name}-{target.name}"
        with artifact.placed(final) as folder:
            with log.stage("link"):
                kernels = KERNELS if program.functions else None
                library = link(work, wrapper_source(program.symbols()), kernels, artifact.LIBRARY, target)
                params = encode_params({name: program.constants[value] for name, value in parameters.items()})
                artifact.write_graph(folder, graph, params, library)
                artifact.write_meta(folder, model.inputs, outputs, target.arch)
            with log.stage("verify"):
                build = _build_record(target, file, program, read_needs(library).glibc)
                _verify(folder, package, file, (model.inputs, outputs), build, keep_onnx, log)
            with log.stage("pack"):
                artifact.pack(folder)
    return final


def _generate(program: Program, target: Target, work: Path, log: Log) -> Program:
    """Write the object file of the kernels, where the program has any; return the program with weights as they read."""
    log.kernels = len(program.functions)
    with log.stage("schedule"), quiet():
        scheduled = schedule(program, target)
    functions = {
        name: scheduled[name].function if name in scheduled else one for name, one in program.functions.items()
    }
    with log.stage("build"), quiet():
        failed = codegen.build(functions, program.functions, target, work / KERNELS) if functions else ()
    kept = {name: one for name, one in scheduled.items() if name not in failed}
    log.unscheduled = tuple(name for name in program.functions if name not in kept)
    return pack_weights(program, {name: one.packs for name, one in kept.items()})


def _verify(
    folder: Path,
    package: Package,
    onnx: Path,
    tensors: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    build: Build,
    keep_onnx: bool,
    log: Log,
) -> None:
    """Write what tells of the artifact, pass it through the gate, and record that it passed.

    A package without golden vectors gets some from ONNX Runtime.
    """
    inputs, outputs = tensors
    if package.manifest.golden is None:
        feeds = random_inputs(inputs)
        found = reference_outputs(onnx, package.manifest, feeds)
        artifact.write_golden(
            folder / artifact.GOLDEN,
            {spec.name: np.stack([feed[spec.name] for feed in feeds]) for spec in inputs},
            {spec.name: np.stack([result[spec.name] for result in found]) for spec in package.manifest.outputs},
        )
    manifest = artifact.write_meaning(folder, package, inputs, outputs, build, keep_onnx)
    log.verdict = verify_apart(folder, onnx)
    verified = Verified(by=log.verdict.backend, cases=log.verdict.cases)  # type: ignore[arg-type]
    artifact.write_verified(folder, manifest, verified)


def _build_record(target: Target, onnx: Path, program: Program, min_glibc: str | None) -> Build:
    return Build(
        target=target.name,
        triple=target.triple,
        arch=target.arch,
        cpu=target.cpu,
        features=target.features,
        min_glibc=min_glibc,
        source_sha256=hashlib.sha256(onnx.read_bytes()).hexdigest(),
        tools=artifact.tool_versions(compiler_version(find_compiler(target))),
        threads=target.threads,
        peak_activation_bytes=peak_activation_bytes(program),
    )


def _output_specs(program: Program, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, value in zip(names, program.outputs, strict=True):
        if value.dtype not in Dtype.__args__:  # type: ignore[attr-defined]
            raise Rejected(f"The output {name!r} is {value.dtype}, which a manifest has no name for.")
        specs.append(TensorSpec(name=name, shape=value.shape, dtype=value.dtype))  # type: ignore[arg-type]
    return tuple(specs)
