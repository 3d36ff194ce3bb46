"""One figure of `make bench`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What, against what, how it came out, and the target."""

    name: str
    against: str
    value: float
    unit: str
    target: str
    holds: bool
