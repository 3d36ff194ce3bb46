"""Which schedule a kernel gets, and the layout of the weights that goes with it.

A kernel that no rule fits is left as it is: every step of a rule is one that TVM checks, so a schedule may be slow but
not wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lisiere_compile.kernels.elementwise import inline_elementwise
from lisiere_compile.kernels.emit import is_written
from lisiere_compile.kernels.nest import Nest, Pack
from lisiere_compile.kernels.recurrent import fitted
from lisiere_compile.kernels.reduction import channelwise, outer_product, padded_channelwise
from lisiere_compile.kernels.rows import rowwise
from lisiere_compile.kernels.tiles import Plan
from lisiere_compile.kernels.transcendental import polynomial
from lisiere_compile.program import Call, Program, Value
from lisiere_compile.target import Target

# The first that fits wins.
_RULES = (outer_product, channelwise, padded_channelwise, rowwise, inline_elementwise)


@dataclass
class Scheduled:
    """A kernel after its schedule.

    Attributes:
        function: the PrimFunc.
        packs: parameter -> how the constant that it reads is to be laid out.
        plans: what its rule could have done, best first by the rule; empty when there was nothing to choose.
        choice: which of them it does.
    """

    function: Any
    packs: dict[int, Pack] = field(default_factory=dict)
    plans: tuple[Plan, ...] = ()
    choice: int = 0


def schedule(program: Program, target: Target) -> dict[str, Scheduled]:
    """Return the kernels that a rule fits, scheduled, by name; the others run as lowering gave them."""
    constant = constant_arguments(program)
    found = {
        kernel: schedule_one(function, target, constant.get(kernel, frozenset()))
        for kernel, function in program.functions.items()
    }
    return {kernel: done for kernel, done in found.items() if done is not None}


def schedule_one(
    function: Any, target: Target, constant: frozenset[int] = frozenset(), choice: int = 0
) -> Scheduled | None:
    """Return the scheduled kernel, or None when no rule fits.

    Args:
        function: a PrimFunc.
        target: the machine.
        constant: which parameters are constants in every call, so that their layout is ours to choose.
        choice: which of its plans the rule is to follow.
    """
    if is_written(function):
        return Scheduled(function)
    recurrence = fitted(function, target)
    if recurrence is not None:
        # Only the layout of weights that are constants is ours to choose.
        return Scheduled(polynomial(recurrence.function()), {1: recurrence.pack}) if 1 in constant else None
    for rule in _RULES:
        nest = Nest.of(function, target, constant, choice)
        try:
            if rule(nest):
                # At the end, since a rule may make two of one expression.
                return Scheduled(polynomial(nest.sch.mod["main"]), nest.packs, nest.plans, choice)
        except RuntimeError:  # a primitive refused this nest; ScheduleError is one of them
            continue
    return None


def constant_arguments(program: Program) -> dict[str, frozenset[int]]:
    """Which arguments of each kernel are constants in every call of it."""
    found: dict[str, set[int]] = {}
    for call in program.calls:
        here = {index for index, value in enumerate(call.arguments) if value in program.constants}
        found[call.kernel] = found[call.kernel] & here if call.kernel in found else here
    return {kernel: frozenset(indices) for kernel, indices in found.items()}


def pack_weights(program: Program, packs: Mapping[str, Mapping[int, Pack]]) -> Program:
    """Give each call constants in the layout that its kernel reads; one constant in two layouts becomes two.

    Args:
        program: with constants as lowering gave them.
        packs: kernel name -> argument -> how to lay it out.
    """
    constants = dict(program.constants)
    calls: list[Call] = []
    made: dict[tuple[Value, str, int], Value] = {}
    values = (value for call in program.calls for value in (*call.tensors, *call.outputs))
    key = 1 + max((value.key for value in values), default=0)
    for call in program.calls:
        arguments = list(call.arguments)
        for index, pack in packs.get(call.kernel, {}).items():
            value = arguments[index]
            assert isinstance(value, Value)  # noqa: S101 - a constant
            known = made.get((value, call.kernel, index))
            if known is None:
                data = np.ascontiguousarray(pack(program.constants[value]))
                known = made[value, call.kernel, index] = Value(key, data.shape, value.dtype)
                constants[known] = data
                key += 1
            arguments[index] = known
        calls.append(replace(call, arguments=tuple(arguments)))
    used = {value for call in calls for value in call.tensors}
    kept = {value: data for value, data in constants.items() if value in used}
    return replace(program, calls=tuple(calls), constants=kept)
