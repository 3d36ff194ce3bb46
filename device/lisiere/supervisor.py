"""The supervisor: the one place where things are tried again.

A unit is a function that runs until its work is done. It may raise Retryable as often as it likes: it is run
again after a jittered, growing wait. Anything else ends that unit and no other.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable

from lisiere.clock import Clock
from lisiere.errors import LisiereError, Retryable
from lisiere.health import State

_FIRST_WAIT_S = 1.0
_HEALTHY_S = 30.0  # a run of this length was a success, so the waits start anew

log = logging.getLogger(__name__)


def backoff(attempt: int, longest: float, spread: float) -> float:
    """Return how long to wait before the next try, in seconds.

    Args:
        attempt: 0 for the first wait; each next one doubles.
        longest: the bound.
        spread: a random number in 0 … 1, which takes up to half the wait away but never leaves less than 1 s.
    """
    wait: float = min(longest, _FIRST_WAIT_S * 2.0 ** min(attempt, 30))
    return max(_FIRST_WAIT_S, wait * (1 - spread / 2))


class StopOrHurry(threading.Event):
    """A stop whose waits can also be cut short without stopping, since there is reason to try again at once."""

    def __init__(self) -> None:
        super().__init__()
        self._over = threading.Event()

    def set(self) -> None:
        """Stop."""
        super().set()
        self._over.set()

    def hurry(self) -> None:
        """End the wait that goes on, or the next one."""
        self._over.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for either, and return whether it is to stop."""
        self._over.wait(timeout)
        if not self.is_set():
            self._over.clear()
        return self.is_set()


class Unit:
    """A thread that runs one function, again after each Retryable, until it returns or `stop` is set.

    Args:
        name: of the thread.
        body: what to run. It watches `stop` itself.
        stop: set to end the unit.
        report: told of each change: running, waiting (and why), failed (and why), ended.
        longest_wait: bound on the wait between tries, in seconds.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], None],
        stop: threading.Event,
        clock: Clock,
        report: Callable[[State, str], None],
        longest_wait: float = 30.0,
    ) -> None:
        self._body = body
        self._stop = stop
        self._clock = clock
        self._report = report
        self._longest = longest_wait
        self.failed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            started = self._clock.monotonic()
            try:
                self._body()
            except Retryable as error:
                if self._clock.monotonic() - started >= _HEALTHY_S:
                    attempt = 0
                wait = backoff(attempt, self._longest, random.random())  # noqa: S311 - jitter, not a secret
                attempt += 1
                self._report("waiting", f"{error} Next try in {wait:.1f} s.")
                self._stop.wait(wait)
            except LisiereError as error:
                self.failed = True
                self._report("failed", str(error))
                return
            except Exception as error:
                # A defect of ours. It must not take the other units down, and must not pass in silence.
                log.exception("The unit %s ended by a defect.", self._thread.name)
                self.failed = True
                self._report("failed", f"A defect: {type(error).__name__}: {error}")
                return
            else:
                self._report("ended", "")
                return
        self._report("ended", "")
