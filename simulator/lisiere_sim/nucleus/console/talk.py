"""The subcommands that talk to a nucleus that runs, or read its logs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.components.deployments import Deployment
from lisiere_sim.nucleus.console.registry import find_root
from lisiere_sim.nucleus.console.service import read_updates, versions
from lisiere_sim.nucleus.control import ask
from lisiere_sim.nucleus.layout import Layout

_Line = TypeVar("_Line")
_FOLLOW_S = 0.25
_NO_PROGRESS = re.compile(r" ipc: | Deployment ")  # the outcome itself goes to stdout


def status(args: argparse.Namespace) -> int:
    """Print what runs and in which state; exit code 3 if a component is BROKEN or ERRORED."""
    found = _ask(args.root, do="status")
    if args.json:
        _say(json.dumps(found, indent=2))
    else:
        _say(f"nucleus {found['flavour']} {found['version']}, process {found['pid']}, thing {found['thing']}")
        _say(f"root    {found['root']}")
        _say(_iot_core(found["iot_core"]) + "\n")
        _table(
            ("component", "version", "state", "restarts", "why"),
            [
                (one["name"], one["version"], one["state"], str(one["restarts"]), one["why"])
                for one in found["components"]
            ],
        )
    failed = [one["name"] for one in found["components"] if one["state"] in ("BROKEN", "ERRORED")]
    if failed and not args.json:
        _say(f"\n`lisiere nucleus logs {failed[0]}` shows what it wrote, `lisiere nucleus logs` which calls failed.")
    return 3 if failed else 0


def stop(args: argparse.Namespace) -> int:
    """Stop the nucleus and wait until it is gone, or one component."""
    layout = _layout(args.root)
    ask(layout.control, {"do": "stop", "component": args.component})
    if args.component is None:
        while layout.control.exists():  # it goes when the nucleus begins to stop; the lock goes at the end
            time.sleep(_FOLLOW_S / 5)
        layout.wait_unlocked()
    return 0


def restart(args: argparse.Namespace) -> int:
    """Restart a component."""
    _ask(args.root, do="restart", component=args.component)
    return 0


def online(args: argparse.Namespace) -> int:
    """Let IoT Core come back."""
    _ask(args.root, do="online", wanted=True)
    return 0


def offline(args: argparse.Namespace) -> int:
    """Let IoT Core go away."""
    _ask(args.root, do="online", wanted=False)
    return 0


def log_ipc(args: argparse.Namespace) -> int:
    """Log every call of the IPC, or only those that fail."""
    _ask(args.root, do="log_ipc", wanted=args.wanted == "on")
    return 0


def deploy(args: argparse.Namespace) -> int:
    """Deploy into a nucleus that runs, and say meanwhile what happens; exit code 1 if that did not succeed.

    Raises:
        ConfigError: it asks for nothing.
    """
    if not (args.component or args.remove or args.configuration):
        raise ConfigError("Say what to deploy: NAME=VERSION, --remove or --configuration.", "NAME=VERSION")
    wanted = Deployment(
        components=versions(args.component, "NAME=VERSION"),
        remove=args.remove,
        configuration=read_updates(args.configuration) if args.configuration else {},
        recipes=str(args.recipe.resolve()) if args.recipe else None,
        artifacts=str(args.artifacts.resolve()) if args.artifacts else None,
        notify=not args.no_notify,
        go_back=not args.no_rollback,
    )
    layout = _layout(args.root)
    with contextlib.nullcontext() if args.json else _progress(layout.log):
        outcome = ask(layout.control, {"do": "deploy", "deployment": msgspec.to_builtins(wanted)})
    if args.json:
        _say(json.dumps(outcome, indent=2))
    else:
        _say(f"{outcome['status']}{outcome['why'] and ': ' + outcome['why']}")
    return 0 if outcome["status"] == "SUCCEEDED" else 1


@contextlib.contextmanager
def _progress(log: Path) -> Iterator[None]:
    """Copy to stderr what the nucleus writes into its log meanwhile, but for the components' calls."""
    done = threading.Event()

    def copy(stream: TextIO) -> None:
        last = False
        while not last:
            last = done.wait(_FOLLOW_S)
            for line in stream:
                if not _NO_PROGRESS.search(line):
                    sys.stderr.write(line)
            sys.stderr.flush()

    try:
        stream = log.open(encoding="utf-8", errors="replace")
    except OSError:  # no nucleus, as asking it will tell
        yield
        return
    with stream:
        stream.seek(0, os.SEEK_END)
        copier = threading.Thread(target=copy, args=(stream,), daemon=True)
        copier.start()
        try:
            yield
        except KeyboardInterrupt:
            sys.stderr.write("The deployment goes on; `lisiere nucleus status` and `logs -f` show how far it is.\n")
            raise
        finally:
            done.set()
            copier.join()


