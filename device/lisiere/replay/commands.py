"""The command `lisiere replay`. What it takes is imported when it runs, since it is registered for every `--help`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lisiere.clock import SystemClock, parse_ts
from lisiere.errors import ConfigError, Rejected
from lisiere.terminal import print_json, say

_DONE = 0
_START = "2000-01-01T00:00:00Z"
_QUIET_S, _EVERY_S = 2.0, 0.5  # progress
_EPILOG = """\
INPUT takes the place of the pipeline's source: a CSV file (.csv), lines of JSON (.jsonl, .ndjson, .json), a video, an
image or a folder of images. Columns and keys are those of the pipeline's own source, if it is of that kind.

Results come as lines of JSON: the envelope of docs/contract with the epoch `replay`, and events and scores as they
come, told apart by `schema`. A result of readings is stamped by the end of its window. Frames are as far apart as the
video or `fps` says, from --start on. No time passes while the model works, so latencies are 0.

  lisiere replay pump.csv --config device.yaml --pipeline pump --output results.jsonl
  lisiere evaluate results.jsonl --labels pump=labels.json
"""


def register(commands: Any) -> None:
    """Add `replay` to the commands of `lisiere`."""
    text = "run recorded input through a pipeline, as fast as it can, with the same results each time"
    parser = commands.add_parser(
        "replay",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("input", type=Path, metavar="INPUT", help="CSV, lines of JSON, a video, or images")
    parser.add_argument("--config", type=Path, required=True, metavar="CONFIG.yaml")
    parser.add_argument("--pipeline", metavar="NAME", help="which; without it, the only one that takes such input")
    parser.add_argument("--output", default="-", metavar="FILE", help="where results go (default -: standard output)")
    parser.add_argument("--start", default=_START, metavar="TIME", help=f"the first frame's time (default {_START})")
    parser.add_argument("--json", action="store_true", help="print what was counted as JSON; with --output FILE")


def _run(args: argparse.Namespace) -> int:
    from lisiere.config import load_config
    from lisiere.replay.recording import GIVEN, choose, recorded, replay
    from lisiere.sources import gives_frames

    if args.json and args.output == "-":
        raise ConfigError("`--json` goes with `--output FILE`: standard output has the results.", "--json")
    if args.output != "-" and Path(args.output).exists() and args.input.exists() and args.input.samefile(args.output):
        raise ConfigError("It is the recording itself.", "--output")
    try:
        start = parse_ts(args.start)
    except Rejected as error:
        raise ConfigError(str(error), "--start") from error
    config = load_config(args.config)
    index = choose(config, recorded(args.input, None), args.pipeline)
    with _output(args.output) as stream, _Progress() as progress:
        counters = replay(config, index, args.input, stream, start, progress)
    if args.json:
        print_json(counters)
    else:
        others = ", ".join(f"{name} {count}" for name, count in counters.items() if name not in ("read", *GIVEN))
        what = "frames" if gives_frames(recorded(args.input, None)) else "readings"
        told = [f"{counters[name]} {name}" for name in GIVEN if name == "results" or counters[name]]
        given = f"{counters.get('read', 0)} {what} gave {', '.join(told)}"
        say(f"{given}{'; ' if others else ''}{others}.")
    return _DONE


class _Progress:
    """A line on the terminal that says how far it has come, on what takes longer than two seconds."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._began = self._told = self._clock.monotonic()
        self._count = 0
        self._shown = False

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, ts: float) -> None:
        """Count one frame or window of the time `ts`."""
        self._count += 1
        if self._count % 64 or not sys.stderr.isatty():
            return
        now = self._clock.monotonic()
        if now - self._began > _QUIET_S and now - self._told > _EVERY_S:
            self._told, self._shown = now, True
            rate = self._count / (now - self._began)
            sys.stderr.write(f"\r{self._count} frames or windows, {rate:.0f} a second, at {ts:.0f} \x1b[K")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")


@contextlib.contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    """Standard output, or a file that is there whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = Path(f"{name}.part")
    try:
        stream = part.open("wb")
    except OSError as error:
        raise ConfigError(f"{name} cannot be written: {error.strerror}.", "--output") from error
    try:
        with stream:
            yield stream
        part.replace(name)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
