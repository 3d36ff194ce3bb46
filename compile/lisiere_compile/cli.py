"""The subcommand `lisiere compile`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lisiere.errors import ConfigError, LisiereError

if TYPE_CHECKING:
    from lisiere_compile.compiler import Log
    from lisiere_compile.job import Job

DONE, FAILED, USAGE = 0, 1, 2
_DESCRIPTION = """\
Compile a model for DLR, on this machine: what SageMaker Neo does, without the cloud.

Give a model, or the job that SageMaker would get: a CreateCompilationJob document (JSON), whose two S3 URIs may also be
local paths. A model is a file (ONNX, TFLite, PyTorch; XGBoost, LightGBM, scikit-learn trees), a folder with a
model.yaml, or a model.tar.gz of one of these. A model.yaml beside the file says what its input and output mean; without
one the artifact is tensors alone.

The output gets the folder <name>-<target>/ and <name>-<target>.tar.gz. Nothing is put there that does not give what the
reference runtime gives; an artifact that was there stays until then."""
_EPILOG = """\
examples:
  lisiere compile kws.onnx                                     for this machine, into this folder
  lisiere compile kws.onnx --target rasp4b --output build      for a Raspberry Pi 4
  lisiere compile net.onnx --tune 60                           try other kernels for a minute, and keep the faster ones
  lisiere compile net.onnx --shape input=1,3,224,224           where the model leaves a dimension open
  lisiere compile models/digits/job.json --output build        a job; its own output is left aside
  lisiere compile net.onnx --target jetson_nano --cloud --role arn:aws:iam::123456789012:role/neo --s3 s3://bucket/neo
                                                               by SageMaker Neo, into this folder
  lisiere compile s3://bucket/model.tar.gz --framework TFLITE --output s3://bucket/compiled

targets:
  {targets}
  native, this machine, is the default. A job may also have a TargetPlatform, with `mcpu` in CompilerOptions.

