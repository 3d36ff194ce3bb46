"""The subcommand `lisiere nucleus`. Nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lisiere.errors import Permanent

_NEEDED = {"amqtt", "semantic_version"}

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
With --root, the flavour, thing and region of the last time hold unless given again.
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
    run.add_argument("--flavour", choices=["classic", "lite"], help="which nucleus (classic)")
    run.add_argument(
        "--broker",
        default="embedded",
        metavar="embedded|mosquitto|HOST:PORT",
        help="what stands for IoT Core: a broker in this process (default), a Mosquitto started for it, or yours",
    )
    run.add_argument("--thing", metavar="NAME", help="the thing's name and MQTT client id (laptop)")
    run.add_argument("--region", metavar="REGION", help="what AWS_REGION says (us-east-1)")
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
    run.add_argument(
        "--settle",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="how long new components must stay up for a deployment to have succeeded (2)",
    )
    run.add_argument(
        "--secrets", type=Path, metavar="FILE", help="what GetSecretValue gives: YAML with a list `secrets`"
    )
    run.add_argument(
        "--disk-spooler",
        action="store_true",
        help="what waits for IoT Core is on disk, too, and outlives the nucleus (classic alone; by default in memory)",
    )
    run.add_argument("--no-limits", action="store_true", help="let pass what AWS IoT Core would refuse or discard")
    run.add_argument("--log-ipc", action="store_true", help="log every call of the IPC, not only those that fail")
    run.set_defaults(run=_run)


_DEPLOY_EPILOG = """\
What is not named stays as it is. If a component becomes BROKEN by it, everything goes back to what was before.

examples:
  lisiere nucleus deploy com.example.Hello=1.1.0 --recipe recipes --artifacts artifacts
  lisiere nucleus deploy --configuration update.yaml         configuration alone
  lisiere nucleus deploy --remove com.example.Hello
"""

_LOGS_EPILOG = """\
examples:
  lisiere nucleus logs                        the nucleus: states, deployments, calls that failed
  lisiere nucleus logs -f com.example.Hello   the component's stdout and stderr
  lisiere nucleus logs --ipc -f               every call: who, what, on which resource, and what came of it
"""


def _add_talks(commands: Any) -> None:
    status = _add(commands, "status", "print what runs and in which state; exit code 3 if any is BROKEN or ERRORED")
    status.add_argument("--json", action="store_true", help="print JSON")

    logs = _add(commands, "logs", "print logs: a component's, the nucleus' own, or the calls of the IPC", _LOGS_EPILOG)
    logs.add_argument("component", nargs="?", metavar="COMPONENT")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("-n", "--lines", type=int, default=1000, metavar="N", help="begin with the last N (1000)")
    logs.add_argument("--ipc", action="store_true", help="the calls of the IPC, those that went well included")
    logs.add_argument("--json", action="store_true", help="print each call as JSON")

    deploy = _add(commands, "deploy", "change what runs: versions, configuration, removal", _DEPLOY_EPILOG)
    deploy.add_argument("component", nargs="*", metavar="NAME=VERSION")
    deploy.add_argument("--recipe", type=Path, metavar="DIR_OR_FILE", help="a recipe, or a folder of recipes")
    deploy.add_argument("--artifacts", type=Path, metavar="DIR", help="the folder of artifacts")
    deploy.add_argument("--configuration", type=Path, metavar="FILE", help="reset and merge by component")
    deploy.add_argument("--remove", action="append", default=[], metavar="NAME", help="a component to remove")
    deploy.add_argument("--no-notify", action="store_true", help="do not ask components first")
    deploy.add_argument("--no-rollback", action="store_true", help="leave what is BROKEN as it is")
    deploy.add_argument("--json", action="store_true", help="print JSON")

    restart = _add(commands, "restart", "stop a component and start it again")
    restart.add_argument("component", metavar="COMPONENT")
    stop = _add(commands, "stop", "stop the nucleus, or one of its components")
    stop.add_argument("component", nargs="?", metavar="COMPONENT")
    _add(commands, "offline", "take IoT Core away, as an outage does")
    _add(commands, "online", "bring IoT Core back")
    log_ipc = _add(commands, "log-ipc", "put every call of the IPC into the nucleus' log, or only those that fail")
    log_ipc.add_argument("wanted", choices=["on", "off"])


def _add(commands: Any, name: str, text: str, epilog: str = "") -> Any:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the nucleus' folder, if more than one nucleus runs")
    parser.set_defaults(run=_talk, function=name.replace("-", "_"))
    return parser


def _run(args: argparse.Namespace) -> int:
    with _complete():
        from lisiere_sim.nucleus.console import service

        return service.run(args)


def _talk(args: argparse.Namespace) -> int:
    from lisiere_sim.nucleus.console import talk

    return int(getattr(talk, args.function)(args))


@contextlib.contextmanager
def _complete() -> Iterator[None]:
    """Say how to install what a nucleus needs beyond a base install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _NEEDED:
            raise
        raise Permanent(f"The nucleus needs {error.name}. Install it with: pip install 'lisiere[simulator]'") from error
