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
from lisiere.models.manifest import Build, Dtype
from lisiere_compile import artifact, codegen, lower
from lisiere_compile.frontends import onnx as onnx_frontend
from lisiere_compile.graph import build_graph
from lisiere_compile.job import Job, input_shapes, local_path
from lisiere_compile.link import compiler_version, find_compiler, link
from lisiere_compile.params import encode_params
from lisiere_compile.program import Program
from lisiere_compile.quiet import quiet
from lisiere_compile.source import open_source
from lisiere_compile.target import Target, resolve_target
from lisiere_compile.verify import Verdict, random_inputs, reference_outputs, verify_apart
from lisiere_compile.wrapper import wrapper_source

STAGES = ("read", "lower", "generate", "link", "write", "verify")


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
    """Compile a job and return the artifact's folder, `<output>/<name>-<target>`.

    An artifact that was there before is replaced at the end, in one step, and stays when anything fails.

    Args:
        job: the validated document.
        base: the folder that the document's relative paths start from.
        output: in place of the job's S3OutputLocation.
        keep_onnx: put the ONNX file into the artifact too, so that the onnx backend can run it.
        log: where progress goes.

    Raises:
        ConfigError: the job names something that is not here, such as S3.
        Rejected: the model or the target cannot be compiled, or the result is not what ONNX Runtime gives.
        Permanent: there is no C compiler.
    """
    log = log or Log()
    if job.InputConfig.Framework != "ONNX":
        raise Rejected(f"The framework {job.InputConfig.Framework} cannot be compiled yet; export the model to ONNX.")
    where = local_path(job.InputConfig.S3Uri, base, "$.InputConfig.S3Uri")
    if output is None:
        output = local_path(job.OutputConfig.S3OutputLocation, base, "$.OutputConfig.S3OutputLocation")
    target = resolve_target(job)
    find_compiler()  # what is missing is better said before the work than after it
    with tempfile.TemporaryDirectory(prefix="lisiere-compile-") as scratch:
        work = Path(scratch)
        with log.stage("read"):
            package = open_source(where, work)
            file = package.file(package.manifest.onnx or "")
            model = onnx_frontend.read_onnx(file, input_shapes(job))
        with log.stage("lower"):
            with quiet():
                module = lower.legalise(onnx_frontend.to_relax(model, file.name), model, target)
                program = lower.to_program(module, model)
            outputs = _output_specs(program, model.outputs)
            artifact.check_agreement(package.manifest, model.inputs, outputs)
            graph, parameters = build_graph(program, [spec.name for spec in model.inputs])
        with log.stage("generate"):
            log.kernels = len(program.functions)
            with quiet():
                log.unscheduled = (
                    codegen.generate(program.functions, target, work / "kernels.o").unscheduled
                    if program.functions
                    else ()
                )
        with log.stage("link"):
            kernels = "kernels.o" if program.functions else None
            library = link(work, wrapper_source(program.symbols()), kernels, artifact.LIBRARY)
        final = output / f"{package.manifest.name}-{target.name}"
        with artifact.placed(final) as folder:
            with log.stage("write"):
                params = encode_params({name: program.constants[value] for name, value in parameters.items()})
                artifact.write_graph(folder, graph, params, library)
                artifact.write_meta(folder, model.inputs, outputs, target.arch)
                _complete(folder, package, model.inputs, outputs, target, keep_onnx)
            with log.stage("verify"):
                log.verdict = verify_apart(folder, file)
    return final


def _complete(
    folder: Path,
    package: Package,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    target: Target,
    keep_onnx: bool,
) -> None:
    """Write what tells of the artifact; a package without golden vectors gets some from ONNX Runtime."""
    onnx = package.file(package.manifest.onnx or "")
    if package.manifest.golden is None:
        feeds = random_inputs(inputs)
        found = reference_outputs(onnx, package.manifest, feeds)
        artifact.write_golden(
            folder / artifact.GOLDEN,
            {spec.name: np.stack([feed[spec.name] for feed in feeds]) for spec in inputs},
            {spec.name: np.stack([result[spec.name] for result in found]) for spec in package.manifest.outputs},
        )
    build = Build(
        target=target.name,
        arch=target.arch,
        cpu=target.cpu,
        source_sha256=hashlib.sha256(onnx.read_bytes()).hexdigest(),
        tools=artifact.tool_versions(compiler_version(find_compiler())),
    )
    artifact.write_meaning(folder, package, inputs, outputs, build, keep_onnx)


def _output_specs(program: Program, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    specs = []
    for name, value in zip(names, program.outputs, strict=True):
        if value.dtype not in Dtype.__args__:  # type: ignore[attr-defined]
            raise Rejected(f"The output {name!r} is {value.dtype}, which a manifest has no name for.")
        specs.append(TensorSpec(name=name, shape=value.shape, dtype=value.dtype))  # type: ignore[arg-type]
    return tuple(specs)
