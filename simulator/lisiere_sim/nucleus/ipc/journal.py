"""The journal of IPC calls: who asked what of which resource, and what came of it. Payloads are never in it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_KEPT = 1000
_LINES_PER_MINUTE = 30
_REASON_MAX = 2000
_COUNTED = 5000


@dataclass(frozen=True, slots=True)
class Entry:
    """One call, or one thing that happened to a connection (its operation is then `connection`).

    Attributes:
        at: Unix time, seconds.
        outcome: `ok`, or the error's code such as `UnauthorizedError`.
        reason: why it failed; empty where it did not.
    """

    at: float
    component: str
    operation: str
    resource: str
    outcome: str
    reason: str

    def line(self) -> str:
        """Say it in one line."""
        what = f"{self.component} {self.operation}" + (f" {self.resource}" if self.resource else "")
        return f"ipc: {what}: {self.outcome}" + (f": {self.reason}" if self.reason else "")


class Journal:
    """Remembers the last calls and counts all of them by component, operation and outcome.

    What failed is logged always, up to `_LINES_PER_MINUTE` lines a minute and component; what was left out is told
    with the next line. What went well is logged only while `verbose`.
    """

    def __init__(self, log: Callable[[str], None] | None = None, clock: Callable[[], float] = time.time) -> None:
        self.verbose = False
        self.entries: deque[Entry] = deque(maxlen=_KEPT)
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self._log = log
        self._clock = clock
        # Lines of the running minute, and how many were left out, by component.
        self._minute: dict[str, tuple[float, int, int]] = {}

    def record(self, component: str, operation: str, resource: str, outcome: str = "ok", reason: str = "") -> None:
        """Add one entry."""
        entry = Entry(
            self._clock(), component, _plain(operation), _plain(resource), outcome, _plain(reason[:_REASON_MAX])
        )
        self.entries.append(entry)
        # Clients make up names of operations; beyond some they are counted together.
        key = (component, entry.operation, outcome)
        self.counts[key if key in self.counts or len(self.counts) < _COUNTED else (component, "other", outcome)] += 1
        if self._log is not None and (self.verbose or (outcome != "ok" and self._may_log(entry))):
            self._log(entry.line())

    def _may_log(self, entry: Entry) -> bool:
        since, lines, left_out = self._minute.get(entry.component, (entry.at, 0, 0))
        if not 0 <= entry.at - since < 60:  # a clock may be put back
            since, lines = entry.at, 0
        if lines >= _LINES_PER_MINUTE:
            self._minute[entry.component] = (since, lines, left_out + 1)
            return False
        if left_out and self._log is not None:
            self._log(f"ipc: {entry.component}: {left_out} further failures were not logged.")
        self._minute[entry.component] = (since, lines + 1, 0)
        return True


def _plain(text: str) -> str:
    """Return a text in one line: clients choose it, and what ends a line or steers a terminal is written out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def resource_of(request: Mapping[str, Any]) -> str:
    """Return what a request is about, by the fields in which the operations name it."""
    for key in ("topicName", "topic", "secretId", "deploymentId"):
        if isinstance(request.get(key), str):
            return str(request[key])[:256]
    parts = [str(request[key]) for key in ("componentName", "thingName", "shadowName") if request.get(key)]
    path = request.get("keyPath")
    if isinstance(path, list):
        parts.append("/" + "/".join(str(key) for key in path))
    return " ".join(parts)[:256]
