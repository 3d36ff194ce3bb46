"""What the tests of sources share: a record of faults, and a stop that costs no time."""

from __future__ import annotations

import threading

from lisiere.clock import ManualClock


class Faults(list[tuple[str, str]]):
    """Keeps what a source reports."""

    def __call__(self, name: str, sentence: str) -> None:
        self.append((name, sentence))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


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
