"""Counters and states: what happened, under names, and how each part is.

What is dropped or refused anywhere is counted here; a log line says it the first time, and then ever more rarely.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

State = Literal["starting", "running", "waiting", "failed", "ended"]

_LATENCIES_KEPT = 4096
_SENTENCES: dict[State, str] = {
    "starting": "The pipeline {} is starting.",
    "running": "The pipeline {} is running.",
    "waiting": "The pipeline {} waits for its source.",
    "failed": "The pipeline {} has failed.",
    "ended": "The pipeline {} has ended.",
}


class PipelineHealth:
    """One pipeline's state, counters and latencies. Every method may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.backend = ""
        self._state: State = "starting"
        self._why = ""
        self._counters: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._lock = threading.Lock()
        self._log = logging.getLogger(f"lisiere.pipeline.{name}")

    def count(self, name: str, number: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name] += number

    def fault(self, name: str, sentence: str, times: int = 1) -> None:
        """Count something that went wrong, perhaps many times at once, and log it the 1st, 10th, 100th … time."""
        with self._lock:
            before = self._counters[name]
            self._counters[name] += times
        # The length of a number grows where it passes 10, 100, 1,000 …
        if before == 0 or len(str(before + times)) > len(str(before)):
            self._log.warning("%s (%s, %d so far)", sentence, name, before + times)

    def result(self, milliseconds: float) -> None:
        """Count one result and keep its latency until the next `take_latencies`."""
        with self._lock:
            self._counters["results"] += 1
            if len(self._latencies) < _LATENCIES_KEPT:
                self._latencies.append(milliseconds)

    def state(self, state: State, why: str = "") -> None:
        """Set the state; a change is logged."""
        with self._lock:
            changed = state != self._state
            self._state, self._why = state, why
        if changed:
            level = logging.WARNING if state in ("waiting", "failed") else logging.INFO
            self._log.log(level, "%s%s", _SENTENCES[state].format(self.name), f" {why}" if why else "")

    def snapshot(self) -> tuple[State, str, dict[str, int]]:
        """Return the state, why, and the counters."""
        with self._lock:
            return self._state, self._why, dict(sorted(self._counters.items()))

    def take_latencies(self) -> tuple[float, float, float] | None:
        """Return the quantiles 0.5, 0.95, 0.99 since the last call in milliseconds, or None without results."""
        with self._lock:
            taken, self._latencies = self._latencies, []
        if not taken:
            return None
        low, high, top = np.quantile(taken, (0.5, 0.95, 0.99))
        return float(low), float(high), float(top)


def worth_logging(times: int) -> bool:
    """Whether the n-th time of the same thing is worth a log line: the 1st, 10th, 100th and so on are."""
    return str(times).strip("0") == "1"


def resident_mb() -> float | None:
    """Return this process's resident memory in MB, or None where the system does not say. Source: proc(5)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6  # 4, 16 or 64 KiB on ARM
