"""What commands write: answers to stdout, and what is said besides to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_line(line: str) -> None:
    """Write a line of the answer."""
    sys.stdout.write(line + "\n")


def print_json(document: Any) -> None:
    """Write the answer as JSON."""
    print_line(json.dumps(document, indent=2, ensure_ascii=False))


def say(line: str) -> None:
    """Write a line that is no part of the answer."""
    sys.stderr.write(line + "\n")
