"""LSTM and GRU: the part of a step that depends on the step before, over all steps in one kernel.

What a step takes from its input alone is one matrix product over all steps, which stands before the kernel and
is a kernel like any other. Here each step multiplies the state with the recurrent weights, panel by panel with the
accumulators in registers, and applies the gates. Source: the operators LSTM and GRU of ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere_compile.target import Target

# In a PrimFunc's attributes: what it is, so that the schedule can make the form that fits the machine.
CELL, STEPS, BATCH, HIDDEN = (f"lisiere.{name}" for name in ("cell", "steps", "batch", "hidden"))
_OPAQUE = 8  # TVM's op pattern of what is fused with nothing
_MOST_VECTORS = 8
GATES = {"LSTM": 4, "GRU": 3}


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A recurrent layer in one direction.

    Attributes:
        cell: LSTM, or GRU whose reset gate acts after the matrix product.
        steps, batch, hidden: sizes.
        lanes: numbers in a vector; they divide `hidden`.
        vectors: vectors of accumulators; `vectors * lanes` divides the gates.
    """

    cell: str
    steps: int
    batch: int
    hidden: int
    lanes: int = 1
    vectors: int = 1

    @property
    def width(self) -> int:
        """Numbers in a panel of recurrent weights."""
        return self.lanes * self.vectors

    @property
    def panels(self) -> int:
        """Panels of recurrent weights."""
        return GATES[self.cell] * self.hidden // self.width

    def function(self) -> Any:
        """Return the kernel.

        Its parameters: input products [steps, batch, gates * hidden]; recurrent weights [panels, hidden, width]; for
        GRU the recurrent bias [gates * hidden]; the first state [batch, hidden]; for LSTM the first cell [batch,
        hidden]; then the outputs: states of all steps [steps, batch, hidden], the last state, for LSTM the last cell.
        """
        made = _lstm(self) if self.cell == "LSTM" else _gru(self)
        return made.with_attrs(
            {CELL: self.cell, STEPS: self.steps, BATCH: self.batch, HIDDEN: self.hidden, "op_pattern": _OPAQUE}
        )

    def pack(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Lay recurrent weights [panels, hidden, width] of any width out for this one."""
        flat = np.moveaxis(weights, 0, 1).reshape(self.hidden, -1)
        return np.moveaxis(flat.reshape(self.hidden, self.panels, self.width), 0, 1)


def fitted(function: Any, target: Target) -> Recurrence | None:
    """Return the recurrence of a kernel in the form that fits a machine; None when it is no recurrence."""
    if not function.attrs or CELL not in function.attrs:
        return None
    sizes = (int(function.attrs[key]) for key in (STEPS, BATCH, HIDDEN))
    plain = Recurrence(str(function.attrs[CELL]), *sizes)
    lanes = target.vector
    while plain.hidden % lanes:
        lanes //= 2
    count = GATES[plain.cell] * plain.hidden // lanes
    vectors = max(one for one in range(1, _MOST_VECTORS + 1) if count % one == 0)
    return Recurrence(plain.cell, plain.steps, plain.batch, plain.hidden, lanes, vectors)


def _lstm(form: Recurrence) -> Any:
    from tvm.script import tirx as T  # noqa: N812 - TVM's own name of its dialect

    steps, batch, hidden, lanes, vectors = form.steps, form.batch, form.hidden, form.lanes, form.vectors
    panels, width, gates = form.panels, form.width, 4 * form.hidden

    @T.prim_func(private=True, s_tir=True)
    def lstm(
        x: T.Buffer((steps, batch, gates), "float32"),
        r: T.Buffer((panels, hidden, width), "float32"),
        h0: T.Buffer((batch, hidden), "float32"),
        c0: T.Buffer((batch, hidden), "float32"),
        y: T.Buffer((steps, batch, hidden), "float32"),
        h: T.Buffer((batch, hidden), "float32"),
        c: T.Buffer((batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        acc = T.alloc_buffer((width,), "float32", scope="local")
        g = T.alloc_buffer((gates,), "float32", scope="local")
        for b in range(batch):
            for j in range(hidden):
                h[b, j] = h0[b, j]
                c[b, j] = c0[b, j]
            for t in range(steps):
                for p in range(panels):
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            acc[v * lanes + lane] = x[t, b, p * width + v * lanes + lane]
                    for k in range(hidden):
                        for v in T.unroll(vectors):
                            for lane in T.vectorized(lanes):
                                acc[v * lanes + lane] = acc[v * lanes + lane] + h[b, k] * r[p, k, v * lanes + lane]
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            g[p * width + v * lanes + lane] = acc[v * lanes + lane]
                # In the order of ONNX: input, output, forget, cell.
                for o in range(hidden // lanes):
                    for lane in T.vectorized(lanes):
                        c[b, o * lanes + lane] = T.sigmoid(g[2 * hidden + o * lanes + lane]) * c[
                            b, o * lanes + lane
                        ] + T.sigmoid(g[o * lanes + lane]) * T.tanh(g[3 * hidden + o * lanes + lane])
                    for lane in T.vectorized(lanes):
                        h[b, o * lanes + lane] = T.sigmoid(g[hidden + o * lanes + lane]) * T.tanh(
                            c[b, o * lanes + lane]
                        )
                    for lane in T.vectorized(lanes):
                        y[t, b, o * lanes + lane] = h[b, o * lanes + lane]

    return lstm


def _gru(form: Recurrence) -> Any:
    from tvm.script import tirx as T  # noqa: N812 - TVM's own name of its dialect

    steps, batch, hidden, lanes, vectors = form.steps, form.batch, form.hidden, form.lanes, form.vectors
    panels, width, gates = form.panels, form.width, 3 * form.hidden

    @T.prim_func(private=True, s_tir=True)
    def gru(
        x: T.Buffer((steps, batch, gates), "float32"),
        r: T.Buffer((panels, hidden, width), "float32"),
        bias: T.Buffer((gates,), "float32"),
        h0: T.Buffer((batch, hidden), "float32"),
        y: T.Buffer((steps, batch, hidden), "float32"),
        h: T.Buffer((batch, hidden), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        acc = T.alloc_buffer((width,), "float32", scope="local")
        g = T.alloc_buffer((gates,), "float32", scope="local")
        for b in range(batch):
            for j in range(hidden):
                h[b, j] = h0[b, j]
            for t in range(steps):
                for p in range(panels):
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            acc[v * lanes + lane] = bias[p * width + v * lanes + lane]
                    for k in range(hidden):
                        for v in T.unroll(vectors):
                            for lane in T.vectorized(lanes):
                                acc[v * lanes + lane] = acc[v * lanes + lane] + h[b, k] * r[p, k, v * lanes + lane]
                    for v in T.unroll(vectors):
                        for lane in T.vectorized(lanes):
                            g[p * width + v * lanes + lane] = acc[v * lanes + lane]
                # In the order of ONNX: update, reset, hidden.
                for o in range(hidden // lanes):
                    for lane in T.vectorized(lanes):
                        g[2 * hidden + o * lanes + lane] = T.tanh(
                            x[t, b, 2 * hidden + o * lanes + lane]
                            + T.sigmoid(x[t, b, hidden + o * lanes + lane] + g[hidden + o * lanes + lane])
                            * g[2 * hidden + o * lanes + lane]
                        )
                    for lane in T.vectorized(lanes):
                        g[o * lanes + lane] = T.sigmoid(x[t, b, o * lanes + lane] + g[o * lanes + lane])
                    for lane in T.vectorized(lanes):
                        h[b, o * lanes + lane] = g[2 * hidden + o * lanes + lane] + g[o * lanes + lane] * (
                            h[b, o * lanes + lane] - g[2 * hidden + o * lanes + lane]
                        )
                    for lane in T.vectorized(lanes):
                        y[t, b, o * lanes + lane] = h[b, o * lanes + lane]

    return gru
