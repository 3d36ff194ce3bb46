"""The subcommand `lisiere train`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError
from lisiere.terminal import print_json, say

DESCRIPTION = """\
Train a linear forecasting model on a recorded series, and write a model package: the graph (ONNX), a manifest that
declares its normalisation and quantiles, golden vectors and its figures. DATA.csv has a header, a column of time, and a
column for each channel; readings are put on a grid as on a device.

The model is a ridge regression in closed form, shared by all channels, on windows relative to their last value. Its
strength is chosen on the validation part, and the quantiles come from the errors there; nothing is drawn at random."""

EPILOG = """\
exit codes:
  0  done
  1  failed: a library is missing, or the package cannot be written
  2  the command line or the series is wrong

examples:
  lisiere train readings.csv --horizon 24 --output build/models/readings
  lisiere train ETTh1.csv --horizon 96 --split 8640,2880,2880 --output build/models/etth1-96
  lisiere compile build/models/readings --target rasp4b
"""


def register(subparsers: Any) -> None:
    """Add the subcommand to `lisiere`'s parser.

    Args:
        subparsers: what argparse's `add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "train",
        help="train a linear forecasting model on a recorded series",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA.csv")
    parser.add_argument("--horizon", type=int, required=True, metavar="STEPS", help="how far ahead")
    parser.add_argument("--lookback", type=int, default=336, metavar="ROWS", help="rows of a window (336)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the package goes")
    parser.add_argument("--name", help="of the model (the name of DIR)")
    parser.add_argument(
        "--split",
        default="0.6,0.2,0.2",
        metavar="A,B,C",
        help="training, validation and held-out part: shares, or numbers of rows (0.6,0.2,0.2)",
    )
    parser.add_argument("--quantiles", default="0.05,0.5,0.95", metavar="Q,…", help="levels, with 0.5 (0.05,0.5,0.95)")
    parser.add_argument("--time", metavar="COLUMN", help="the column of time (time, date, timestamp, … or the first)")
    parser.add_argument("--channels", metavar="A,B,…", help="columns (all others)")
    parser.add_argument("--step", type=float, metavar="SECONDS", help="between rows (the median of the file's)")
    parser.add_argument("--max-gap", type=int, default=0, metavar="ROWS", help="gaps up to this are interpolated (0)")
    parser.add_argument("--stride", type=int, default=1, metavar="ROWS", help="rows from one forecast to the next (1)")
    parser.add_argument("--licence", default="", help="of the data, for the manifest")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, report, and return the exit code.

    Raises:
        LisiereError: the command line turns it into a message and an exit code.
    """
    from lisiere.models.manifest import Data
    from lisiere_sim.training.package import Plan, train
    from lisiere_sim.training.series import read_series

    for option, least, most in (("horizon", 1, 100_000), ("lookback", 2, 100_000), ("stride", 1, 100_000)):
        if not least <= getattr(args, option) <= most:
            raise ConfigError(f"It is {getattr(args, option)}, but {least} … {most:,} are possible.", f"--{option}")
    if not 0 <= args.max_gap < args.lookback:
        raise ConfigError(f"It is {args.max_gap}, but it must be less than the lookback.", "--max-gap")
    if args.step is not None and not 0 < args.step <= 1e9:
        raise ConfigError("It must be above zero.", "--step")
    name = args.name or args.output.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(f"{name!r} cannot be a model's name: letters, digits, `_`, `.` and `-`.", "--name")
    quantiles = _numbers(args.quantiles, "--quantiles")
    if 0.5 not in quantiles or sorted(set(quantiles)) != list(quantiles) or not 0 < quantiles[0] <= quantiles[-1] < 1:
        raise ConfigError("They must rise between 0 and 1, and 0.5 be among them.", "--quantiles")
    channels = tuple(part.strip() for part in args.channels.split(",")) if args.channels else None
    series = read_series(args.data, channels, args.time, args.step, args.max_gap)
    wrong = [one for one in series.channels if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", one)]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} cannot be a channel's name: letters, digits, `_`, `.` and `-`.", "--channels")
    for fault, times in sorted(series.faults.items()):
        say(f"{args.data}: {fault} {times}")
    plan = Plan(
        args.lookback,
        args.horizon,
        _split(args.split, len(series.values)),
        quantiles,
        max_gap=args.max_gap,
        stride=args.stride,
    )
    package = train(
        series, plan, args.output, name, Data(name=args.data.name, licence=args.licence, source=args.data.name)
    )
    figures = package.manifest.figures
    if args.json:
        print_json(figures)
        return 0
    held = figures["held_out"]
    say(
        f"{name} is in {args.output}. Held out, standardised: MSE {held['mse']}, MAE {held['mae']} over "
        f"{held['windows']} windows; the last value has MSE {held['last_value_mse']}."
    )
    return 0


def _numbers(text: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no list of numbers.", option) from error


def _split(text: str, rows: int) -> tuple[int, int, int]:
    """Three parts in rows, of shares that add up to at most 1 or of numbers of rows."""
    parts = _numbers(text, "--split")
    if len(parts) != 3 or not all(0 < part < float("inf") for part in parts):
        raise ConfigError("There are three parts, each above zero.", "--split")
    if sum(parts) <= 1 + 1e-9:
        ends = [round(rows * sum(parts[: at + 1])) for at in range(3)]
        return ends[0], ends[1] - ends[0], ends[2] - ends[1]
    if any(part != round(part) for part in parts):
        raise ConfigError("The parts are shares that add up to at most 1, or whole numbers of rows.", "--split")
    return round(parts[0]), round(parts[1]), round(parts[2])
