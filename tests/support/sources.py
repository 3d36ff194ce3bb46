"""What the tests of sources share: a record of faults, a stop that costs no time, and a library that is not there."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable
from typing import Any

from lisiere.clock import ManualClock


class Faults(list[tuple[str, str]]):
    """Keeps what a source reports."""

    def __call__(self, name: str, sentence: str) -> None:
        self.append((name, sentence))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


class OtherFaults(Faults):
    """The faults that say something here: how long an answer takes on this machine decides no test."""

    def __call__(self, name: str, sentence: str) -> None:
        if name != "poll_late":
            super().__call__(name, sentence)


class Stop(threading.Event):
    """A stop whose waits move a clock and cost no time."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert 0 <= timeout <= threading.TIMEOUT_MAX
        self.waits.append(timeout)
        self._clock.advance(timeout)
        return self.is_set()


def without(library: str) -> Callable[..., Any]:
    """An import that does not know a library."""
    real = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(name)
        return real(name, *rest, **more)

    return importing


def until(holds: Callable[[], bool]) -> None:
    """Wait for what other threads bring about."""
    pause = threading.Event()
    for _ in range(1000):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError("It did not come about within 20 s.")
