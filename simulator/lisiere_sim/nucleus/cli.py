"""The subcommand `lisiere nucleus`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DESCRIPTION = """\
A Greengrass nucleus on this machine: it runs components unmodified, from their recipes and artifacts, as child
processes with the real IPC. Its "IoT Core" is an MQTT broker, by default one inside this process. Nothing leaves this
machine and no AWS account is needed."""

EPILOG = """\
a first run, with the recipe and artifacts that `gdk component build` leaves:
  lisiere nucleus run --recipe greengrass-build/recipes --artifacts greengrass-build/artifacts

and beside it, in another terminal:
  lisiere nucleus status               what runs, in which version and state, and why
  lisiere nucleus logs com.example     its output; without a name the nucleus' own log; -f follows
  lisiere nucleus logs --ipc           each call of the IPC and what came of it: "why was I denied?"
  lisiere nucleus offline              IoT Core goes away; `online` brings it back
"""


def register(subparsers: Any) -> None:
    """Add the subcommand to `lisiere`'s parser.

    Args:
        subparsers: what argparse's `add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "nucleus",
        help="run Greengrass components on this machine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_talks(commands)


_RUN_EPILOG = """\
It stops on SIGTERM or Ctrl-C: components first, in reverse order, then IoT Core.

examples:
  lisiere nucleus run --recipe recipe.yaml --artifacts artifacts
  lisiere nucleus run --recipe recipes --artifacts artifacts --deploy com.example.Hello=1.0.0 --flavour lite
  lisiere nucleus run --root ~/greengrass          brings back what was deployed there
  lisiere nucleus run … --broker mosquitto         or 127.0.0.1:1883: a broker of your own

the folder of artifacts:    <component>/<version>/<file>, as GDK leaves it
a --configuration file:
  com.example.Hello:
    reset: ["/old"]
    merge: {interval_s: 5}
"""


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="start a nucleus and run it until it is stopped",
        description="Start a nucleus, deploy components into it, and run until stopped.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("--recipe", type=Path, metavar="DIR_OR_FILE", help="a recipe, or a folder of recipes")
    run.add_argument("--artifacts", type=Path, metavar="DIR", help="the folder of artifacts")
    run.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where the nucleus lives and what it keeps; without it in a new temporary folder, gone at the end",
    )
    run.add_argument("--keep", action="store_true", help="leave the temporary folder at the end")
    run.add_argument(
        "--deploy",
        action="append",
        default=[],
        metavar="NAME=VERSION",
        help="a component to deploy; may be repeated. Without it, each one in the recipes that no other depends on",
    )
    run.add_argument("--flavour", choices=["classic", "lite"], default="classic", help="which nucleus (classic)")
    run.add_argument(
        "--broker",
        default="embedded",
        metavar="embedded|mosquitto|HOST:PORT",
        help="what stands for IoT Core: a broker in this process (default), a Mosquitto started for it, or yours",
    )
    run.add_argument("--thing", default="laptop", metavar="NAME", help="the thing's name and MQTT client id (laptop)")
    run.add_argument("--region", default="us-east-1", metavar="REGION", help="what AWS_REGION says (us-east-1)")
    run.add_argument("--configuration", type=Path, metavar="FILE", help="reset and merge by component, YAML or JSON")
    run.add_argument(
        "--component-user",
        metavar="USER[:GROUP]",
        help="who components run as, if the nucleus is root: by default ggc_user, or nobody where there is none",
    )
    run.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an environment variable that components get, too; without a value, this shell's",
    )
    run.add_argument("--log-ipc", action="store_true", help="log every call of the IPC, not only those that fail")
    run.set_defaults(run=_run)


def _add_talks(commands: Any) -> None:
    status = commands.add_parser("status", help="print what runs and in which state")
    status.add_argument("--json", action="store_true", help="print JSON")
    stop = commands.add_parser("stop", help="stop the nucleus, or one of its components")
    stop.add_argument("component", nargs="?", metavar="COMPONENT")
    restart = commands.add_parser("restart", help="stop a component and start it again")
    restart.add_argument("component", metavar="COMPONENT")
    for parser, function in ((status, "status"), (stop, "stop"), (restart, "restart")):
        parser.add_argument(
            "--root", type=Path, metavar="DIR", help="the nucleus' folder; the only one that runs, if not given"
        )
        parser.set_defaults(run=_talk, function=function)


def _run(args: argparse.Namespace) -> int:
    from lisiere_sim.nucleus import service

    return service.run(args)


def _talk(args: argparse.Namespace) -> int:
    from lisiere_sim.nucleus import talk

    return int(getattr(talk, args.function)(args))
