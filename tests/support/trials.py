"""Trials of input health: a film through `Sight`, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lisiere.settings.checks import ChecksConfig
from lisiere.sight import Sight
from support.films import Frame


@dataclass
class Trial:
    """What was found in one film.

    Attributes:
        clean: how many frames had no fault, and `false` by name how many of them were said to have one.
        bad: how many had one, and `named` how many of them were said to have it.
        after_s: how long it took until it was named; None: never.
        others: further faults that were named while it lasted.
    """

    clean: int = 0
    false: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    named: int = 0
    after_s: float | None = None
    others: Counter[str] = field(default_factory=Counter)

    @property
    def false_alarms(self) -> float:
        """The share of clean frames with any fault."""
        return self.false["any"] / max(1, self.clean)


def run(
    film: Iterable[Frame], fps: float, fault: str = "", start: int = 0, stop: int = 0, sight: Sight | None = None
) -> Trial:
    """Show a film; its frames from `start` until before `stop` have the fault.

    Args:
        sight: one that has seen something before; a new one without it.
    """
    sight, trial = sight or Sight(ChecksConfig()), Trial()
    for index, frame in enumerate(film):
        faults = sight.look(frame, 1e9 + index / fps).faults
        if not start <= index < stop:
            trial.clean += 1
            trial.false.update(faults)
            trial.false["any"] += bool(faults)
            continue
        trial.bad += 1
        trial.others.update(name for name in faults if name != fault)
        if fault in faults:
            trial.named += 1
            trial.after_s = (index - start) / fps if trial.after_s is None else trial.after_s
    return trial
