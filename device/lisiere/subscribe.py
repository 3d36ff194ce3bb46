"""`lisiere subscribe`: results on the terminal, and a sentence for whatever does not come."""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from lisiere.errors import ConfigError

if TYPE_CHECKING:
    from lisiere.subscriber import Event

_DONE, _NOT_HELD = 0, 3
_TLS_PORT = 8883
_PASSWORD = "LISIERE_PASSWORD"  # noqa: S105 - the name of a variable
_NAMES = {"Missed": "missed", "NewEpoch": "new_epoch", "Unreadable": "unreadable", "Link": "link"}
_EPILOG = f"""\
One line a result, event or score; on standard error what was missed and why, and how devices and connection are. It
goes on until Ctrl-C, or until --count results came, and exits 3 when anything was missed.

--json prints one JSON object a line instead, for everything: results as the device sent them, and
{{"event": "missed", "sentence": …}}. The password for --user is read from ${_PASSWORD}.
"""


def register(commands: Any) -> None:
    """Add the subcommand."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "subscribe",
        help="print the results of devices, and what was missed and why",
        description="Print the results of devices, each once, and say what was missed and why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_run)
    parser.add_argument("broker", metavar="HOST[:PORT]")
    parser.add_argument("--device", default="+", metavar="NAME", help="one device; without it, all")
    parser.add_argument("--prefix", default="lisiere", help="of the topics (default: lisiere)")
    parser.add_argument("--order", choices=["arrival", "seq"], default="arrival", help="seq: older results first")
    parser.add_argument("--settle", type=float, default=60.0, metavar="S", help="when a hole counts as missed (60)")
    parser.add_argument("--count", type=int, metavar="N", help="end after so many results")
    parser.add_argument("--memory", type=Path, metavar="FILE", help="remember what was seen, for the next start")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--tls", action="store_true", help="with TLS, by the system's authorities")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="with TLS, by the authority in this file")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="mutual TLS: one's own")
    parser.add_argument("--key", type=Path, metavar="FILE", help="mutual TLS: its key")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")


def line(event: Event) -> str | None:
    """Say an event in one line; None for what is of no interest on a terminal."""
    from lisiere import subscriber

    if isinstance(event, subscriber.Result):
        late = " (late)" if event.replay else ""
        quality = "" if event.ts_quality in ("synced", "corrected") else f" ({event.ts_quality})"
        faults = f"; input: {', '.join(event.input.faults)}" if event.input.faults else ""
        return f"{event.ts}{quality} {event.device}/{event.pipeline}: {_answer(event.result)}{faults}{late}"
    if isinstance(event, subscriber.Occurrence):
        one = event.event
        span = f"since {one.since}" if one.phase != "end" else f"from {one.since} to {one.until}"
        return f"{event.ts} {event.device}/{event.pipeline}: {one.phase} {one.label}, {span}"
    if isinstance(event, subscriber.Score):
        skill = "" if event.score.skill is None else f", skill {event.score.skill:.2f}"
        errors = [f"{one.mae:.3f} ({name})" for name, one in event.score.channels.items() if one.mae is not None]
        error = f"off by {', '.join(errors)}" if errors else "not measured"
        return f"{event.ts} {event.device}/{event.pipeline}: the forecast of {event.score.made_ts} was {error}{skill}"
    if isinstance(event, subscriber.Missed):
        return event.sentence
    if isinstance(event, subscriber.Status):
        return f"{event.device} is {event.state}."
    if isinstance(event, subscriber.NewEpoch):
        return f"{event.device} has a new spool; its numbers start anew."
    if isinstance(event, subscriber.Unreadable):
        return f"A message on {event.topic} was left out. {event.why}"
    if isinstance(event, subscriber.Link):
        return "Connected again." if event.connected else f"The connection was lost. {event.why}"
    return None


def _answer(result: Any) -> str:
    from lisiere import subscriber

    if isinstance(result, subscriber.Classification):
        others = [] if result.set is UNSET else [label for label in result.set if label != result.label]
        doubt = "" if result.decided else ", not decided"
        return f"{result.label} ({result.score:.3f}{doubt})" + "".join(f" or {label}" for label in others)
    if isinstance(result, subscriber.Detection):
        return ", ".join(f"{one.label} ({one.score:.3f})" for one in result.objects) or "nothing"
    if isinstance(result, subscriber.Anomaly):
        score = "no score" if result.score is None else f"score {result.score:.3f}"
        return f"{result.state} ({score}, threshold {result.threshold:.3f})"
    assert isinstance(result, subscriber.Forecast)  # noqa: S101 - there are four
    by_name = {"": result.quantiles} if result.quantiles else _by_channel(result.channels)
    told = []
    for name, quantiles in by_name.items():
        middle = quantiles.get("0.5") or next(iter(quantiles.values()))
        told.append(f"{name}{middle[0]:.3f} at {result.horizon[0]}, {middle[-1]:.3f} at {result.horizon[-1]}")
    return "; ".join(told)


def _by_channel(channels: Any) -> dict[str, dict[str, list[float]]]:
    """The quantiles of a forecast of several channels, by what is said before each."""
    return {f"{name} ": one.quantiles for name, one in channels.items()} if channels else {}


def _document(event: Event) -> dict[str, Any]:
    """The JSON of an event: messages of devices as they are, with their own `schema`."""
    from lisiere import subscriber

    built: dict[str, Any] = msgspec.to_builtins(event)
    if "schema" in built:
        return built
    if isinstance(event, subscriber.Missed):
        built["sentence"] = event.sentence
    return {"event": _NAMES[type(event).__name__], **built}


def _run(args: argparse.Namespace) -> int:
    from lisiere.subscriber import Result, Subscriber

    host, port = _address(args.broker)
    subscribed = Subscriber(
        host,
        port,
        device=args.device,
        prefix=args.prefix,
        order=args.order,
        settle_s=args.settle,
        username=args.user,
        password=os.environ.get(_PASSWORD) if args.user else None,
        tls=_context(args, port or _TLS_PORT) if args.tls or args.ca or args.certificate else False,
        memory=args.memory,
    )
    with subscribed:
        # The same way out for Ctrl-C and a service manager: what came is printed, and remembered. In a thread, since a
        # handler interrupts this one, which may hold the locks that closing needs.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=subscribed.close).start())
        left = args.count
        for event in subscribed:
            _tell(event, args.json)
            if isinstance(event, Result) and left is not None:
                left -= 1
                if left <= 0:
                    break
    return _NOT_HELD if subscribed.counts.missed else _DONE


def _tell(event: Event, as_json: bool) -> None:
    from lisiere import subscriber

    if as_json:
        sys.stdout.write(json.dumps(_document(event), ensure_ascii=False) + "\n")
        sys.stdout.flush()
    elif (said := line(event)) is not None:
        told = subscriber.Result | subscriber.Occurrence | subscriber.Score
        output = sys.stdout if isinstance(event, told) else sys.stderr
        output.write(said + "\n")
        output.flush()


def _address(text: str) -> tuple[str, int | None]:
    """Take HOST, HOST:PORT or [IPv6]:PORT apart."""
    if text.count(":") > 1 and not text.startswith("["):
        return text, None
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        return text.strip("[]"), None
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{text!r} is no broker: write HOST or HOST:PORT.", "HOST[:PORT]")
    return host.strip("[]"), int(port)


def _context(args: argparse.Namespace, port: int) -> ssl.SSLContext:
    from lisiere.brokers import tls_context
    from lisiere.settings.links import TlsConfig

    if (args.certificate is None) != (args.key is None):
        raise ConfigError("A certificate and its key go together.", "--certificate, --key")
    files = {"ca": args.ca, "certificate": args.certificate, "key": args.key}
    tls = TlsConfig(**{name: str(file) for name, file in files.items() if file is not None})
    try:
        return tls_context(tls, port)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The files for TLS cannot be used: {error}", "--ca, --certificate, --key") from error