def logs(args: argparse.Namespace) -> int:
    """Print a component's output, the nucleus' own log, or the calls of the IPC."""
    layout = Layout(find_root(args.root))
    try:
        if args.ipc:
            _journal(layout, args)
        else:
            _file(layout.component_log(args.component) if args.component else layout.log, layout, args)
    except KeyboardInterrupt:
        return 0
    return 0


def _file(file: Path, layout: Layout, args: argparse.Namespace) -> None:
    if not file.exists():
        names = sorted(one.stem for one in layout.logs.glob("*.log") if one != layout.log)
        raise ConfigError(f"There is no log of {file.stem} yet; there are: {', '.join(names) or 'none'}.", "COMPONENT")
    stream: TextIO = file.open(encoding="utf-8", errors="replace")
    try:
        sys.stdout.writelines(_last(stream.readlines(), args.lines))
        while args.follow:
            line = stream.readline()
            if line:
                sys.stdout.write(line)
            elif file.exists() and file.stat().st_ino != _inode(stream):  # it was full, and another was begun
                sys.stdout.writelines(stream)  # what came to it last
                stream.close()
                stream = file.open(encoding="utf-8", errors="replace")
            else:
                sys.stdout.flush()
                time.sleep(_FOLLOW_S)
    finally:
        stream.close()


def _last(lines: list[_Line], number: int) -> list[_Line]:
    return lines[-number:] if number > 0 else []


def _inode(stream: TextIO) -> int:
    return os.fstat(stream.fileno()).st_ino


def _journal(layout: Layout, args: argparse.Namespace) -> None:
    since = 0.0
    first = True
    while True:
        entries = _ask(layout.root, do="journal", since=since)
        shown = [one for one in entries if args.component in (None, one["component"])]
        for one in _last(shown, args.lines) if first else shown:
            _say(json.dumps(one) if args.json else _entry(one))
        sys.stdout.flush()
        first = False
        since = max([since, *(one["at"] for one in entries)])
        if not args.follow:
            return
        time.sleep(_FOLLOW_S)


def _entry(one: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(one["at"], timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    what = " ".join(filter(None, (one["component"], one["operation"], one["resource"])))
    return f"{at} {what}: {one['outcome']}{one['reason'] and ': ' + one['reason']}"


def _layout(root: Path | None) -> Layout:
    layout = Layout(find_root(root))
    layout.find_sockets()
    return layout


def _ask(root: Path | None, **request: Any) -> Any:
    return ask(_layout(root).control, request)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _iot_core(found: dict[str, Any]) -> str:
    state = "connected" if found.get("connected") else "away" if found.get("online") else "offline, as it was told"
    counts = [
        f"{found.get(name, 0)} {what}"
        for name, what in (
            ("published", "published"),
            ("acknowledged", "acknowledged"),
            ("received", "received"),
            ("spooled", "spooled"),
        )
    ]
    for name in ("refused", "dropped"):
        counts += [f"{number} {name} ({why})" for why, number in found.get(name, {}).items()]
    return f"IoT Core {state}: {', '.join(counts)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    lines = [head, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
    for line in lines:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
