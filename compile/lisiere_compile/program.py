"""What lowering gives: a straight list of kernel calls over static tensors.

It stands between the compiler's front (Relax) and its back (graph, parameters, shared object), and knows neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

# The kernel that moves bytes: for outputs that are an input, a constant or another output unchanged. It is
# written in C beside the wrappers.
COPY = "copy_bytes"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the program; `key` tells values apart. `dtype` is NumPy's name."""

    key: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel: tensors and baked-in numbers in the kernel's order, then the outputs."""

    kernel: str
    arguments: tuple[Value | int | float, ...]
    outputs: tuple[Value, ...]

    @property
    def tensors(self) -> tuple[Value, ...]:
        """The arguments that are tensors."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Value))

    @property
    def wrapper(self) -> Wrapper:
        """The C function that this call goes through."""
        slots = tuple(None if isinstance(one, Value) else one for one in self.arguments) + (None,) * len(self.outputs)
        dtypes = tuple(value.dtype for value in (*self.tensors, *self.outputs))
        return Wrapper(self.kernel, slots, dtypes)


@dataclass(frozen=True, slots=True)
class Wrapper:
    """How a kernel is called: `slots` in its order, None for a tensor and else the number to pass."""

    kernel: str
    slots: tuple[int | float | None, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A model, lowered.

    Attributes:
        inputs, outputs: in the order of the ONNX graph. No output is an input, a constant, or listed twice.
        constants: key of a Value -> its data; `values` has the Value.
        functions: kernel name -> TVM PrimFunc, unscheduled; `COPY` is not among them.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    calls: tuple[Call, ...]
    constants: dict[Value, NDArray[Any]]
    functions: dict[str, Any]

    def symbols(self) -> dict[Wrapper, str]:
        """Name every wrapper: `lisiere_<kernel>`, numbered where a kernel is called in several ways."""
        names: dict[Wrapper, str] = {}
        taken: set[str] = set()
        for call in self.calls:
            if call.wrapper in names:
                continue
            base = name = f"lisiere_{call.kernel}"
            count = 1
            while name in taken or (count > 1 and name.removeprefix("lisiere_") in self.functions):
                count += 1
                name = f"{base}_v{count}"
            names[call.wrapper] = name
            taken.add(name)
        return names
