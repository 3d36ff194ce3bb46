"""The subcommand `lisiere bench`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisiere.errors import ConfigError, Rejected

if TYPE_CHECKING:
    from lisiere_compile.bench.run import ModelFigures

DONE, FAILED, NOT_HELD = 0, 1, 3
_PEERS = ("onnxruntime", "openvino", "litert")
_DESCRIPTION = """\
Compile models for this machine and measure them against other runtimes, side by side in one run.

A MODEL is an .onnx or .tflite file, or the folder of an artifact with its ONNX file inside. In every round each
contestant runs one batch of calls on the same inputs, in an order that turns; the table shows medians over the rounds
and the ratio to the fastest peer that gives the same answer. Leave the machine to itself meanwhile.

It exits 3 when a compiled model gives another answer than its peers, and never because of a time."""


def register(subparsers: Any) -> None:
    """Add `bench` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="measure compiled models against other runtimes",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--against", metavar="PEERS", help=f"of {','.join(_PEERS)}; default: those that are installed")
    parser.add_argument(
        "--tflite", action="append", default=[], metavar="MODEL=FILE", help="the same model for LiteRT; may be repeated"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each contestant, default 1")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="at least so many, default 15")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="at least so long a model, default 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, report, and return the exit code: 0 done, 1 a model did not run, 3 another answer than the peers'."""
    if args.threads < 1 or args.rounds < 1 or args.seconds < 0:
        raise ConfigError("--threads and --rounds are at least 1, and --seconds is at least 0.")
    against = _against(args.against)
    pairs = _pairs(args.tflite, args.models)
    for model in args.models:
        if not model.exists():
            raise Rejected(f"There is nothing at {model}.")
    try:
        from lisiere_compile.bench import report
        from lisiere_compile.bench.rounds import Plan
        from lisiere_compile.bench.run import OURS, bench_model, check_peers

        if args.against is not None:
            check_peers(against)
        plan = Plan(rounds=args.rounds, seconds=args.seconds, settle=args.threads > 1)
        found: list[ModelFigures] = []
        for model in args.models:
            with tempfile.TemporaryDirectory(prefix="lisiere-bench-") as work:
                found.append(
                    bench_model(
                        model,
                        Path(work),
                        tflite=pairs.get(model),
                        against=against,
                        threads=args.threads,
                        plan=plan,
                        say=_say,
                    )
                )
    except ModuleNotFoundError as error:
        _say(f"lisiere: `pip install lisiere[compile,bench]` brings what is missing: {error.name}.")
        return FAILED
    whole = report.document(found, against, args.threads, plan)
    sys.stdout.write(report.table(whole))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_bytes(report.encode(whole))
    ours = [model.contestants[OURS] for model in found]
    if any(not figure.agrees for figure in ours):
        return NOT_HELD
    return FAILED if any(figure.absent for figure in ours) else DONE


def _against(text: str | None) -> tuple[str, ...]:
    if text is None:
        return _PEERS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in _PEERS]
    if unknown or not names:
        raise ConfigError(f"--against takes some of {', '.join(_PEERS)}, and not {', '.join(unknown) or 'nothing'}.")
    return names


def _pairs(given: list[str], models: list[Path]) -> dict[Path, Path]:
    pairs = {}
    for text in given:
        model, equals, file = text.rpartition("=")
        if not equals or Path(model) not in models:
            raise ConfigError(f"--tflite takes MODEL=FILE with one of the models, and not {text!r}.")
        if not Path(file).is_file():
            raise Rejected(f"There is no file {file}.")
        pairs[Path(model)] = Path(file)
    return pairs


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
