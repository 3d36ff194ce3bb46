"""The command `lisiere`. Other packages add subcommands by the entry-point group `lisiere.commands`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lisiere import __version__
from lisiere.calibration.commands import register as register_calibrate
from lisiere.errors import ConfigError, LisiereError
from lisiere.replay.commands import register as register_replay
from lisiere.spool.commands import register as register_spool
from lisiere.subscribe import register as register_subscribe
from lisiere.terminal import print_json, print_line, say

if TYPE_CHECKING:
    from lisiere.greengrass import Component
    from lisiere.runtime import Runtime

DONE, FAILED, USAGE, NOT_HELD, LOST = 0, 1, 2, 3, 4

_ANSWER_S = 5.0  # how long the Greengrass nucleus may take to answer
_EPILOG = """\
exit codes:
  0  done
  1  failed; the message says why and what to do
  2  wrong usage or configuration; the message names the place
  3  a check did not hold
  4  the connection to the Greengrass nucleus was lost; its results wait on disk, start it anew

start here:
  lisiere simulate                     a camera and two sensors on this machine, with an outage
  lisiere compile model.onnx --target rasp4b   a model for a Raspberry Pi 4
  lisiere doctor ARTIFACT              whether a model can run here, before it is loaded
  lisiere run device.yaml              the device itself
"""

_RUN_EPILOG = """\
It ends when every source has ended, or on SIGTERM or Ctrl-C: sources stop, what is queued is inferred, and delivery
goes on for `stop_drain_s`; the rest stays on disk for the next start. A second signal ends it at once.

a configuration:
  device: pi-dock-3
  transport: {type: mqtt, host: 192.0.2.1, port: 1883}     without it, results stay in the spool
  pipelines:
    - name: dock
      source: {type: camera, device: /dev/video0, fps: 5}  or url: …, csi: rpicam-vid; or video, images, csv, socket
      model: build/models/digits-linux_x86_64

--greengrass is what a Greengrass nucleus starts, and takes the same configuration from it; `lisiere nucleus run` is
such a nucleus on this machine.

`lisiere schema config` prints all there is, and `lisiere validate CONFIG.yaml` checks one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _parser()
    args = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from lisiere.ipc import NucleusLost

    try:
        code = int(args.run(args))
        sys.stdout.flush()  # so that a reader who has gone is noticed here
    except NucleusLost as error:
        say(f"lisiere: {error}")
        return LOST
    except ConfigError as error:
        say(f"lisiere: {error}")
        return USAGE
    except LisiereError as error:
        say(f"lisiere: {error}")
        return FAILED
    except BrokenPipeError:
        # Who read has gone, as `| head` does; the interpreter would write the rest once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        say("lisiere: interrupted.")
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lisiere",
        description="Edge inference for IoT devices: models on the device, results over MQTT, nothing lost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lisiere {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log in detail")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _add(commands, "run", _run, "run the pipelines of a configuration until stopped")
    run.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml")
    run.add_argument("--greengrass", action="store_true", help="as a Greengrass component, configured by its nucleus")
    run.epilog, run.formatter_class = _RUN_EPILOG, argparse.RawDescriptionHelpFormatter

    validate = _add(commands, "validate", _validate, "check a configuration and its models without running them")
    validate.add_argument("config", type=Path, metavar="CONFIG.yaml")
    validate.add_argument("--json", action="store_true", help="print the configuration as it is understood")

    schema = _add(commands, "schema", _schema, "print a JSON Schema, or the AsyncAPI document")
    messages = [
        "result",
        "event",
        "score",
        "batch",
        "gap",
        "status",
        "health",
        "metrics",
        "command",
        "ack",
        "infer",
        "reply",
        "aws-dlr",
    ]
    schema.add_argument("name", choices=["config", "manifest", *messages, "asyncapi"])

    models = commands.add_parser("models", help="inspect, verify and calibrate model folders").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    for name, function, text in (
        ("inspect", _inspect, "print what a model folder says of itself"),
        ("verify", _verify, "check a model folder's digests and shapes, and its golden vectors by each backend"),
        ("seal", _seal, "fill the sizes and digests of its files into a manifest that was written by hand"),
    ):
        command = _add(models, name, function, text)
        command.add_argument("folder", type=Path, metavar="FOLDER")
        command.add_argument("--json", action="store_true", help="print JSON")

    register_calibrate(models)

    doctor = _add(commands, "doctor", _doctor, "say whether an artifact can run on this machine, and what would help")
    doctor.add_argument(
        "artifact", type=Path, nargs="?", metavar="ARTIFACT", help="its folder; none: this machine alone"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")

    register_spool(commands)
    register_subscribe(commands)
    register_replay(commands)
    for entry in sorted(entry_points(group="lisiere.commands"), key=lambda entry: entry.name):
        try:
            register = entry.load()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == entry.module.partition(".")[0]:
                continue  # a device carries the metadata of all parts, but only its own code
            raise
        register(commands)
    return parser


def _add(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=function)
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.greengrass == (args.config is not None):
        raise ConfigError("`lisiere run` takes either CONFIG.yaml or --greengrass.", "lisiere run")
    running = _component() if args.greengrass else _runtime(args.config)

    def stop(_number: int, _frame: object) -> None:
        # A second signal takes the default way out.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        running.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    running.run()
    return DONE


def _runtime(config: Path) -> Runtime:
    from lisiere.clock import SystemClock
    from lisiere.config import load_config
    from lisiere.runtime import Runtime

    return Runtime(load_config(config), SystemClock())


def _component() -> Component:
    from lisiere.clock import SystemClock
    from lisiere.greengrass import Component
    from lisiere.ipc import Environment, Nucleus

    return Component(Nucleus(Environment.read(os.environ), _ANSWER_S), SystemClock(), Path.cwd())


def _validate(args: argparse.Namespace) -> int:
    from lisiere.config import load_config
    from lisiere.pipeline import check_models

    config = load_config(args.config)
    check_models(config)
    if args.json:
        print_json(msgspec.to_builtins(config))
    else:
        names = ", ".join(pipeline.name for pipeline in config.pipelines)
        print_line(f"{args.config} is valid, and every model that it names is whole. Its pipelines: {names}.")
    return DONE


def _schema(args: argparse.Namespace) -> int:
    if args.name == "asyncapi":
        import yaml

        from lisiere.asyncapi import asyncapi

        sys.stdout.write(yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=120))
        return DONE
    from lisiere.schema import json_schema

    print_json(json_schema(args.name))
    return DONE


