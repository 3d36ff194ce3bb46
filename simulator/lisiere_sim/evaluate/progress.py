"""Progress of what takes longer than two seconds: a line on stderr that is written over on a terminal."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType

_AFTER_S = 2.0
_EVERY_S = 0.2
_PLAIN_EVERY_S = 10.0


class Progress(AbstractContextManager["Progress"]):
    """Says how far something is, beginning after two seconds; off a terminal, a line each ten seconds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._terminal = sys.stderr.isatty()
        self._due = time.monotonic() + _AFTER_S
        self._shown = False

    def update(self, done: int, total: int) -> None:
        """Tell that `done` of `total` are done."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        self._shown = True
        line = f"{self._name}: {done} of {total} ({100 * done // max(total, 1)}%)"
        sys.stderr.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""
        if self._shown and self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
