"""Numbers of Relax expressions, by NumPy: what is constant, and what a chain of operators makes of 256 values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


# Relax operators of one number each, with constants as further arguments.
_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.power": np.power,
    "relax.negative": np.negative,
    "relax.abs": np.abs,
    "relax.exp": np.exp,
    "relax.log": np.log,
    "relax.sqrt": np.sqrt,
    "relax.tanh": np.tanh,
    "relax.erf": _erf,
    "relax.sigmoid": _sigmoid,
    "relax.clip": np.clip,
    "relax.isnan": np.isnan,
    "relax.where": np.where,
    "relax.nn.relu": lambda x: np.maximum(x, 0),
    "relax.nn.silu": lambda x: x * _sigmoid(x),
    "relax.nn.gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
}


def operator(call: Any) -> tuple[str, list[Any]]:
    """Return the name of a Relax operator and its arguments; "" for what is none.

    The importer writes Clip as kernels of TVM's operator inventory, called by name.
    """
    name = str(getattr(getattr(call, "op", None), "name", ""))
    if name == "relax.call_tir":
        hint = str(call.args[0].name_hint).rstrip("0123456789").rstrip("_")
        fields = list(call.args[1].fields)
        if hint in ("maximum", "minimum") and len(fields) == 2:
            return f"relax.{hint}", fields
        return name, fields
    return name, list(getattr(call, "args", ()))


@dataclass(frozen=True)
class Quantised:
    """A constant as integers; scale and zero have its number of dimensions."""

    numbers: Array
    scale: Array
    zero: Array

    def values(self) -> Array:
        """Return what the integers stand for."""
        return ((self.numbers.astype(np.int64) - self.zero) * self.scale).astype(np.float32)


class Evaluator:
    """Evaluates the variables of one function by their definitions."""

    def __init__(self, definitions: dict[Any, Any]) -> None:
        from tvm import ir, tirx

        self._constant_type = ir.GenericConst
        self._number_types = (tirx.IntImm, tirx.FloatImm)
        self._definitions = definitions
        self._known: dict[Any, Array | None] = {}

    def constant(self, expression: Any) -> Array | None:
        """Return the value of an expression without inputs, or None."""
        if isinstance(expression, self._constant_type):
            return np.asarray(expression.value.numpy())
        if isinstance(expression, self._number_types):
            return np.asarray(expression.value)
        definition = self._definitions.get(expression)
        if definition is None:
            return None
        if expression not in self._known:
            self._known[expression] = None  # while it is looked at
            self._known[expression] = self._evaluate(expression, definition)
        return self._known[expression]

    def _evaluate(self, variable: Any, definition: Any) -> Array | None:
        quantised = self.quantised(variable)
        if quantised is not None:
            return quantised.values()
        name, arguments = operator(definition)
        if name in ("relax.reshape", "relax.permute_dims", "relax.squeeze", "relax.expand_dims"):
            value = self.constant(arguments[0])
            return None if value is None else _moved(value, name, definition, variable)
        function = _ELEMENTWISE.get(name)
        values = [self.constant(argument) for argument in arguments]
        if function is None or any(value is None for value in values):
            return None
        return np.asarray(function(*values), dtype=str(variable.ty.dtype))

    def quantised(self, expression: Any) -> Quantised | None:
        """Return a constant that comes as integers, through changes of its shape, or None."""
        definition: Any = self._definitions.get(expression)
        name, arguments = operator(definition)
        if name == "relax.dequantize":
            numbers, scale, zero = (self.constant(argument) for argument in arguments)
            if numbers is None or scale is None or zero is None or numbers.dtype.kind not in "iu":
                return None
            axis = int(definition.attrs.axis) % max(numbers.ndim, 1)
            return Quantised(numbers, _along(scale, axis, numbers.ndim), _along(zero, axis, numbers.ndim))
        if name == "relax.permute_dims":
            found = self.quantised(arguments[0])
            if found is not None:
                parts = (found.numbers, found.scale, found.zero)
                return Quantised(*(_moved(part, name, definition, expression) for part in parts))
        if name == "relax.reshape":
            found = self.quantised(arguments[0])
            if found is not None and found.scale.size == 1 and found.zero.size == 1:
                shape = tuple(int(dim) for dim in expression.ty.shape)
                ones = (1,) * len(shape)
                return Quantised(found.numbers.reshape(shape), found.scale.reshape(ones), found.zero.reshape(ones))
        return None

    def table(self, expression: Any, leaf: Callable[[Any], Array | None]) -> tuple[Any, Array] | None:
        """Evaluate an elementwise expression of one variable and numbers.

        Args:
            expression: of the variable's shape throughout.
            leaf: what a variable may be, or None for one that is itself to be evaluated.

        Returns:
            The variable and the results, or None when the expression is anything else.
        """
        found: set[Any] = set()
        known: dict[Any, Array | None] = {}

        def value(one: Any) -> Array | None:
            if one not in known:
                known[one] = find(one)
            return known[one]

        def find(one: Any) -> Array | None:
            values = leaf(one)
            if values is not None:
                found.add(one)
                return values if shape_of(one) == shape_of(expression) else None
            fixed = self.constant(one)
            if fixed is not None:
                return fixed.reshape(()).astype(np.float64) if fixed.size == 1 else None
            name, arguments = operator(self._definitions.get(one))
            function = _ELEMENTWISE.get(name)
            if function is None:
                return None
            parts = [value(argument) for argument in arguments]
            return None if any(part is None for part in parts) else np.asarray(function(*parts))

        with np.errstate(all="ignore"):
            result = value(expression)
        if result is None or len(found) != 1 or not np.isfinite(result).all():
            return None
        return found.pop(), result


def shape_of(variable: Any) -> tuple[int, ...] | None:
    """Return the static shape of a variable, or None."""
    from tvm import tirx

    shape = getattr(variable.ty, "shape", None)
    if shape is None or not all(isinstance(dim, tirx.IntImm | int) for dim in shape):
        return None
    return tuple(int(dim) for dim in shape)


def _along(value: Array, axis: int, rank: int) -> Array:
    """A scalar or a vector along an axis, with all dimensions."""
    shape = [1] * rank
    if value.size > 1:
        shape[axis] = value.size
    return value.reshape(shape).astype(np.int64 if value.dtype.kind in "iu" else value.dtype)


def _moved(value: Array, name: str, definition: Any, variable: Any) -> Array:
    """A constant after a change of its shape."""
    if name == "relax.permute_dims":
        axes = definition.attrs.axes
        return value.transpose(None if axes is None else [int(axis) for axis in axes])
    return value.reshape([int(dim) for dim in variable.ty.shape])
