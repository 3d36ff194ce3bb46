"""The subcommands that talk to a nucleus that runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lisiere_sim.nucleus.control import ask
from lisiere_sim.nucleus.layout import Layout
from lisiere_sim.nucleus.registry import find_root


def _ask(root: Path | None, **request: Any) -> Any:
    layout = Layout(find_root(root))
    layout.find_sockets()
    return ask(layout.control, request)


def status(args: argparse.Namespace) -> int:
    """Print what runs and in which state."""
    found = _ask(args.root, do="status")
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def stop(args: argparse.Namespace) -> int:
    """Stop the nucleus, or one component."""
    _ask(args.root, do="stop", component=args.component)
    return 0


def restart(args: argparse.Namespace) -> int:
    """Restart a component."""
    _ask(args.root, do="restart", component=args.component)
    return 0
