"""Batch normalisation with fixed statistics, folded into the convolution before it: it then costs nothing."""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_batch_norm(proto: Any) -> Any:
    """Return the ONNX model without the batch normalisations that follow a convolution which nothing else reads.

    The model that is given is left as it is.
    """
    import onnx
    from onnx import numpy_helper

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    readers: dict[str, int] = {}
    for name in (*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)):
        readers[name] = readers.get(name, 0) + 1
    folded: dict[str, Any] = {}  # name of a normalisation's output -> the convolution that gives it
    dropped: set[str] = set()
    made = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" and len(node.output) == 1 else None
        if conv is None or conv.op_type != "Conv" or readers[conv.output[0]] != 1:
            continue
        needed = [*conv.input[1:], *node.input[1:]]
        if not all(name in weights for name in needed if name):
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(weights[name]) for name in node.input[1:])
        epsilon = next((one.f for one in node.attribute if one.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + np.float32(epsilon))
        kernel = numpy_helper.to_array(weights[conv.input[1]])
        bias = numpy_helper.to_array(weights[conv.input[2]]) if len(conv.input) > 2 and conv.input[2] else 0 * mean
        names = [f"{node.output[0]}__kernel", f"{node.output[0]}__bias"]
        made.append(numpy_helper.from_array(kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)), names[0]))
        made.append(numpy_helper.from_array((bias - mean) * factor + shift, names[1]))
        new = onnx.NodeProto()
        new.CopyFrom(conv)
        del new.input[1:], new.output[:]
        new.input.extend(names)
        new.output.append(node.output[0])
        folded[node.output[0]] = new
        dropped.add(conv.output[0])
    if not folded:
        return proto
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    kept = [node for node in graph.node if not (node.output and node.output[0] in dropped)]
    result.graph.node.extend(folded.get(node.output[0], node) if node.output else node for node in kept)
    result.graph.initializer.extend(made)
    return result
