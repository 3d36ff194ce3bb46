"""`lisiere spool`: looking into a spool, checking it, and carrying one over."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError
from lisiere.terminal import print_json, print_line, say

_DONE, _NOT_HELD = 0, 3
_STREAM = {"export": "output", "import": "input"}
_MEND = "A device that starts on it saves what can be saved; `lisiere spool export` writes what can be read."


def register(commands: Any) -> None:
    """Add `spool` to the commands of `lisiere`."""
    spool = commands.add_parser("spool", help="look into a spool, check it, and carry one over").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    for name, function, text in (
        ("status", _status, "print what was accepted, delivered and evicted, and what waits"),
        ("verify", _verify, "check a spool whole: its file, the checksum of every row, its counts and its numbers"),
        ("export", _export, "write what waits as lines of JSON; of a damaged spool, what can be read"),
        ("import", _import, "take an export in: a new spool keeps every id, another one gives new numbers"),
    ):
        command = spool.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=function)
        command.add_argument("folder", type=Path, metavar="FOLDER")
        if name in _STREAM:
            command.add_argument("file", type=Path, metavar="FILE", help=f"- for standard {_STREAM[name]}")
        if name != "export":
            command.add_argument("--json", action="store_true", help="print JSON")


def _status(args: argparse.Namespace) -> int:
    from lisiere.spool import SpoolReader

    reader = SpoolReader(args.folder)
    counts, waiting = reader.counts(), reader.waiting()
    document: dict[str, Any] = {
        "epoch": reader.epoch,
        "highest_seq": reader.highest,
        "pipelines": {
            name: {
                "accepted": count.accepted,
                "acknowledged": count.acknowledged,
                "evicted": count.evicted,
                "expired": count.expired,
                "set_aside": count.set_aside,
                "damaged": count.damaged,
                "sent": count.sent,
                "waiting": waiting.get(name, 0),
            }
            for name, count in counts.items()
        },
    }
    reader.close()
    if args.json:
        print_json(document)
        return _DONE
    print_line(f"epoch {document['epoch']}, highest seq {document['highest_seq']}")
    columns = ("accepted", "acknowledged", "evicted", "expired", "set_aside", "damaged", "sent", "waiting")
    print_line(f"{'pipeline':<20}" + "".join(f"{column:>14}" for column in columns))
    for name, numbers in document["pipelines"].items():
        print_line(f"{name:<20}" + "".join(f"{numbers[column]:>14}" for column in columns))
    return _DONE


def _verify(args: argparse.Namespace) -> int:
    from lisiere.spool.verify import verify

    checks = verify(args.folder)
    holds = all(check.holds for check in checks)
    if args.json:
        print_json({"holds": holds, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            print_line(f"  {'good' if check.holds else 'BAD':<5}{check.name:<8} {check.sentence}")
        print_line(f"{args.folder} is whole." if holds else f"{args.folder} is damaged. {_MEND}")
    return _DONE if holds else _NOT_HELD


def _export(args: argparse.Namespace) -> int:
    from lisiere.spool.transfer import export

    if str(args.file) == "-":
        done = export(args.folder, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        try:
            with args.file.open("xb") as file:
                done = export(args.folder, file)
        except OSError as error:
            raise ConfigError(f"{args.file} cannot be written: {error.strerror}.", "FILE") from error
    say(f"{done.rows} rows of the epoch {done.epoch or 'unknown'} were exported.")
    if done.unread:
        say(f"{done.unread} numbers could not be read; those that still waited are lost.")
    return _NOT_HELD if done.unread else _DONE


def _import(args: argparse.Namespace) -> int:
    from lisiere.clock import SystemClock
    from lisiere.spool.transfer import import_lines

    if str(args.file) == "-":
        done = import_lines(sys.stdin.buffer, args.folder, SystemClock())
    else:
        try:
            with args.file.open("rb") as file:
                done = import_lines(file, args.folder, SystemClock())
        except OSError as error:
            raise ConfigError(f"{args.file} cannot be read: {error.strerror}.", "FILE") from error
    if args.json:
        print_json(dataclasses.asdict(done))
    else:
        how = "under new numbers; each says what it was called by `formerly`" if done.renamed else "and keep their ids"
        print_line(f"{done.rows} rows of the epoch {done.epoch or 'unknown'} were taken into {args.folder} {how}.")
    return _DONE
