"""The subcommand `lisiere compile`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisiere.errors import ConfigError, LisiereError

if TYPE_CHECKING:
    from lisiere_compile.compiler import Log

DONE, FAILED, USAGE = 0, 1, 2
_DESCRIPTION = """\
Compile a model for DLR by a SageMaker CreateCompilationJob document (JSON) whose S3 URIs are local paths.

The input is a model package (a folder with model.yaml and its ONNX file), an .onnx file with a model.yaml beside it,
or a model.tar.gz of one of these. The artifact is a folder <output>/<name>-<target>; it is checked against ONNX
Runtime before it is put in place."""


def register(subparsers: Any) -> None:
    """Add `compile` to the command line."""
    parser = subparsers.add_parser(
        "compile",
        help="compile a model for this machine",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("job", type=Path, metavar="JOB.json")
    parser.add_argument("--output", type=Path, metavar="DIR", help="in place of the job's S3OutputLocation")
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX file out of the artifact")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile, report, and return the exit code: 0 done, 1 failed, 2 the job or the command line is wrong."""
    try:
        from lisiere_compile.compiler import compile_job
        from lisiere_compile.job import load_job
    except ModuleNotFoundError as error:
        sys.stderr.write(f"lisiere: `pip install lisiere[compile]` brings what is missing: {error.name}.\n")
        return FAILED
    log = _progress(quiet=args.json)
    try:
        job = load_job(args.job)
        with _interruptible(log):
            folder = compile_job(
                job, args.job.resolve().parent, output=args.output, keep_onnx=not args.no_onnx, log=log
            )
    except LisiereError as error:
        if args.json:
            _print({"error": str(error), "stages": log.seconds})
        sys.stderr.write(f"lisiere: {error}\n")
        return USAGE if isinstance(error, ConfigError) else FAILED
    except ModuleNotFoundError as error:
        sys.stderr.write(f"lisiere: `pip install lisiere[compile]` brings what is missing: {error.name}.\n")
        return FAILED
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    if args.json:
        verdict = log.verdict
        _print(
            {
                "artifact": str(folder),
                "stages": {stage: round(seconds, 3) for stage, seconds in log.seconds.items()},
                "sizes": sizes,
                "kernels": log.kernels,
                "unscheduled": list(log.unscheduled),
                "verified": {
                    "backend": verdict.backend,
                    "cases": verdict.cases,
                    "max_difference": verdict.max_difference,
                },
            }
        )
    else:
        sys.stdout.write(
            f"{_shown(folder)}\n"
            f"  {sum(sizes.values()) / 1024:.0f} KiB in {len(sizes)} files, {log.kernels} kernels; "
            f"{log.verdict.cases} cases under {log.verdict.backend} differ from ONNX Runtime by at most "
            f"{log.verdict.max_difference:.2g}.\n"
        )
    return DONE


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
        return Log()
    if not sys.stderr.isatty():
        return Log(ended=lambda stage, seconds: _line(f"{stage}: {seconds:.1f} s"))
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

    return Log(began=began, ended=ended)


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
