"""Tuning: what else the rules could have done is tried on this machine, and kept where it is faster beyond doubt.

A plan takes the place of its rule's own only when it is faster by `_MARGIN` in two measurements, each interleaved and
by low percentiles, since other processes only ever make a run slower.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lisiere_compile.codegen import compile_kernels
from lisiere_compile.kernels.rules import Scheduled, constant_arguments, schedule_one
from lisiere_compile.program import Program
from lisiere_compile.quiet import quiet
from lisiere_compile.target import Target

_MARGIN = 0.03
_RIVALS = 8  # compiled together: more would overrun the time by more
_ROUNDS = 12
_HOPELESS = 1.25  # times the best one's time
_MOMENT_S = 0.0005
_MOST_COPIES = 32
_SAY_EVERY_S = 2.0

# Runs a kernel for a moment and returns the seconds of one call.
Timer = Callable[[], float]
# Makes kernels ready to be timed; None for those that do not compile.
Prepare = Callable[[Sequence[tuple[str, Scheduled]]], list[Timer | None]]


@dataclass
class Tuned:
    """What tuning found.

    Attributes:
        scheduled: the kernels, by name; those that gained nothing as they were.
        kernels: how many had anything to choose.
        tried: how many of them were compared with what else they could do.
        improved: how many of these got another plan.
    """

    scheduled: dict[str, Scheduled]
    kernels: int = 0
    tried: int = 0
    improved: int = 0

    def __str__(self) -> str:
        return f"{self.tried} of {self.kernels} kernels, {self.improved} improved"


def tune(
    program: Program,
    scheduled: Mapping[str, Scheduled],
    target: Target,
    seconds: float,
    report: Callable[[str], None],
    *,
    prepare: Prepare | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Tuned:
    """Try other plans for the kernels of a program, the costliest first, until the time is used up.

    Args:
        program: whose calls say how often each kernel runs.
        scheduled: by the rules.
        target: this machine.
        seconds: for all of it; what is being compiled when they end is finished first.
        report: called every few seconds with how far it is.
        prepare: makes kernels ready to be timed.
        clock: in seconds.
    """
    end, said = clock() + seconds, clock()
    prepare = prepare or Bench(program, target)
    constant = constant_arguments(program)
    found = Tuned(dict(scheduled))
    names = [name for name, one in scheduled.items() if len(one.plans) > 1]
    found.kernels = len(names)
    for name in _by_cost(program, scheduled, names, prepare):
        if clock() >= end:
            break
        mine = found.scheduled[name]
        others = []
        with quiet():
            for choice in range(1, min(len(mine.plans), _RIVALS + 1)):
                other = schedule_one(program.functions[name], target, constant.get(name, frozenset()), choice)
                if other is not None and other.plans == mine.plans:
                    others.append(other)
        best = _fastest([mine, *others], name, prepare, lambda: clock() >= end)
        found.tried += 1
        # Once more, in other places of the memory.
        if best is not mine and clock() < end:
            best = _fastest([mine, best], name, prepare, lambda: clock() >= end)
            found.improved += best is not mine
            found.scheduled[name] = best
        if clock() - said >= _SAY_EVERY_S:
            said = clock()
            report(f"tune: {found}")
    report(f"tune: {found}")
    return found


def _by_cost(program: Program, scheduled: Mapping[str, Scheduled], names: list[str], prepare: Prepare) -> list[str]:
    """Sort kernels by what all of their calls cost, the costliest first; without those that cannot be timed."""
    calls = Counter(call.kernel for call in program.calls)
    timers = prepare([(name, scheduled[name]) for name in names])
    cost = {
        name: calls[name] * min(timer() for _ in range(3))
        for name, timer in zip(names, timers, strict=True)
        if timer is not None
    }
    return sorted(cost, key=lambda name: -cost[name])


def _fastest(rivals: list[Scheduled], name: str, prepare: Prepare, over: Callable[[], bool]) -> Scheduled:
    """Return the fastest of several schedules; the first of them unless another is so by the margin."""
    timers = prepare([(name, one) for one in rivals])
    if timers[0] is None:
        return rivals[0]
    running = {place: timer for place, timer in enumerate(timers) if timer is not None}
    times: dict[int, list[float]] = {place: [] for place in running}
    for _ in range(_ROUNDS):
        if over():
            return rivals[0]
        for place, seen in times.items():
            seen.append(running[place]())
        limit = _HOPELESS * min(map(_low, times.values()))
        times = {place: seen for place, seen in times.items() if place == 0 or _low(seen) <= limit}
    best = min(times, key=lambda place: _low(times[place]))
    return rivals[best] if _low(times[best]) <= (1 - _MARGIN) * _low(times[0]) else rivals[0]


def _low(times: list[float]) -> float:
    """A low percentile: not the least, which a clock may have made."""
    return sorted(times)[len(times) // 8]


class Bench:
    """Compiles kernels into this process and times them on random tensors."""

    def __init__(self, program: Program, target: Target) -> None:
        self._target = target
        self._calls = {call.kernel: call for call in program.calls}
        self._constants = program.constants
        if target.threads > 1:
            import tvm

            tvm.get_global_func("runtime.config_threadpool")(1, target.threads)
        # What the model reads of its constants between two calls of a kernel, as far as the caches could tell.
        self._between = min(2 * target.l2_bytes, sum(array.nbytes for array in program.constants.values()))

    def __call__(self, rivals: Sequence[tuple[str, Scheduled]]) -> list[Timer | None]:
        """Compile kernels together, or each by itself where that fails, and make tensors for them."""
        functions = {f"{name}_{place}": one.function for place, (name, one) in enumerate(rivals)}
        with quiet():
            compiled = self._compile(functions)
        held: dict[Any, Any] = {}  # kernels of one shape share tensors
        return [
            None if function is None else self._timer(function, name, one, held)
            for (name, one), function in zip(rivals, compiled, strict=True)
        ]

    def _compile(self, functions: dict[str, Any]) -> list[Any]:
        """Return what runs each function; None for those that do not compile."""
        try:
            module = compile_kernels(functions, self._target)
            return [module[name] for name in functions]
        except Exception:  # noqa: BLE001 - TVM raises in many classes
            if len(functions) == 1:
                return [None]
            return [self._compile({name: function})[0] for name, function in functions.items()]

    def _timer(self, function: Any, name: str, one: Scheduled, held: dict[Any, Any]) -> Timer:
        call = self._calls[name]
        constant = {place for place, value in enumerate(call.arguments) if value in self._constants}
        size = sum(self._constants[value].nbytes for value in call.tensors if value in self._constants)
        # The kernel gets its constants from several places in turn, so that they come from the memory that they would.
        copies = min(_MOST_COPIES, math.ceil(self._between / size)) if size else 1
        slots = call.wrapper.slots

        def argument(place: int, kind: Any, copy: int) -> Any:
            if slots[place] is not None:
                return slots[place]
            return self._tensor(held, (name, place, copy if place in constant else 0), kind)

        kinds = [parameter.ty for parameter in one.function.params]
        lists = [[argument(place, kind, copy) for place, kind in enumerate(kinds)] for copy in range(copies)]

        def run(calls: int) -> float:
            turns = [lists[turn % copies] for turn in range(calls)]
            start = time.perf_counter()
            for arguments in turns:
                function(*arguments)
            return (time.perf_counter() - start) / calls

        run(1)  # the first call resolves symbols
        calls = max(copies, math.ceil(_MOMENT_S / run(copies)))
        return lambda: run(calls)

    def _tensor(self, held: dict[Any, Any], key: tuple[str, int, int], kind: Any) -> Any:
        import tvm

        shape, dtype = tuple(int(size) for size in kind.shape), str(kind.dtype)
        if (key, shape) not in held:
            # Whole numbers may be places in another tensor, of which 0 is one.
            whole = not dtype.startswith("float")
            data = np.zeros(shape, dtype) if whole else np.random.default_rng(0).random(shape, np.float32)
            held[key, shape] = tvm.runtime.tensor(data.astype(dtype))
        return held[key, shape]