def _inspect(args: argparse.Namespace) -> int:
    from lisiere.models import open_package

    package = open_package(args.folder)
    document = {**msgspec.to_builtins(package.manifest), "digest": package.digest}
    if args.json:
        print_json(document)
        return DONE
    manifest = package.manifest
    print_line(f"{manifest.name} {manifest.version}" + (f": {manifest.description}" if manifest.description else ""))
    print_line(f"  digest   {package.digest}")
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            print_line(f"  {kind:<8} {spec.name} {spec.dtype} {list(spec.shape)}")
    print_line(f"  task     {manifest.task.__struct_config__.tag if manifest.task else 'none: tensors alone'}")
    if manifest.build is not None:
        print_line(f"  target   {manifest.build.target} ({manifest.build.cpu})")
    for line in _figures(manifest.figures):
        print_line(f"  figure   {line}")
    return DONE


def _figures(figures: dict[str, Any], above: str = "") -> Iterator[str]:
    """A line each, the names of nested ones joined by dots."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _figures(value, f"{above}{name}.")
        else:
            yield f"{above}{name} {value}"


def _verify(args: argparse.Namespace) -> int:
    from lisiere.backends.golden import check_golden
    from lisiere.models import open_package

    outcomes = check_golden(open_package(args.folder))
    if args.json:
        print_json({name: msgspec.to_builtins(outcome) for name, outcome in outcomes.items()})
    else:
        print_line(f"{args.folder}: digests and shapes are as the manifest says.")
        for name, outcome in outcomes.items():
            print_line(f"  {name:<6} {outcome.sentence}")
    return NOT_HELD if any(outcome.holds is False for outcome in outcomes.values()) else DONE


def _seal(args: argparse.Namespace) -> int:
    from lisiere.models import open_package
    from lisiere.models.package import find_manifest, read_draft, write_manifest

    file = find_manifest(args.folder)
    sealed = write_manifest(read_draft(file), file)
    package = open_package(args.folder)
    if args.json:
        print_json({"digest": package.digest, "files": msgspec.to_builtins(sealed.files)})
    else:
        print_line(f"{file} lists {len(sealed.files)} files. The model's digest is {package.digest}.")
    return DONE


def _doctor(args: argparse.Namespace) -> int:
    from lisiere.doctor import examine

    report = examine(args.artifact)
    machine, code = report.machine, NOT_HELD if report.runs is False else DONE
    features = sorted(machine.features) if machine.features is not None else None
    if args.json:
        told = {**dataclasses.asdict(machine), "features": features}
        print_json(msgspec.to_builtins({**msgspec.structs.asdict(report), "machine": told}))
        return code
    print_line(f"this machine: {machine.system} {machine.arch}, {machine.cores} cores, glibc {machine.glibc or 'none'}")
    if report.runs is None:
        print_line(f"  features {' '.join(features) if features is not None else 'cannot be told'}")
        for name, reason in report.backends.items():
            print_line(f"  {name:<8} {reason or 'can be used'}")
        return code
    print_line(f"{report.artifact}: {report.model}")
    for check in report.checks:
        print_line(f"  {check.state:<4} {check.name:<9} {check.sentence}")
        if check.fix:
            print_line(f"{'':<17}{check.fix}")
    print_line(f"It can run here, by the backend {report.backend}." if report.runs else "It cannot run here.")
    return code
