"""LSTM and GRU of ONNX: one matrix product over all steps, then a kernel that goes through the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere_compile.kernels.recurrent import GATES, Recurrence

_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"]}
_DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def recurrent_converters() -> dict[str, Any]:
    """Return the converters of LSTM and GRU."""
    from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

    class Lstm(OnnxOpConverter):  # type: ignore[misc]
        """LSTM without peepholes."""

        @classmethod
        def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, _params: Any) -> Any:
            return _convert("LSTM", bb, inputs, attr)

    class Gru(OnnxOpConverter):  # type: ignore[misc]
        """GRU whose reset gate acts after the matrix product."""

        @classmethod
        def _impl_v7(cls, bb: Any, inputs: Any, attr: Any, _params: Any) -> Any:
            return _convert("GRU", bb, inputs, attr)

    return {"LSTM": Lstm, "GRU": Gru}


def _convert(cell: str, bb: Any, inputs: Any, attr: Any) -> Any:
    """Return (states of all steps, last state[, last cell]) as ONNX shapes them."""
    from tvm import relax

    given = [*inputs, *[None] * (8 - len(inputs))]
    x, weights, recurrent, bias, lengths, first_h, first_c, peepholes = given[:8]
    batch_first = bool(attr.get("layout", 0))
    steps, batch, _ = (int(size) for size in x.ty.shape)
    if batch_first:
        steps, batch = batch, steps
        x = bb.emit(relax.op.permute_dims(x, [1, 0, 2]))
    hidden = int(attr["hidden_size"])
    _check(cell, attr, lengths, peepholes, steps)
    w, r = _constant(cell, "W", weights), _constant(cell, "R", recurrent)
    gates = GATES[cell]
    b = np.zeros((len(w), 2 * gates * hidden), np.float32) if bias is None else _constant(cell, "B", bias)
    per_direction = []
    for index, reverse in enumerate(_direction(cell, attr)):
        states = [_first(bb, one, index, batch, hidden) for one in (first_h, first_c)[: 2 if cell == "LSTM" else 1]]
        given_x = bb.emit(relax.op.flip(x, 0)) if reverse else x
        form = Recurrence(cell, steps, batch, hidden)
        found = _layer(bb, form, given_x, (w[index], r[index], b[index]), states)
        per_direction.append([bb.emit(relax.op.flip(found[0], 0)) if reverse else found[0], *found[1:]])
    outputs = [
        _joined(bb, list(parts), axis) for parts, axis in zip(zip(*per_direction, strict=True), (1, 0, 0), strict=False)
    ]
    if batch_first:
        orders = ([2, 0, 1, 3], [1, 0, 2], [1, 0, 2])
        outputs = [bb.emit(relax.op.permute_dims(one, order)) for one, order in zip(outputs, orders, strict=False)]
    return relax.Tuple(outputs)


def _layer(bb: Any, form: Recurrence, x: Any, weights: tuple[NDArray[Any], ...], states: list[Any]) -> list[Any]:
    """One direction: states of all steps [steps, batch, hidden], last state and cell [batch, hidden]."""
    from tvm import relax

    w, r, b = weights
    wide = GATES[form.cell] * form.hidden
    own, other = b[:wide], b[wide:]
    flat = bb.emit(relax.op.reshape(x, [form.steps * form.batch, w.shape[1]]))
    product = bb.emit(relax.op.matmul(flat, relax.const(np.ascontiguousarray(w.T))))
    # What the reset gate of a GRU multiplies includes the recurrent bias.
    added = own + other if form.cell == "LSTM" else own
    product = bb.emit(relax.op.add(product, relax.const(added)))
    product = bb.emit(relax.op.reshape(product, [form.steps, form.batch, wide]))
    arguments = [product, relax.const(np.ascontiguousarray(r[:, :, None]))]
    arguments += [] if form.cell == "LSTM" else [relax.const(np.ascontiguousarray(other))]
    kernel = bb.add_func(form.function(), form.cell.lower())
    shapes = [(form.steps, form.batch, form.hidden), *[(form.batch, form.hidden)] * len(states)]
    types = [relax.TensorType(list(shape), "float32") for shape in shapes]
    found = bb.emit(relax.call_tir(kernel, relax.Tuple([*arguments, *states]), types))
    return [bb.emit(relax.TupleGetItem(found, index)) for index in range(len(types))]


def _joined(bb: Any, parts: list[Any], axis: int) -> Any:
    """Give each direction an axis of its own and put them side by side."""
    from tvm import relax

    wide = [bb.emit(relax.op.expand_dims(part, axis)) for part in parts]
    return wide[0] if len(wide) == 1 else bb.emit(relax.op.concat(wide, axis))


def _first(bb: Any, value: Any, index: int, batch: int, hidden: int) -> Any:
    """The state before the first step, in one direction: zeros when there is none."""
    from tvm import ir, relax

    if value is None:
        return relax.const(np.zeros((batch, hidden), np.float32))
    if isinstance(value, ir.GenericConst):
        return relax.const(np.ascontiguousarray(value.value.numpy()[index]))
    one = bb.emit(relax.op.strided_slice(value, [0], [index], [index + 1]))
    return bb.emit(relax.op.reshape(one, [batch, hidden]))


def _constant(cell: str, name: str, value: Any) -> NDArray[Any]:
    from tvm import ir

    if not isinstance(value, ir.GenericConst):
        raise Rejected(f"{cell} can be compiled when its input {name} is a weight; here it is computed by the model.")
    return np.asarray(value.value.numpy())


def _direction(cell: str, attr: Any) -> list[bool]:
    """Which directions there are: whether each goes from the last step to the first."""
    name = _text(attr.get("direction", "forward"))
    if name not in _DIRECTIONS:
        raise Rejected(f"{cell} has the direction {name!r}, which ONNX does not know.")
    return _DIRECTIONS[name]


def _check(cell: str, attr: Any, lengths: Any, peepholes: Any, steps: int) -> None:
    """Refuse, all at once, what the kernels have no form for."""
    from tvm import ir

    refused = []
    directions = len(_direction(cell, attr))
    activations = [_text(one).lower() for one in attr.get("activations", ())]
    if activations and activations != _ACTIVATIONS[cell] * directions:
        refused.append(f"the activations {', '.join(activations)}")
    if attr.get("clip", 0):
        refused.append("`clip`")
    if attr.get("input_forget", 0):
        refused.append("`input_forget`")
    if cell == "GRU" and not attr.get("linear_before_reset", 0):
        refused.append("`linear_before_reset` 0")
    if peepholes is not None and not (isinstance(peepholes, ir.GenericConst) and not peepholes.value.numpy().any()):
        refused.append("peepholes")
    if lengths is not None and not (isinstance(lengths, ir.GenericConst) and (lengths.value.numpy() == steps).all()):
        refused.append("sequences of different length")
    if refused:
        raise Rejected(f"{cell} cannot be compiled with {' and '.join(refused)}.")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
