"""The models of `make bench` that are made here: real architectures, random weights, as torch would export them.

Weights are drawn so that activations neither vanish nor explode (variance 2 / fan-in, as after a ReLU), and a
batch normalisation follows each convolution with statistics of its own, so that folding it is part of the work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 1000


@dataclass
class Builder:
    """A graph in the making; each method adds nodes and returns the name of what they give."""

    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)

    def node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Add one node with one output."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def weight(self, array: NDArray[Any]) -> str:
        """Add one weight."""
        name = f"w_{len(self.weights)}"
        self.weights[name] = array if array.dtype == np.int64 else array.astype(np.float32)
        return name

    def normal(self, *shape: int, fan: int, gain: float = 2.0) -> str:
        """Add a weight with the variance `gain / fan`."""
        return self.weight(self.random.standard_normal(shape, np.float32) * (gain / fan) ** 0.5)

    def conv(
        self, x: str, channels: tuple[int, int], size: tuple[int, ...], *, stride: int = 1, groups: int = 1,
        dilation: int = 1, gain: float = 2.0, norm: bool = True, pads: list[int] | None = None,
    ) -> str:  # fmt: skip
        """A convolution that keeps the size but for the stride, and its batch normalisation or bias."""
        given, made = channels
        fan = given // groups * int(np.prod(size))
        if pads is None:
            pads = [(one - 1) * dilation // 2 for one in size] * 2
        rank = len(size)
        inputs = [x, self.normal(made, given // groups, *size, fan=fan, gain=gain)]
        if not norm:
            inputs.append(self.weight(self.random.normal(0, 0.1, made)))
        y = self.node(
            "Conv", inputs, kernel_shape=list(size), strides=[stride] * rank, pads=pads, group=groups,
            dilations=[dilation] * rank,
        )  # fmt: skip
        return self.batch_norm(y, made) if norm else y

    def batch_norm(self, x: str, channels: int) -> str:
        """A batch normalisation as training leaves it: near to one, and to nought."""
        draw = self.random
        parts = (
            draw.uniform(0.8, 1.2, channels),
            draw.normal(0, 0.1, channels),
            draw.normal(0, 0.1, channels),
            draw.uniform(0.8, 1.2, channels),
        )
        return self.node("BatchNormalization", [x, *map(self.weight, parts)], epsilon=1e-5)

    def relu6(self, x: str) -> str:
        """Clip to 0 … 6, as torch exports it."""
        return self.node("Clip", [x, self.weight(np.asarray(0.0)), self.weight(np.asarray(6.0))])

    def dense(self, x: str, given: int, made: int, gain: float = 1.0) -> str:
        """A dense layer as torch exports it: weights [made, given], transposed by the operator."""
        w = self.normal(made, given, fan=given, gain=gain)
        return self.node("Gemm", [x, w, self.weight(self.random.normal(0, 0.1, made))], transB=1)

    def save(self, to: Path, given: tuple[int, ...], made: tuple[int, ...], last: str) -> Path:
        """Write the model with the input `input` and the output `output`."""
        self.nodes.append(helper.make_node("Identity", [last], ["output"], name="n_output"))
        graph = helper.make_graph(
            self.nodes,
            to.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, made)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(to))
        return to


def mobilenet_v2(to: Path, size: int = 224) -> Path:
    """MobileNetV2 of width 1. Source: Sandler et al. 2018, table 2; strides and widths as in torchvision."""
    b = Builder()
    x = b.relu6(b.conv("input", (3, 32), (3, 3), stride=2))
    width = 32
    for expand, made, repeats, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for number in range(repeats):
            stride = first if number == 0 else 1
            hidden = width * expand
            y = x
            if expand != 1:
                y = b.relu6(b.conv(y, (width, hidden), (1, 1)))
            y = b.relu6(b.conv(y, (hidden, hidden), (3, 3), stride=stride, groups=hidden))
            y = b.conv(y, (hidden, made), (1, 1), gain=1.0)
            x = b.node("Add", [x, y]) if stride == 1 and width == made else y
            width = made
    x = b.relu6(b.conv(x, (width, 1280), (1, 1)))
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x])])
    return b.save(to, (1, 3, size, size), (1, CLASSES), b.dense(x, 1280, CLASSES))


def resnet18(to: Path, size: int = 224) -> Path:
    """ResNet-18. Source: He et al. 2015, table 1; option B at the shortcuts, as in torchvision."""
    b = Builder()
    x = b.node("Relu", [b.conv("input", (3, 64), (7, 7), stride=2)])
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for made, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for number in range(2):
            stride = first if number == 0 else 1
            y = b.node("Relu", [b.conv(x, (width, made), (3, 3), stride=stride)])
            y = b.conv(y, (made, made), (3, 3), gain=0.5)
            if stride != 1 or width != made:
                x = b.conv(x, (width, made), (1, 1), stride=stride, gain=0.5)
            x = b.node("Relu", [b.node("Add", [y, x])])
            width = made
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x])])
    return b.save(to, (1, 3, size, size), (1, CLASSES), b.dense(x, 512, CLASSES))


def tcn(to: Path, channels: int = 4, length: int = 192, hidden: int = 32, horizon: int = 24) -> Path:
    """A forecaster of dilated causal 1-D convolutions with residuals and a dense head.

    Source: Bai, Kolter and Koltun 2018, a block: twice (convolution of 3, ReLU), and a residual; dilations 1 … 32.
    """
    b = Builder()
    x, width = "input", channels
    for dilation in (1, 2, 4, 8, 16, 32):
        left = [2 * dilation, 0]
        y = b.node("Relu", [b.conv(x, (width, hidden), (3,), dilation=dilation, norm=False, pads=left)])
        y = b.node("Relu", [b.conv(y, (hidden, hidden), (3,), dilation=dilation, norm=False, pads=left, gain=0.5)])
        if width != hidden:
            x = b.conv(x, (width, hidden), (1,), norm=False, gain=1.0)
        x, width = b.node("Relu", [b.node("Add", [x, y])]), hidden
    last = b.node(
        "Slice", [x, *(b.weight(np.asarray([value], np.int64)) for value in (length - 8, length, 2))]
    )  # the last 8 steps know the whole window
    x = b.node("Flatten", [last])
    x = b.node("Relu", [b.dense(x, hidden * 8, 64, gain=2.0)])
    return b.save(to, (1, channels, length), (1, horizon), b.dense(x, 64, horizon))


def lstm(to: Path, channels: int = 4, steps: int = 96, hidden: int = 64, horizon: int = 24) -> Path:
    """One LSTM layer over a window and a dense head on its last state, as torch exports `batch_first` ones."""
    b = Builder()
    bound = hidden**-0.5  # torch's own initialisation
    draw = b.random.uniform
    x = b.node("Transpose", ["input"], perm=[1, 0, 2])
    parts = [
        b.weight(draw(-bound, bound, (1, 4 * hidden, channels))),
        b.weight(draw(-bound, bound, (1, 4 * hidden, hidden))),
        b.weight(draw(-bound, bound, (1, 8 * hidden))),
    ]
    state = b.weight(np.zeros((1, 1, hidden)))
    cell = b.weight(np.zeros((1, 1, hidden)))
    b.nodes.append(
        helper.make_node("LSTM", [x, *parts, "", state, cell], ["", "lstm_h", ""], name="n_lstm", hidden_size=hidden)
    )
    flat = b.node("Reshape", ["lstm_h", b.weight(np.asarray([1, hidden], np.int64))])
    return b.save(to, (1, steps, channels), (1, horizon), b.dense(flat, hidden, horizon))


def overhead(to: Path) -> Path:
    """One ReLU of one number: what a call costs when there is nothing to compute."""
    b = Builder()
    return b.save(to, (1, 1), (1, 1), b.node("Relu", ["input"]))