exit codes: 0 done, 1 failed, 2 the job or the command line is wrong."""
_MAX_THREADS = 64
_MAX_TUNE_S = 86400


def register(subparsers: Any) -> None:
    """Add `compile` to the command line."""
    from lisiere_compile.target import target_names

    parser = subparsers.add_parser(
        "compile",
        help="compile a model for this machine or another",
        description=_DESCRIPTION,
        epilog=_EPILOG.replace("{targets}", ", ".join(target_names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="MODEL|JOB.json", help="a local path or an s3:// URI")
    parser.add_argument(
        "--output", metavar="DIR", help="a folder or an s3:// location; for a model this folder, for a job its own"
    )
    parser.add_argument("--name", type=_name, metavar="NAME", help="of the model, in place of its own or its file's")
    parser.add_argument("--threads", type=_threads, default=1, metavar="N", help="the most that a run uses (1)")
    parser.add_argument(
        "--tune",
        type=_seconds,
        default=0,
        metavar="SECONDS",
        help="try so long, on this machine, what else its kernels could do, and keep what is faster beyond doubt; may "
        "take some seconds more, and the same job no longer gives the same bytes",
    )
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX file out of the artifact")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    model = parser.add_argument_group("for a model rather than a job")
    model.add_argument("--target", metavar="TARGET", help="the machine to build for")
    model.add_argument(
        "--shape", type=_shape, action="append", metavar="NAME=1,3,224,224", help="of an input; may be repeated"
    )
    model.add_argument("--framework", metavar="FRAMEWORK", help="as in a job, such as ONNX; else taken from the file")
    cloud = parser.add_argument_group("in the cloud")
    cloud.add_argument(
        "--cloud", action="store_true", help="have SageMaker Neo compile it, which also builds for GPUs; costs money"
    )
    cloud.add_argument("--role", metavar="ARN", help="the role that SageMaker takes on; else the job's RoleArn")
    cloud.add_argument(
        "--s3", metavar="s3://BUCKET/PREFIX", help="where SageMaker writes; else the job's S3OutputLocation"
    )
    parser.set_defaults(run=run)


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: letters, digits, `_`, `.` and `-`, at most 64")
    return text


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MAX_THREADS}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= _MAX_TUNE_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds over 0 and up to {_MAX_TUNE_S}")
    return seconds


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, numbers = text.rpartition("=")
    parts = numbers.split(",") if numbers else []
    if not name or not equals or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not like input=1,3,224,224")
    return name, tuple(int(part) for part in parts)


def run(args: argparse.Namespace) -> int:
    """Compile, report, and return the exit code: 0 done, 1 failed, 2 the job or the command line is wrong."""
    log = None
    try:
        log = _progress(quiet=args.json)
        with _interruptible(log), tempfile.TemporaryDirectory(prefix="lisiere-job-") as scratch:
            report = _compile(args, Path(scratch), log)
    except (LisiereError, OSError) as error:
        if args.json:
            _print({"error": str(error), "stages": log.seconds if log else {}})
        sys.stderr.write(f"lisiere: {error}\n")
        return USAGE if isinstance(error, ConfigError) else FAILED
    except ModuleNotFoundError as error:
        sys.stderr.write(f"lisiere: `pip install lisiere[compile]` brings what is missing: {error.name}.\n")
        return FAILED
    if args.json:
        _print(report)
    else:
        _tell(report)
    return DONE


def _compile(args: argparse.Namespace, work: Path, log: Log) -> dict[str, Any]:
    """Compile what the command line names, fetched from S3 and put there where it says so; return the report."""
    from lisiere_compile import s3
    from lisiere_compile.artifact import archive_of
    from lisiere_compile.compiler import compile_job

    job, model, output = _read(args, work, log)
    if args.cloud:
        return _compile_in_cloud(args, job, model, log)
    for option in ("role", "s3"):
        if getattr(args, option) is not None:
            raise ConfigError("This is an option for `--cloud`.", f"--{option}")
    job = msgspec.structs.replace(job, InputConfig=msgspec.structs.replace(job.InputConfig, S3Uri=str(model)))
    folder = compile_job(
        job,
        Path.cwd(),
        output=work / "out" if isinstance(output, str) else output,
        name=args.name,
        threads=args.threads,
        tune_s=args.tune,
        keep_onnx=not args.no_onnx,
        log=log,
    )
    report = _report(folder, log)
    if isinstance(output, str):
        with log.stage("upload"):
            uri = s3.upload(archive_of(folder), output, "$.OutputConfig.S3OutputLocation")
        report |= {"artifact": None, "archive": uri, "stages": _rounded(log)}
    return report


def _compile_in_cloud(args: argparse.Namespace, job: Job, model: Path, log: Log) -> dict[str, Any]:
    """Have SageMaker compile a job into a folder here; return the report."""
    from datetime import datetime, timezone

    from lisiere_compile.cloud import compile_in_cloud
    from lisiere_compile.job import is_job, local_path
    from lisiere_compile.s3 import in_s3

    for option, given in (("--threads", args.threads != 1), ("--tune", args.tune)):
        if given:
            raise ConfigError("SageMaker has no such option.", option)
    if in_s3(args.source) or not is_job(Path(args.source)):
        # SageMaker takes a name once only.
        called = f"{job.CompilationJobName[:48].rstrip('-')}-{datetime.now(timezone.utc):%Y%m%d%H%M%S}"
        job = msgspec.structs.replace(job, CompilationJobName=called)
    if args.s3 is not None:
        where = msgspec.structs.replace(job.OutputConfig, S3OutputLocation=args.s3)
        job = msgspec.structs.replace(job, OutputConfig=where)
    job = msgspec.structs.replace(job, RoleArn=args.role or job.RoleArn)
    output = local_path(args.output or ".", Path.cwd(), "--output")
    return _report(compile_in_cloud(job, model, output, name=args.name, keep_onnx=not args.no_onnx, log=log), log)


def _read(args: argparse.Namespace, work: Path, log: Log) -> tuple[Job, Path, Path | str]:
    """Return the job, the model as a local path, and where its artifact goes: a folder, or a location in S3."""
    from lisiere_compile.job import is_job, load_job, local_path, model_job
    from lisiere_compile.s3 import in_s3
    from lisiere_compile.source import open_source, plain_name

    if not in_s3(args.source) and is_job(Path(args.source)):
        for option in ("target", "shape", "framework"):
            if getattr(args, option) is not None:
                raise ConfigError("This is an option for a model; a job says it in itself.", f"--{option}")
        job, base = load_job(Path(args.source)), Path(args.source).resolve().parent
        model = _fetch(job.InputConfig.S3Uri, base, work, log)
        if args.output is None:
            output = job.OutputConfig.S3OutputLocation
            return job, model, output if in_s3(output) else local_path(output, base, "$.OutputConfig.S3OutputLocation")
    else:
        model = _fetch(args.source, Path.cwd(), work, log)
        framework = args.framework.upper() if args.framework else open_source(model, work / "look").framework
        name = args.name or plain_name(model.name.partition(".")[0])
        target = args.target or "native"
        job = model_job(args.source, framework, target, args.output or ".", dict(args.shape or ()), name)
    output = args.output or "."
    return job, model, output if in_s3(output) else local_path(output, Path.cwd(), "--output")


def _fetch(uri: str, base: Path, work: Path, log: Log) -> Path:
    from lisiere_compile import s3
    from lisiere_compile.job import local_path

    where = "$.InputConfig.S3Uri"
    if not s3.in_s3(uri):
        return local_path(uri, base, where).absolute()
    with log.stage("download"):
        return s3.download(uri, work / "input", where)


def _report(folder: Path, log: Log) -> dict[str, Any]:
    """Return what there is to say of an artifact that was made."""
    from lisiere.models.package import read_manifest
    from lisiere_compile.artifact import MANIFEST, archive_of

    build = read_manifest(folder / MANIFEST).build
    verified = msgspec.to_builtins(build.verified) if build and build.verified else {}
    return {
        "artifact": str(folder),
        "archive": str(archive_of(folder)),
        "archive_bytes": archive_of(folder).stat().st_size,
        "stages": _rounded(log),
        "sizes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        "kernels": log.kernels,
        "unscheduled": list(log.unscheduled),
        "tuned": log.tuned or None,
        "peak_activation_bytes": build.peak_activation_bytes if build else None,
        "verified": {**verified, "max_difference": log.verdict.max_difference},
    }


def _rounded(log: Log) -> dict[str, float]:
    return {stage: round(seconds, 3) for stage, seconds in log.seconds.items()}


def _tell(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    sizes, verified = report["sizes"], report["verified"]
    where = _shown(Path(report["artifact"])) if report["artifact"] else report["archive"]
    kernels = f", {report['kernels']} kernels" if report["kernels"] else ""
    peak = report["peak_activation_bytes"]
    memory = f", {peak / 1024:.0f} KiB of activations" if peak else ""
    if verified.get("by") == "nothing":
        checked = f"not run: {verified['note'] or 'it is for another machine'}"
    else:
        checked = (
            f"{verified['cases']} cases under {verified['by']} differ from {verified['reference']} by at most "
            f"{verified['max_difference']:.2g}"
        )
    sys.stdout.write(
        f"{where}\n  {sum(sizes.values()) / 1024:.0f} KiB in {len(sizes)} files{kernels}{memory}; {checked}.\n"
    )


@contextmanager
def _interruptible(log: Log) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the compilation the same way, with everything half-made removed."""

    def stop(_number: int, _frame: object) -> None:
        log.interrupted = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(folder: Path) -> Path:
    """The folder's path as a person would write it here."""
    whole, here = folder.resolve(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def _progress(quiet: bool) -> Log:
    """Report by stage on standard error: a spinner on a terminal, plain lines otherwise, nothing when quiet."""
    from lisiere_compile.compiler import Log

    if quiet:
        return Log(warned=_line)
    if not sys.stderr.isatty():
        return Log(ended=lambda stage, seconds: _line(f"{stage}: {seconds:.1f} s"), said=_line, warned=_line)
    from rich.console import Console

    # Its own descriptor, since the compiler keeps the shared one quiet while TVM works.
    console = Console(file=os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8"), force_terminal=True)
    status = console.status("")

    def began(stage: str) -> None:
        status.update(stage)
        status.start()

    def ended(stage: str, seconds: float) -> None:
        status.stop()
        console.print(f"{stage:>10}  {seconds:5.1f} s", highlight=False)

    return Log(began=began, ended=ended, said=status.update, warned=lambda text: console.print(text, highlight=False))


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
