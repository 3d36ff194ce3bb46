"""Patterns: which float operators between DequantizeLinear and QuantizeLinear have an integer kernel, and which.

Each pattern looks from the operator at its inputs, which must be views of 8-bit numbers with one scale, or constants.
Clamps and changes of shape may stand between the operator and QuantizeLinear: rounding keeps the order of numbers, so
that a clamp of floats is one of integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.evaluate import Evaluator, operator, shape_of
from lisiere_compile.held import BYTES, Held, Match, View, bytes_of, derived
from lisiere_compile.kernels import int8_channels, int8_elements, int8_products
from lisiere_compile.kernels.int8 import Kernel, Result, Source, Window, shift
from lisiere_compile.target import Target

_RANGE = {"int8": (-128, 127), "uint8": (0, 255)}
_SHAPES = ("relax.permute_dims", "relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")
_SUM_BITS = 31
_BIAS_ERROR = 0.05  # of a quantum of the result: a bias that is no multiple of the unit of sums is rounded to one


@dataclass(frozen=True)
class _Core:
    """What a pattern found: a match without the end, `held` without its name and type."""

    inputs: tuple[tuple[View, tuple[int, ...]], ...]
    dims: tuple[int, ...]
    order: tuple[int, ...]
    build: Callable[[list[Source], Result], Kernel]


class Matcher:
    """Looks at the bindings of a function in order.

    Attributes:
        held: of each variable of 8-bit numbers.
        views: of each float variable that 8-bit numbers stand for.
        matches: root -> the kernel that gives it.
    """

    def __init__(self, values: dict[Any, Any], evaluator: Evaluator, target: Target) -> None:
        self._values, self._evaluate, self._target = values, evaluator, target
        self.held: dict[Any, Held] = {}
        self.views: dict[Any, View] = {}
        self.matches: dict[Any, Match] = {}

    def look(self, variable: Any, value: Any) -> None:
        """Note what a variable is, if it has to do with 8-bit numbers."""
        shape, dtype = shape_of(variable), str(getattr(variable.ty, "dtype", ""))
        if shape is None or 0 in shape:
            return
        name, arguments = operator(value)
        if name == "relax.dequantize":
            self._dequantize(variable, value)
        elif name in _SHAPES and arguments[0] in self.views:
            view = self.views[arguments[0]]
            held = derived(view.held, name, value, shape)
            self.views[variable] = replace(view, held=held or self._rearranged(variable, view, shape))
        elif name == "relax.nn.max_pool2d" and arguments[0] in self.views:
            self._max_pool(variable, value, self.views[arguments[0]], bytes_of(variable))
        elif dtype in BYTES:
            if name in _SHAPES and arguments[0] in self.held:
                if (same := derived(self.held[arguments[0]], name, value, shape)) is not None:
                    self.held[variable] = same
                    return
            elif name == "relax.nn.max_pool2d" and arguments[0] in self.held:
                self._max_pool(variable, value, View(self.held[arguments[0]], 1.0, 0), variable)
            elif name == "relax.quantize":
                self._quantize(variable, value)
            if variable not in self.held:
                self.held[variable] = Held(variable, shape, tuple(range(len(shape))), dtype)

    def _rearranged(self, variable: Any, view: View, shape: tuple[int, ...]) -> Held:
        """Have a tensor copied into the order that the model sees, for a change of shape that needs it."""
        order = tuple(range(len(view.held.dims)))

        def build(sources: list[Source], result: Result) -> Kernel:
            size = sources[0].tensor.size
            return int8_elements.concatenate((sources[0],), (size,), (1.0,), result, self._target)

        held = Held(bytes_of(variable), shape, tuple(range(len(shape))), view.held.dtype)
        self.matches[held.root] = Match(((view, order),), held, (view.zero, *_RANGE[held.dtype]), build)
        return held

    def _dequantize(self, variable: Any, call: Any) -> None:
        data, scale, zero = call.args[0], *(self._evaluate.constant(one) for one in call.args[1:])
        if data in self.held and scale is not None and zero is not None and scale.size == zero.size == 1:
            self.views[variable] = View(self.held[data], float(scale.item()), int(zero.item()))

    def _quantize(self, variable: Any, call: Any) -> None:
        """Match what is quantised, from the last operator back."""
        scale, zero = (self._evaluate.constant(one) for one in call.args[1:])
        dtype = str(variable.ty.dtype)
        if scale is None or zero is None or scale.size != 1 or zero.size != 1:
            return
        unit, offset = np.float32(scale.item()), int(zero.item())
        view = self.views.get(call.args[0])
        if view is not None and (np.float32(view.scale), view.zero, view.held.dtype) == (unit, offset, dtype):
            self.held[variable] = view.held
            return
        whole = _RANGE[dtype]
        last, low, high, moves = self._back(call.args[0], unit, offset, whole)
        core = self._core(last, unit)
        if core is None:
            core, low, high, moves = self._table(call.args[0], unit, offset, dtype), *whole, []
        if core is None:
            return
        held: Held | None = Held(variable, core.dims, core.order, dtype)
        for moved in reversed(moves):
            held = held and derived(held, operator(self._values[moved])[0], self._values[moved], shape_of(moved) or ())
        if held is not None:
            own = Held(variable, core.dims, core.order, dtype)
            self.held[variable] = held
            self.matches[variable] = Match(core.inputs, own, (offset, low, high), core.build)

    def _back(
        self, variable: Any, unit: np.float32, zero: int, whole: tuple[int, int]
    ) -> tuple[Any, int, int, list[Any]]:
        """Walk back over clamps and changes of shape.

        Returns:
            What they are applied to, the range that the clamps leave, and the variables that only change the shape.
        """
        low, high = whole
        moves: list[Any] = []

        def quantum(value: NDArray[Any]) -> int:
            ratio = float(np.rint(np.clip(np.float32(value) / unit, -512, 512)))
            return min(max(int(ratio) + zero, whole[0]), whole[1])

        while variable not in self.views:
            name, arguments = operator(self._values.get(variable))
            bounds = [self._evaluate.constant(one) for one in arguments[1:]]
            scalar = all(bound is not None and bound.size == 1 and not np.isnan(bound).any() for bound in bounds)
            least: NDArray[Any] | None = None
            most: NDArray[Any] | None = None
            if name in _SHAPES:
                moves.append(variable)
            elif name == "relax.nn.relu":
                least = np.zeros(())
            elif name in ("relax.clip", "relax.maximum", "relax.minimum") and bounds and scalar:
                least = bounds[0] if name != "relax.minimum" else None
                most = bounds[-1] if name != "relax.maximum" else None
            else:
                break
            # The outer clamp has the last word.
            if least is not None:
                low = min(max(low, quantum(least)), high)
            if most is not None:
                high = max(min(high, quantum(most)), low)
            variable = arguments[0]
        return variable, low, high, moves

    def _core(self, variable: Any, unit: np.float32) -> _Core | None:
        """Match one operator whose result is quantised with the scale `unit`."""
        call = self._values.get(variable)
        name, arguments = operator(call)
        if shape_of(variable) is None:
            return None
        if name in ("relax.add", "relax.multiply") and all(one in self.views for one in arguments):
            return self._pair(name, arguments, unit)
        if name == "relax.add":
            for one, other in (arguments, arguments[::-1]):
                bias = self._evaluate.constant(other)
                if bias is not None and shape_of(one) == shape_of(variable):
                    return self._product(one, bias, unit)
            return None
        if name in ("relax.nn.conv2d", "relax.nn.conv1d", "relax.matmul"):
            return self._product(variable, None, unit)
        if name == "relax.concat":
            return self._concatenation(call, unit)
        view = self.views.get(arguments[0]) if arguments else None
        if view is None:
            return None
        if name == "relax.nn.softmax":
            return self._softmax(call, view, unit)
        if name == "relax.mean":
            return self._mean(call, view, unit)
        if name == "relax.nn.avg_pool2d":
            return self._average_pool(variable, call, view, unit)
        return None

    def _product(self, variable: Any, bias: NDArray[Any] | None, unit: np.float32) -> _Core | None:
        """Match a convolution or a matrix product with constant weights, with or without a bias."""
        call, shape = self._values.get(variable), shape_of(variable)
        name, arguments = operator(call)
        if shape is None or name not in ("relax.nn.conv2d", "relax.nn.conv1d", "relax.matmul"):
            return None
        view, weights = self.views.get(arguments[0]), self._evaluate.quantised(arguments[1])
        if view is None or weights is None or weights.numbers.dtype.name not in BYTES:
            return None
        rank = len(view.held.shape)
        if name == "relax.matmul":
            if weights.numbers.ndim != 2 or rank < 2:
                return None
            axis, channel, order = 1, len(shape) - 1, tuple(range(rank))
            rows, columns = math.prod(shape[:-1]), shape[-1]
            window = Window(1, 1, rows, weights.numbers.shape[0], columns)
            numbers = (weights.numbers.astype(np.int32) - weights.zero).T[:, None, None, :]
        else:
            if not _plain_convolution(call, rank):
                return None
            axis, channel, order = 0, 1, (0, *range(2, rank), 1)
            window = _window(call, view.held.shape, shape[1])
            numbers = np.moveaxis(weights.numbers.astype(np.int32) - weights.zero, 1, -1)
            numbers = numbers.reshape(window.outputs, *window.kernel, -1)
        factors = (weights.scale, weights.zero)
        if any(part.size > 1 and part.shape[axis] != part.size for part in factors):
            return None
        scale = np.float32(view.scale) * np.broadcast_to(weights.scale.astype(np.float32).ravel(), (window.outputs,))
        sums = np.zeros(window.outputs)
        if bias is not None:
            spread = (1,) * (len(shape) - bias.ndim) + bias.shape
            if any(size > 1 and place != channel for place, size in enumerate(spread)):
                return None
            sums = np.broadcast_to(bias.astype(np.float64).ravel(), sums.shape) / scale
        whole, factor = np.rint(sums), (scale / unit).astype(np.float32)
        if (np.abs(sums - whole) * factor > _BIAS_ERROR).any():
            return None
        most = np.abs(whole) + 256 * np.abs(numbers).sum((1, 2, 3), dtype=np.int64)
        if not np.isfinite(factor).all() or (most >= 1 << _SUM_BITS).any():
            return None
        bias64, kernels = whole.astype(np.int64), numbers.astype(np.int32)
        write = int8_channels.depthwise if window.depthwise else int8_products.convolution

        def build(sources: list[Source], result: Result) -> Kernel:
            return write(window, sources[0], kernels, bias64, factor, result, self._target)

        return _Core(((view, order),), tuple(shape[one] for one in order), order, build)

    def _pair(self, name: str, arguments: list[Any], unit: np.float32) -> _Core | None:
        first, second = (self.views[one] for one in arguments)
        if first.held.shape != second.held.shape:
            return None
        order = first.held.order
        scales = (float(np.float32(first.scale) / unit), float(np.float32(second.scale) / unit))

        def build(sources: list[Source], result: Result) -> Kernel:
            pair = (sources[0], sources[1])
            if name == "relax.add":
                return int8_elements.add(pair, scales, result, self._target)
            return int8_elements.multiply(pair, scales[0] * second.scale, result, self._target)

        return _Core(((first, order), (second, order)), first.held.dims, order, build)

    def _concatenation(self, call: Any, unit: np.float32) -> _Core | None:
        fields = list(getattr(call.args[0], "fields", ()))
        views = [self.views[one] for one in fields if one in self.views]
        if not views or len(views) != len(fields):
            return None
        order, shapes = views[0].held.order, [view.held.shape for view in views]
        axis = int(call.attrs.axis) % len(order)
        place = order.index(axis)
        runs = tuple(math.prod(shape[one] for one in order[place:]) for shape in shapes)
        joined = [sum(shape[axis] for shape in shapes) if one == axis else shapes[0][one] for one in order]
        scales = tuple(float(np.float32(view.scale) / unit) for view in views)

        def build(sources: list[Source], result: Result) -> Kernel:
            return int8_elements.concatenate(tuple(sources), runs, scales, result, self._target)

        return _Core(tuple((view, order) for view in views), tuple(joined), order, build)

    def _softmax(self, call: Any, view: View, unit: np.float32) -> _Core | None:
        shape = view.held.shape
        if int(call.attrs.axis) % len(shape) != len(shape) - 1:
            return None
        order = tuple(range(len(shape)))

        def build(sources: list[Source], result: Result) -> Kernel:
            return int8_elements.softmax(sources[0], shape[-1], view.scale, result, float(unit))

        return _Core(((view, order),), shape, order, build)

    def _mean(self, call: Any, view: View, unit: np.float32) -> _Core | None:
        """Match a mean over all axes between the first and the channels, wherever these are."""
        shape, rank = view.held.shape, len(view.held.shape)
        axes = sorted(int(axis) % rank for axis in (call.attrs.axis or range(rank)))
        rest = [axis for axis in range(1, rank) if axis not in axes]
        if not axes or 0 in axes or len(rest) != 1:
            return None
        window = Window(shape[0], 1, math.prod(shape[axis] for axis in axes), shape[rest[0]], shape[rest[0]])
        order = (0, *axes, *rest)
        if call.attrs.keepdims:
            dims = (shape[0], *(1 for _ in axes), shape[rest[0]])
            return self._pool(replace(window, kernel=(1, window.width)), view, order, dims, order, unit)
        return self._pool(
            replace(window, kernel=(1, window.width)), view, order, (shape[0], shape[rest[0]]), (0, 1), unit
        )

    def _average_pool(self, variable: Any, call: Any, view: View, unit: np.float32) -> _Core | None:
        shape = shape_of(variable)
        if call.attrs.layout != "NCHW" or shape is None or any(int(one) for one in call.attrs.padding):
            return None
        window = replace(_window(call, view.held.shape, shape[1], "pool_size"), groups=1)
        dims = (shape[0], shape[2], shape[3], shape[1])
        if (window.rows, window.columns) != dims[1:3]:  # a window that is cut off
            return None
        return self._pool(window, view, (0, 2, 3, 1), dims, (0, 2, 3, 1), unit)

    def _pool(
        self,
        window: Window,
        view: View,
        read: tuple[int, ...],
        dims: tuple[int, ...],
        order: tuple[int, ...],
        unit: np.float32,
    ) -> _Core:
        scale = float(np.float32(view.scale) / unit)

        def build(sources: list[Source], result: Result) -> Kernel:
            return int8_channels.average_pool(window, sources[0], scale, result, self._target)

        return _Core(((view, read),), dims, order, build)

    def _max_pool(self, variable: Any, call: Any, view: View, root: Any) -> None:
        shape, dtype = shape_of(variable), view.held.dtype
        if call.attrs.layout != "NCHW" or shape is None:
            return
        window = _window(call, view.held.shape, shape[1], "pool_size")
        order, dims = (0, 2, 3, 1), (shape[0], shape[2], shape[3], shape[1])
        if (window.rows, window.columns) != dims[1:3]:
            return

        def build(sources: list[Source], result: Result) -> Kernel:
            return int8_channels.max_pool(window, sources[0], result, self._target)

        held = Held(root, dims, order, dtype)
        self.matches[root] = Match(((view, order),), held, (view.zero, *_RANGE[dtype]), build)
        if root is variable:
            self.held[variable] = held
        else:
            self.views[variable] = replace(view, held=held)

    def _table(self, variable: Any, unit: np.float32, zero: int, dtype: str) -> _Core | None:
        """Match any function of one number: it has 256 values."""

        def numbers(one: Any) -> NDArray[Any] | None:
            view = self.views.get(one)
            if view is None:
                return None
            signed = np.arange(256).astype(np.uint8).view(view.held.dtype).astype(np.int64)
            return (signed - view.zero) * np.float64(np.float32(view.scale))

        found = self._evaluate.table(variable, numbers)
        if found is None:
            return None
        view = self.views[found[0]]
        low, high = _RANGE[dtype]
        table = np.clip(np.rint(np.float32(found[1]) / unit) + zero, low, high).astype(np.int64)

        def build(sources: list[Source], result: Result) -> Kernel:
            # The table is by byte as the model has it: both ways in and out may be shifted.
            moved = np.roll(table, 128) if shift(view.held.dtype, sources[0].tensor.dtype) else table
            return int8_elements.lookup(sources[0].tensor, moved + shift(dtype, result.tensor.dtype), result.tensor)

        return _Core(((view, view.held.order),), view.held.dims, view.held.order, build)


def _plain_convolution(call: Any, rank: int) -> bool:
    layouts = {3: ("NCW", "OIW"), 4: ("NCHW", "OIHW")}.get(rank)
    attrs = call.attrs
    return (attrs.data_layout, attrs.kernel_layout) == layouts and attrs.out_layout in ("", attrs.data_layout)


def _window(call: Any, shape: tuple[int, ...], outputs: int, kernel: str = "") -> Window:
    """The geometry of a convolution or a pool of [batch, channels, height?, width]."""
    attrs = call.attrs

    def pair(values: Any, fill: int = 1) -> tuple[int, int]:
        found = [int(one) for one in values]
        return (fill, found[0]) if len(shape) == 3 else (found[0], found[-1])

    padding = [int(one) for one in attrs.padding]
    if len(shape) == 3:
        padding = [0, padding[0], 0, padding[-1]]
    elif len(padding) < 4:
        padding = [padding[0], padding[-1]] * 2
    sizes = getattr(attrs, kernel) if kernel else shape_of(call.args[1])[2:]  # type: ignore[index]
    return Window(
        batch=shape[0],
        height=shape[2] if len(shape) == 4 else 1,
        width=shape[-1],
        channels=shape[1],
        outputs=outputs,
        kernel=pair(sizes),
        strides=pair(attrs.strides),
        padding=(padding[0], padding[1], padding[2], padding[3]),
        dilation=pair(attrs.dilation),
        groups=1 if kernel else int(attrs.groups),
    )
