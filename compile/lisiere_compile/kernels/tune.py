"""Tuning: what else the rules could have done is tried on this machine, and kept where it is faster beyond doubt.

A plan takes the place of its rule's own only when it is faster by `_MARGIN` in two measurements, each interleaved and
by low percentiles, since other processes only ever make a run slower.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.codegen import compile_kernels
from lisiere_compile.graph import nbytes
from lisiere_compile.kernels.rules import Scheduled, constant_arguments, schedule_one
from lisiere_compile.program import Call, Program, Value
from lisiere_compile.quiet import quiet
from lisiere_compile.target import Target

_MARGIN = 0.03
_RIVALS = 8  # compiled together: more would overrun the time by more
_ROUNDS = 12
_HOPELESS = 1.25  # times the best one's time
_MOMENT_S = 0.002
_MOST_REPEATS = 32
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
    prepare = prepare or Bench(program, scheduled, target)
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
        # Once more: what a disturbance gave it would not come twice.
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
    """Compiles kernels into this process, and times them where they stand in the model.

    What a kernel costs depends on what the caches hold, so the calls before it run first, and are not timed. Every
    value of the program has memory of its own: what runs again finds what it found, places in other tensors included.
    """

    def __init__(self, program: Program, scheduled: Mapping[str, Scheduled], target: Target) -> None:
        self._program, self._scheduled, self._target = program, scheduled, target
        if target.threads > 1:
            import tvm

            tvm.get_global_func("runtime.config_threadpool")(1, target.threads)
        plain = {name: Scheduled(function) for name, function in program.functions.items()}
        chosen = {**plain, **scheduled}
        with quiet():
            functions = self._compile({name: one.function for name, one in chosen.items()})
        self._functions = {name: one for name, one in functions.items() if one is not None}
        self._tensors: dict[Value, Any] = {}
        self._places: dict[str, int] = {}
        self._calls: list[tuple[Any, list[Any], int]] = []  # what runs, on what, and the bytes that it touches
        for call in program.calls:
            if call.kernel in self._functions:
                self._places.setdefault(call.kernel, len(self._calls))
                touched = sum(nbytes(value) for value in (*call.tensors, *call.outputs))
                self._calls.append((self._functions[call.kernel], self._arguments(call, chosen[call.kernel]), touched))
        for function, arguments, _ in self._calls:
            function(*arguments)

    def __call__(self, rivals: Sequence[tuple[str, Scheduled]]) -> list[Timer | None]:
        """Compile kernels together, or each by itself where that fails, and make them ready."""
        new = {
            f"{name}_{place}": one.function for place, (name, one) in enumerate(rivals) if not self._is_own(name, one)
        }
        with quiet():
            compiled = self._compile(new)
        functions = [
            compiled.get(f"{name}_{place}", self._functions.get(name)) for place, (name, _) in enumerate(rivals)
        ]
        return [
            None if function is None or name not in self._places else self._timer(function, name, one)
            for (name, one), function in zip(rivals, functions, strict=True)
        ]

    def _is_own(self, name: str, one: Scheduled) -> bool:
        return self._scheduled.get(name) is one

    def _compile(self, functions: dict[str, Any]) -> dict[str, Any]:
        """Return what runs each function; None for those that do not compile."""
        if not functions:
            return {}
        try:
            module = compile_kernels(functions, self._target)
            return {name: module[name] for name in functions}
        except Exception:  # noqa: BLE001 - TVM raises in many classes
            if len(functions) == 1:
                return dict.fromkeys(functions)
            return {name: self._compile({name: function})[name] for name, function in functions.items()}

    def _timer(self, function: Any, name: str, one: Scheduled) -> Timer:
        place = self._places[name]
        call = next(call for call in self._program.calls if call.kernel == name)
        arguments = self._calls[place][1] if self._is_own(name, one) else self._arguments(call, one)
        before: list[tuple[Any, list[Any]]] = []
        filled = 0
        for step in range(1, len(self._calls)):  # round the end, as one run follows another
            if filled >= 2 * self._target.l2_bytes:
                break
            earlier, its, touched = self._calls[place - step]
            before.insert(0, (earlier, its))
            filled += touched

        def run() -> float:
            for earlier, its in before:
                earlier(*its)
            start = time.perf_counter()
            function(*arguments)
            return time.perf_counter() - start

        def several() -> float:
            return _low([run() for _ in range(repeats)])

        run()  # the first call resolves symbols
        start = time.perf_counter()
        run()
        repeats = min(max(int(_MOMENT_S / (time.perf_counter() - start)), 1), _MOST_REPEATS)
        return several

    def _arguments(self, call: Call, one: Scheduled) -> list[Any]:
        """Return what a call passes to a schedule of its kernel: tensors and numbers, then the outputs."""
        found: list[Any] = []
        for place, value in enumerate((*call.arguments, *call.outputs)):
            if not isinstance(value, Value):
                found.append(value)
            elif place in one.packs:
                found.append(_tensor(one.packs[place](self._program.constants[value])))
            else:
                if value not in self._tensors:
                    self._tensors[value] = _tensor(self._content(value))
                found.append(self._tensors[value])
        return found

    def _content(self, value: Value) -> NDArray[Any]:
        """Return what a value holds before anything runs: inputs are random, but whole numbers may be places, so 0."""
        if value in self._program.constants:
            return self._program.constants[value]
        if np.issubdtype(value.dtype, np.floating):
            return np.random.default_rng(0).random(value.shape, np.float32).astype(value.dtype)
        return np.zeros(value.shape, value.dtype)


def _tensor(array: NDArray[Any]) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape))
