"""The subcommand `lisiere evaluate`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError, Permanent
from lisiere.terminal import print_json, print_line, say

DESCRIPTION = """\
Score results against what is known to be true. RESULTS.jsonl is what `lisiere replay` wrote; the kind of its results
says which figures there are, and which form the labels have:

  anomaly         [["2026-01-31T07:00:00Z", "2026-01-31T09:00:00Z"], …]   first and last time of each anomaly
  classification  a CSV file: `label`, a row a result; or `ts,label`, true from that time on
  forecasting     a CSV file, times first and a column a channel; or a model's folder with such a holdout.csv

With --nab, the built-in detector runs over every series of a folder in NAB's form, with its one setting: CSV files
`timestamp,value` at any depth, and windows in JSON, {"folder/series.csv": [["2014-04-10 07:15:00", …], …], …}.

Without either, the sample models are scored on their held-out data, and the built-in detector on synthetic series
and recordings.

Figures go to stdout, progress and names of pictures to stderr."""

EPILOG = """\
exit codes:
  0  done
  1  failed: a model or a picture could not be made
  2  the command line, the results or the labels are wrong

examples:
  lisiere evaluate
  lisiere evaluate run.jsonl --labels windows.json --plots pictures
  lisiere evaluate --nab NAB --json -
  lisiere evaluate run.jsonl --labels pump=pump.json --labels dock=dock.csv --json figures.json
"""

MADE_SEED = 2026
_NEEDED = {"cv2", "rich"}


def register(subparsers: Any) -> None:
    """Add the subcommand to `lisiere`'s parser.

    Args:
        subparsers: what argparse's `add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "evaluate",
        help="score runs, the built-in detector and the sample models against labels",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="?", type=Path, metavar="RESULTS.jsonl", help="what `lisiere replay` wrote")
    parser.add_argument(
        "--labels",
        action="append",
        default=[],
        metavar="[PIPELINE=]FILE",
        help="what is true; may be repeated, one a pipeline",
    )
    parser.add_argument("--nab", type=Path, metavar="DIR", help="a folder in NAB's form, for the built-in detector")
    parser.add_argument("--models", type=Path, metavar="DIR", help="where the sample models are (models)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON, too; - for stdout instead of text")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw what was scored into this folder (matplotlib)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score what is asked for, report, and return the exit code.

    Raises:
        LisiereError: the command line turns it into a message and an exit code.
    """
    if args.labels and args.results is None:
        raise ConfigError("--labels go with RESULTS.jsonl.")
    if args.nab is not None and args.results is not None:
        raise ConfigError("--nab goes without RESULTS.jsonl.")
    score = _runs if args.results is not None else _corpus if args.nab is not None else _samples
    try:
        figures = score(args)
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise Permanent(f"This needs {error.name}. Install it with: pip install 'lisiere[simulator]'") from error
    _report(figures, args.json)
    return 0


def _runs(args: argparse.Namespace) -> dict[str, Any]:
    from lisiere_sim.evaluate.runs import read_runs

    runs = read_runs(args.results, _labels(args.labels))
    return {one.name: _scored(one, args.plots) for one in runs}


def _labels(given: list[str]) -> dict[str, Path]:
    """`PIPELINE=FILE` by pipeline, and a bare `FILE` under the empty name."""
    found: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not equals:
            name, file = "", text
        if name in found:
            raise ConfigError(f"There are two --labels for {name or 'all pipelines'}.")
        found[name] = Path(file)
    return found


def _corpus(args: argparse.Namespace) -> dict[str, Any]:
    from lisiere_sim.evaluate import corpus
    from lisiere_sim.evaluate.progress import Progress

    with Progress("points") as progress:
        watched = corpus.watch_all(args.nab, progress.update)
    if args.plots is not None:
        for one in watched:
            say(f"drawn: {corpus.plot(one, args.plots)}")
    return {"builtin": corpus.figures(watched), "by series": corpus.each(watched)}


def _samples(args: argparse.Namespace) -> dict[str, Any]:
    from lisiere_sim.evaluate import corpus
    from lisiere_sim.evaluate.progress import Progress
    from lisiere_sim.evaluate.runs import KINDS
    from lisiere_sim.evaluate.samples import SAMPLES, TASKS, find_samples

    folder = find_samples(args.models)
    found = {}
    for name, sample in SAMPLES.items():
        if TASKS[name] in KINDS:
            with Progress(name) as progress:
                for one in sample(folder / name, progress.update):
                    found[one.name] = _scored(one, args.plots)
    with Progress("made series") as progress:
        watched = corpus.watch_made(MADE_SEED, progress.update)
    if args.plots is not None:
        for series in watched:
            say(f"drawn: {corpus.plot(series, args.plots / 'made')}")
    found["made series"] = corpus.figures(watched)
    return found


def _scored(one: Any, plots: Path | None) -> dict[str, Any]:
    """The figures of a run, which is drawn, too, if that is asked for."""
    if plots is not None:
        one.plot(plots)
        say(f"drawn: {plots / one.name}.png")
    figures: dict[str, Any] = one.figures()
    return figures


def _report(figures: dict[str, Any], to: str | None) -> None:
    """Print figures as text or as JSON, and write them where asked."""
    figures = _without_nan(figures)
    if to == "-":
        print_json(figures)
        return
    for name, part in figures.items():
        print_line(name)
        for line in _lines(part):
            print_line(f"  {line}")
    if to is not None:
        try:
            Path(to).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise Permanent(f"The figures {to} cannot be written: {error.strerror}.") from error


def _lines(part: dict[str, Any]) -> list[str]:
    """A line for what stands beside each other: single figures first, then each group of them."""
    single = {key: value for key, value in part.items() if not isinstance(value, dict)}
    lines = [", ".join(f"{key} {_text(value)}" for key, value in single.items())] if single else []
    for key, value in part.items():
        if isinstance(value, dict):
            lines += [f"{key}: {line}" for line in _lines(value)]
    return lines


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: what is not defined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
