"""What the integer kernels have in common: the target's products, the geometry, the way in and the way out.

Activations are [batch, height, width, channels] in 8 bits between kernels. A kernel's end is float, as ONNX defines
QuantizeLinear: round(sum * scale), half to even, plus the zero point, clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from lisiere_compile.kernels import emit
from lisiere_compile.kernels.emit import Tensor
from lisiere_compile.target import Target

# Adding it to a small float32 leaves the rounded number in its low bits: its ulp is 1. The low byte of it is 0.
_ROUNDER = 12582912.0


@dataclass(frozen=True, slots=True)
class Dot:
    """How a target multiplies and sums small integers.

    Attributes:
        group: how many products one lane sums in one instruction.
        data, weight: what the numbers must be.
        lanes: the widths of vectors of sums that it has, widest first.
        intrinsic: LLVM's name for a number of lanes; none where a plain multiplication does.
    """

    group: int
    data: str
    weight: str
    lanes: tuple[int, ...]
    intrinsic: dict[int, str]

    @property
    def stored(self) -> str:
        """The type that activations have between kernels."""
        return self.data if self.group == 4 else "uint8"


def dot_of(target: Target) -> Dot:
    """Return the way of a target.

    Without dot products of bytes, numbers are widened to 16 bits: the 8-bit instruction of AVX2 saturates.
    """
    features = set(target.features)
    if target.arch == "x86_64":
        vnni = {"avx512vnni", "avx512vl"} <= features
        if vnni or "avxvnni" in features:
            lanes = tuple(n for n in (16, 8, 4) if vnni or n < 16)
            return Dot(4, "uint8", "int8", lanes, {n: f"llvm.x86.avx512.vpdpbusd.{n * 32}" for n in lanes})
        names = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}
        most = 16 if "avx512bw" in features else 8 if "avx2" in features else 4
        lanes = tuple(n for n in (16, 8, 4) if n <= most)
        return Dot(2, "int16", "int16", lanes, {n: names[n] for n in lanes})
    if "dotprod" in features and target.arch == "aarch64":
        return Dot(4, "int8", "int8", (4,), {4: "llvm.aarch64.neon.sdot.v4i32.v16i8"})
    return Dot(1, "int16", "int16", (4,), {})


@dataclass(frozen=True, slots=True)
class Window:
    """The geometry of a convolution or a pool over [batch, height, width, channels].

    `padding` is top, left, bottom, right.
    """

    batch: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def rows(self) -> int:
        """Height of the result."""
        return (self.padded[0] - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.strides[0] + 1

    @property
    def columns(self) -> int:
        """Width of the result."""
        return (self.padded[1] - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.strides[1] + 1

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the border."""
        return self.height + self.padding[0] + self.padding[2], self.width + self.padding[1] + self.padding[3]

    @property
    def depthwise(self) -> bool:
        """Whether each channel is on its own."""
        return self.groups == self.channels == self.outputs

    def flat(self) -> Window:
        """Return the same as one row, when every pixel is on its own: then columns never end early."""
        if (self.kernel, self.strides, self.padding) != ((1, 1), (1, 1), (0, 0, 0, 0)):
            return self
        return replace(self, batch=1, height=1, width=self.batch * self.height * self.width)


@dataclass(frozen=True, slots=True)
class Result:
    """How a kernel writes what it has computed: the tensor, the zero point and the range that numbers may have."""

    tensor: Tensor
    zero: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Source:
    """What a kernel reads: the tensor, whose shape need not be that of the window but has its order, and its zero."""

    tensor: Tensor
    zero: int


@dataclass(frozen=True)
class Kernel:
    """A kernel and what goes with it.

    Attributes:
        name: what it does.
        function: PrimFunc of the activations, then the constants, then the result.
        constants: weights and sums as the kernel wants them.
        dtype: of the result.
    """

    name: str
    function: Any
    constants: tuple[NDArray[Any], ...]
    dtype: str


def shift(dtype: str, wanted: str) -> int:
    """Return what is added to a number, and to its zero point, when its type becomes another."""
    return {("int8", "uint8"): 128, ("uint8", "int8"): -128}.get((dtype, wanted), 0)


def requantise(value: Any, result: Result, lanes: int) -> Any:
    """Round float32 lanes that are in units of the result's scale, and clamp and store them as the result's type."""
    from tvm import tirx

    # Clamped first, so that the sum below is exact and nothing wraps.
    value = tirx.min(value, emit.number(result.high - result.zero, "float32", lanes))
    value = tirx.max(value, emit.number(result.low - result.zero, "float32", lanes))
    whole = emit.bits(value + emit.number(_ROUNDER, "float32", lanes), "int32", lanes)
    return emit.cast(whole + emit.number(result.zero, "int32", lanes), result.tensor.dtype, lanes)


def stage(source: Any, window: Window, dtype: str, zero: int, spare: int, target: Target) -> Any:
    """Copy activations into memory with a border of `zero`, as `dtype`, with `spare` numbers behind the last."""
    height, width = window.padded
    size = window.batch * height * width * window.channels
    held = emit.scratch(size + spare, dtype)
    widths = (4 * target.vector, 16, 4, 1) if dtype != "int16" else (2 * target.vector, 8, 4, 1)
    if (height, width) != (window.height, window.width) or spare:
        for place, lanes in emit.spans(size + spare, widths):
            emit.put(held, place, emit.number(zero, dtype, lanes), lanes)
    run, lines = window.width * window.channels, window.height
    if width == window.width:  # the lines of an image follow one another
        run, lines = run * lines, 1
    for image in emit.each(window.batch):
        for row in emit.each(lines):
            begin = (image * window.height + row) * window.width * window.channels
            goal = ((image * height + row + window.padding[0]) * width + window.padding[1]) * window.channels
            for place, lanes in emit.spans(run, widths):
                value = emit.span(source, begin + place, lanes)
                emit.put(held, goal + place, convert(value, source.dtype, dtype, lanes), lanes)
    return held


def convert(value: Any, dtype: str, wanted: str, lanes: int) -> Any:
    """Return numbers as another type; between signed and unsigned bytes they are moved by `shift`."""
    if dtype == wanted:
        return value
    if shift(dtype, wanted):
        return emit.bits(value, wanted, lanes) ^ emit.number(128 if wanted == "uint8" else -128, wanted, lanes)
    return emit.cast(value, wanted, lanes)


def kernel(
    name: str,
    inputs: tuple[Tensor, ...],
    constants: tuple[NDArray[Any], ...],
    output: Tensor,
    body: Callable[..., None],
) -> Kernel:
    """Return a kernel whose body is given the flat inputs, constants and output, in this order."""
    tensors = [Tensor(one.shape, str(one.dtype)) for one in constants]
    return Kernel(f"int8_{name}", emit.written([*inputs, *tensors, output], body), constants, output.dtype)
