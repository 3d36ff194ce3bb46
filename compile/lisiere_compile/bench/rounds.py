"""Interleaved rounds and what is read off them: pure timing and statistics, nothing of any runtime.

In each round every contestant runs one batch of calls, so that whatever else the machine does is unfair to none.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

# A thread pool that still spins after this long is left to itself.
SETTLE_S = 0.5
_SETTLE_STEP_S = 0.002
# Long against reading the clock, and short against the slices of a scheduler: of the pieces of a batch most run
# undisturbed on a busy machine, so their median is what a call costs.
_PIECE_S = 0.00025


class Plan(Struct, frozen=True, kw_only=True):
    """How long to measure.

    Attributes:
        rounds: at least this many.
        seconds: and for at least this long.
        batch_ms: how long a batch of one contestant is to take; at least one call.
        settle: wait after a batch until the process is idle, as thread pools may spin on after a call.
    """

    rounds: int = 15
    seconds: float = 2.0
    batch_ms: float = 5.0
    settle: bool = False


class Spread(Struct, frozen=True, kw_only=True):
    """The middle of some figures, and how far the middle half of them reaches, and the least."""

    median: float
    q1: float
    q3: float
    least: float
    n: int


def spread(figures: Sequence[float]) -> Spread:
    """Return the median and the quartiles; with one figure all three are that one."""
    if len(figures) == 1:
        return Spread(median=figures[0], q1=figures[0], q3=figures[0], least=figures[0], n=1)
    q1, median, q3 = statistics.quantiles(figures, n=4, method="inclusive")
    return Spread(median=median, q1=q1, q3=q3, least=min(figures), n=len(figures))


def geometric_mean(ratios: Sequence[float]) -> float | None:
    """Return the geometric mean, or None of nothing."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios)) if ratios else None


def ratio_by_round(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return the spread of the rounds' ratios, each of two batches that ran within moments of each other."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of one round.

    Over as many rounds as there are names each stands at each place once; the next ones go the other way around, so
    that no contestant always follows the same other.
    """
    start = number % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if (number // len(names)) % 2 else turned


def measure(calls: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, list[float]]:
    """Time calls in interleaved rounds.

    Args:
        calls: name -> one inference.
        plan: how long.

    Returns:
        Name -> milliseconds of one call, a figure a round, which is the median of the pieces of a batch.
    """
    names = list(calls)
    if not names:
        return {}
    sizes = {name: _sizes(calls[name], plan.batch_ms / 1e3) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        began, number = time.perf_counter(), 0
        while number < plan.rounds or time.perf_counter() - began < plan.seconds:
            for name in order(names, number):
                calls[name]()  # the others have had the caches since
                times[name].append(_batch(calls[name], *sizes[name]) * 1e3)
                if plan.settle:
                    _settle()
            number += 1
    finally:
        if collecting:
            gc.enable()
    return times


def _batch(call: Callable[[], object], repeats: int, pieces: int) -> float:
    """Return the seconds of one call: the median of pieces of so many calls."""
    return statistics.median(_piece(call, repeats) for _ in range(pieces))


def _piece(call: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def _sizes(call: Callable[[], object], seconds: float) -> tuple[int, int]:
    """Return how many calls make a piece, and how many pieces a batch of so many seconds, once warm."""
    call()
    repeats = 1
    while True:
        # The best of three: a piece that was disturbed would make too short a batch.
        cost = min(_piece(call, repeats) for _ in range(3))
        if cost * repeats >= _PIECE_S / 2:
            repeats = max(1, round(_PIECE_S / cost))
            return repeats, max(1, math.ceil(seconds / (repeats * cost)))
        repeats *= 2


def _settle() -> None:
    """Wait until no thread of this process works any more."""
    began = time.perf_counter()
    while time.perf_counter() - began < SETTLE_S:
        before = time.process_time()
        time.sleep(_SETTLE_STEP_S)
        if time.process_time() - before < _SETTLE_STEP_S / 4:
            return
