"""A TFLite flatbuffer -> plain values, every one of them checked.

A flatbuffer is offsets into itself, so damaged bytes point anywhere. Whatever follows them is in this file alone, and
nothing leaves it that has not the size and the type that it claims.
Source: TensorFlow's lite/schema/schema.fbs, version 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected

IDENTIFIER = b"TFL3"
TENSOR_MAX_BYTES = 1 << 31
# TensorType in the schema's order; what is not named here, such as strings, is refused where it is used.
_DTYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
}  # fmt: skip


@dataclass(frozen=True)
class Quantisation:
    """real = (stored - zero point) x scale.

    Attributes:
        scales, zero_points: one each, or one for each index of `axis`.
        axis: None when there is one of each.
    """

    scales: NDArray[np.float32]
    zero_points: NDArray[np.int64]
    axis: int | None


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
        shape: static; what is dynamic stands in the file as 1.
        dtype: NumPy's name, or `type <number>` for one that has none here.
        data: of a constant; a view of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: NDArray[Any] | None
    quantisation: Quantisation | None


@dataclass(frozen=True)
class Operator:
    """An operator. `inputs` are positions of tensors, -1 for one that is left out."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any

    def option(self, name: str, default: Any = 0) -> Any:
        """Return a builtin option by its name in the schema; `default` when the operator carries no options."""
        return getattr(self.options, name)() if self.options is not None else default


@dataclass(frozen=True)
class TfliteModel:
    """The first subgraph, which is the one that is run."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def read_tflite(file: Path) -> TfliteModel:
    """Read a `.tflite` file.

    Raises:
        Rejected: it is not such a file, or not whole.
    """
    data = file.read_bytes()
    if data[4:8] != IDENTIFIER:
        raise Rejected(f"{file} is not a TFLite file: it does not carry the identifier {IDENTIFIER.decode()}.")
    try:
        return _Reader(data).read()
    except Rejected as error:
        raise Rejected(f"{file} cannot be read: {error}") from error
    except Exception as error:  # damaged offsets end in whatever struct, NumPy or the decoder raise
        raise Rejected(f"{file} is not a whole TFLite file: it points outside of itself.") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        import tflite

        self._schema = tflite
        self._most = len(data)  # no list can have more entries than the file has bytes
        self._model = tflite.Model.GetRootAsModel(data, 0)

    def read(self) -> TfliteModel:
        if not self._model.SubgraphsLength():
            raise Rejected("it has no graph.")
        graph = self._model.Subgraphs(0)
        tensors = tuple(self._tensor(graph.Tensors(index)) for index in range(self._count(graph.TensorsLength())))
        kinds = self._kinds()
        operators = tuple(
            self._operator(graph.Operators(index), index, kinds, len(tensors))
            for index in range(self._count(graph.OperatorsLength()))
        )
        inputs = self._positions(graph.InputsAsNumpy(), len(tensors))
        outputs = self._positions(graph.OutputsAsNumpy(), len(tensors))
        if not outputs or min((*inputs, *outputs)) < 0:
            raise Rejected("it has no outputs, or an input or output that is not there.")
        return TfliteModel(tensors, operators, inputs, outputs)

    def _count(self, length: int) -> int:
        if not 0 <= length <= self._most:
            raise Rejected("it claims more entries than the file has room for.")
        return length

    def _kinds(self) -> list[str]:
        names = {value: name for name, value in vars(self._schema.BuiltinOperator).items() if isinstance(value, int)}
        found = []
        for index in range(self._count(self._model.OperatorCodesLength())):
            code = self._model.OperatorCodes(index)
            # Files from before 2020 have the first field alone; later ones a placeholder in it.
            number = max(code.DeprecatedBuiltinCode(), code.BuiltinCode())
            name = names.get(number, f"operator {number}")
            custom = code.CustomCode()
            found.append(custom.decode("utf-8", "replace") if name == "CUSTOM" and custom else name)
        return found

    def _positions(self, values: Any, most: int) -> tuple[int, ...]:
        positions = tuple(int(value) for value in values) if isinstance(values, np.ndarray) else ()
        if any(not -1 <= position < most for position in positions):
            raise Rejected("an operator names a tensor that is not there.")
        return positions

    def _operator(self, raw: Any, index: int, kinds: list[str], tensors: int) -> Operator:
        options = None
        table = raw.BuiltinOptions()
        if table is not None:
            names = {value: name for name, value in vars(self._schema.BuiltinOptions).items() if isinstance(value, int)}
            name = names[raw.BuiltinOptionsType()]
            if name != "NONE":
                options = getattr(self._schema, name)()
                options.Init(table.Bytes, table.Pos)
        inputs = self._positions(raw.InputsAsNumpy(), tensors)
        outputs = self._positions(raw.OutputsAsNumpy(), tensors)
        if not outputs or min(outputs) < 0:
            raise Rejected(f"the operator #{index} makes nothing.")
        return Operator(index, kinds[raw.OpcodeIndex()], inputs, outputs, options)

    def _tensor(self, raw: Any) -> Tensor:
        name = (raw.Name() or b"").decode("utf-8", "replace")
        shape = tuple(int(size) for size in raw.ShapeAsNumpy()) if raw.ShapeLength() else ()
        dtype = _DTYPES.get(raw.Type(), f"type {raw.Type()}")
        if any(size < 0 for size in shape) or math.prod(shape) * 8 > TENSOR_MAX_BYTES:
            raise Rejected(f"the tensor {name!r} has the shape {list(shape)}, which no tensor can have.")
        if raw.Sparsity() is not None:
            raise Rejected(f"the tensor {name!r} is sparse; convert the model without sparsity.")
        quantisation = self._quantisation(raw.Quantization(), name, shape) if "int" in dtype else None
        return Tensor(name, shape, dtype, self._data(raw, name, shape, dtype), quantisation)

    def _data(self, raw: Any, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any] | None:
        if not 0 <= raw.Buffer() < self._model.BuffersLength():
            raise Rejected(f"the tensor {name!r} has a buffer that is not there.")
        buffer = self._model.Buffers(raw.Buffer())
        if buffer.Offset() > 1:
            raise Rejected(f"the tensor {name!r} has its data behind the flatbuffer, which is not read.")
        if not buffer.DataLength() or dtype.startswith("type"):
            return None
        data: NDArray[np.uint8] = buffer.DataAsNumpy()
        kind = np.dtype(dtype).newbyteorder("<")
        if data.nbytes != math.prod(shape) * kind.itemsize:
            raise Rejected(f"the tensor {name!r} of the shape {list(shape)} has {data.nbytes} bytes of {dtype}.")
        return data.view(kind).reshape(shape).astype(dtype, copy=False)

    def _quantisation(self, raw: Any, name: str, shape: tuple[int, ...]) -> Quantisation | None:
        if raw is None or not raw.ScaleLength():
            return None
        scales = raw.ScaleAsNumpy().astype(np.float32)
        zeros = raw.ZeroPointAsNumpy().astype(np.int64) if raw.ZeroPointLength() else np.zeros(1, np.int64)
        axis = raw.QuantizedDimension() if scales.size > 1 else None
        fits = axis is None or (0 <= axis < len(shape) and shape[axis] == scales.size)
        if not fits or zeros.size not in (1, scales.size) or not (np.isfinite(scales) & (scales > 0)).all():
            raise Rejected(f"the tensor {name!r} of the shape {list(shape)} has scales that do not fit it.")
        return Quantisation(scales, np.broadcast_to(zeros, scales.shape), axis)
