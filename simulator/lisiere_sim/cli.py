"""The subcommand `lisiere simulate`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lisiere.errors import Permanent

DESCRIPTION = """\
Run devices on this machine against virtual cameras, virtual sensors and a network that fails, and count what
arrives. A device is a real child process of `lisiere run`, or the Greengrass component in a laptop nucleus (`runtime:
greengrass`; it needs the source tree and awsiotsdk). Between the devices and the broker stands a proxy that cuts, slows
or stalls the link as the scenario says; a subscriber on the other side counts every result. Without SCENARIO, the
default one runs: two devices, one of each kind, and ten seconds without a network, 40 seconds in all.

The report goes to stdout and progress to stderr."""

EPILOG = """\
exit codes:
  0  done, and every accepted result was delivered
  1  failed: the device or the broker could not do its part
  2  the command line or the scenario is wrong
  3  something was lost, or a pipeline delivered nothing

examples:
  lisiere simulate
  lisiere simulate scenario.yaml --json report.json
  lisiere simulate --broker 127.0.0.1:1883      with `mosquitto_sub -t 'lisiere/#' -q 1` beside it
  lisiere simulate --keep run                   leaves run/<device>/ with configuration, logs and spool

a scenario:
  duration_s: 30
  devices:
    - name: gate
      pipelines:
        - {name: dock, model: digits, input: {kind: camera, fps: 10, freezes: [{at_s: 6, length_s: 4}]}}
    - name: cellar
      runtime: greengrass                       without it: process; flavour: classic | lite
      pipelines:
        - {name: pump, model: pump, input: {kind: pump, faults: [{kind: bearing, at_s: 5, length_s: 5}],
                                               gaps: [{at_s: 15, length_s: 3}]}, window: {idle_s: 1}}
  faults:                                       cut | stall | delay (with delay_ms) | kill (with device)
    - {kind: cut, at_s: 10, length_s: 8}
    - {kind: kill, device: gate, at_s: 12, length_s: 2}
"""

_NEEDED = {"amqtt", "cv2", "rich"}


def register(subparsers: Any) -> None:
    """Add the subcommand to `lisiere`'s parser.

    Args:
        subparsers: what argparse's `add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "simulate",
        help="run devices against virtual inputs and a failing network, and count what arrives",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="?", type=Path, metavar="SCENARIO.yaml", help="default: the built-in one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument(
        "--broker",
        default="embedded",
        metavar="embedded|mosquitto|HOST:PORT",
        help="the broker in between: one inside this process (default), a Mosquitto started for the run, or yours",
    )
    parser.add_argument(
        "--models", type=Path, default=Path("build/models"), metavar="DIR", help="compiled models (build/models)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave configuration, logs and spool in a new folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the subcommand and return its exit code.

    Raises:
        LisiereError: as `run_scenario`; the command line turns it into a message and an exit code.
    """
    try:
        from rich.console import Console

        from lisiere_sim import runner
        from lisiere_sim.progress import choose_progress
        from lisiere_sim.report import print_report, write_json
        from lisiere_sim.scenario import load_scenario

        scenario = load_scenario(args.scenario)
        base = args.scenario.resolve().parent if args.scenario else Path.cwd()
        plan = runner.Plan(scenario, base, args.models, args.broker, args.keep)
        with _stopped_by_sigterm(), choose_progress(Console(stderr=True)) as progress:
            report = runner.run_scenario(plan, progress)
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise Permanent(
            f"The simulator needs {error.name}. Install it with: pip install 'lisiere[simulator]'"
        ) from error
    print_report(report, Console(width=None if sys.stdout.isatty() else 100))
    if args.json is not None:
        try:
            args.json.write_bytes(write_json(report))
        except OSError as error:
            raise Permanent(f"The report {args.json} cannot be written: {error.strerror}.") from error
    return 0 if report.whole else 3


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that a stopped job leaves no child process behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
