"""Tensors of 8-bit numbers: how they lie in memory, what they stand for, and the kernels to be that give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lisiere_compile.kernels.int8 import Kernel, Result, Source

BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class Held:
    """A tensor of 8-bit numbers and how it lies in memory.

    Attributes:
        root: the variable, or any object, that stands for the memory.
        dims: its extents, outermost first.
        order: for each of these the axis of the tensor, as the model sees it.
        dtype: as the model has it; kernels may keep it as the other one.
    """

    root: Any
    dims: tuple[int, ...]
    order: tuple[int, ...]
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the model sees."""
        found = dict(zip(self.order, self.dims, strict=True))
        return tuple(found[axis] for axis in range(len(found)))

    def lies(self, order: tuple[int, ...]) -> bool:
        """Whether memory has the axes in an order; an axis of one element is nowhere."""
        shape = self.shape
        return [axis for axis in self.order if shape[axis] != 1] == [axis for axis in order if shape[axis] != 1]

    def permuted(self, axes: tuple[int, ...]) -> Held:
        """Return the transpose, which is the same memory."""
        return Held(self.root, self.dims, tuple(axes.index(axis) for axis in self.order), self.dtype)

    def reshaped(self, shape: tuple[int, ...]) -> Held | None:
        """Return the tensor in another shape, if it is the same memory."""
        if self.lies(tuple(range(len(self.dims)))):
            return Held(self.root, shape, tuple(range(len(shape))), self.dtype)
        old = [axis for axis, size in enumerate(self.shape) if size != 1]
        new = [axis for axis, size in enumerate(shape) if size != 1]
        if [self.shape[axis] for axis in old] != [shape[axis] for axis in new]:
            return None
        places = dict(zip(old, new, strict=True))
        order = [places[axis] for axis in self.order if axis in places]
        order += [axis for axis, size in enumerate(shape) if size == 1]
        return Held(self.root, tuple(shape[axis] for axis in order), tuple(order), self.dtype)


@dataclass(frozen=True)
class View:
    """A float tensor that 8-bit numbers stand for: (number - zero) * scale."""

    held: Held
    scale: float
    zero: int


@dataclass(frozen=True)
class Match:
    """A kernel to be.

    Attributes:
        inputs: what it reads, and in which order of axes.
        held: what it gives.
        result: zero point and range, in the model's type.
        build: writes it, given how the inputs and the result came to be stored.
    """

    inputs: tuple[tuple[View, tuple[int, ...]], ...]
    held: Held
    result: tuple[int, int, int]
    build: Callable[[list[Source], Result], Kernel]


def bytes_of(variable: Any) -> Any:
    """Return the root of the 8-bit numbers that a float variable is computed in."""
    return ("bytes", variable)


def derived(held: Held, name: str, call: Any, shape: tuple[int, ...]) -> Held | None:
    """Return what a change of shape, a Relax operator, makes of a tensor, if it needs no work."""
    if name == "relax.permute_dims":
        axes = call.attrs.axes
        rank = len(held.dims)
        return held.permuted(tuple(int(one) % rank for one in axes) if axes else tuple(reversed(range(rank))))
    return held.reshaped(shape)
