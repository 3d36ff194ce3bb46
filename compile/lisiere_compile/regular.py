"""Convolutions and matrix products of any size, in terms of those whose channels fill vectors.

Channels that no power of two divides are padded with weights of zero, whose results are cut off again. Groups become
convolutions of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 8  # channels that are worth a vector on any machine
_MOST_GROUPS = 64  # more would make more code than it is worth
_CONVOLUTIONS = ("relax.nn.conv1d", "relax.nn.conv2d")


def make_regular(module: Any, vector: int) -> Any:
    """Rewrite convolutions in NCW or NCHW and matrix products, where their weights are constants.

    Args:
        module: before the layout is changed.
        vector: how many float32 numbers a vector register holds.
    """
    import tvm
    from tvm import relax

    @relax.expr_functor.mutator
    class Regular(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            name = getattr(call.op, "name", "")
            if name not in (*_CONVOLUTIONS, "relax.matmul") or not isinstance(call.args[1], tvm.ir.GenericConst):
                return call
            weights = call.args[1].value.numpy()
            if weights.dtype != np.float32:
                return call
            if name == "relax.matmul":
                return self._product(call, weights)
            groups = int(call.attrs.groups)
            if groups > 1:
                return self._grouped(call, weights, groups)
            unchanged = _width(weights.shape[0], vector) == weights.shape[0]
            return call if unchanged else self._filled(call, call.args[0], weights)

        def _product(self, call: Any, weights: NDArray[Any]) -> Any:
            """A matrix product with columns of zeros."""
            made = weights.shape[-1]
            wanted = _width(made, vector)
            if weights.ndim != 2 or wanted == made:
                return call
            wide = np.pad(weights, ((0, 0), (0, wanted - made)))
            product = self.builder_.emit(relax.op.matmul(call.args[0], relax.const(wide)))
            return relax.op.strided_slice(product, [int(product.ty.ndim) - 1], [0], [made])

        def _filled(self, call: Any, x: Any, weights: NDArray[Any]) -> Any:
            """A convolution with channels of zeros where they are needed."""
            made = weights.shape[0]
            wanted = _width(made, vector)
            if wanted == made:
                return self._convolution(call, x, weights)
            wide = np.pad(weights, [(0, wanted - made), *[(0, 0)] * (weights.ndim - 1)])
            return relax.op.strided_slice(self._convolution(call, x, wide), [1], [0], [made])

        def _grouped(self, call: Any, weights: NDArray[Any], groups: int) -> Any:
            """Each group by itself; where a group has one input channel, each of its outputs for all groups."""
            made, given = weights.shape[0], weights.shape[1]
            each = made // groups
            if given == 1 and each == 1:
                return call  # depthwise, which has kernels of its own
            x = call.args[0]
            if given == 1:
                parts = [self._convolution(call, x, weights[place::each], groups) for place in range(each)]
                wide = [self.builder_.emit(relax.op.expand_dims(part, 2)) for part in parts]
                shape = [int(size) for size in call.ty.shape]
                return relax.op.reshape(self.builder_.emit(relax.op.concat(wide, 2)), shape)
            if groups > _MOST_GROUPS:
                return call
            parts = []
            for group in range(groups):
                part = self.builder_.emit(relax.op.strided_slice(x, [1], [group * given], [(group + 1) * given]))
                own = weights[group * each : (group + 1) * each]
                parts.append(self.builder_.emit(self._filled(call, part, own)))
            return relax.op.concat(parts, 1)

        def _convolution(self, call: Any, x: Any, weights: NDArray[Any], groups: int = 1) -> Any:
            """The same convolution of other data by other weights."""
            operator = relax.op.nn.conv1d if call.op.name.endswith("conv1d") else relax.op.nn.conv2d
            attrs = call.attrs
            return self.builder_.emit(
                operator(
                    x,
                    relax.const(np.ascontiguousarray(weights)),
                    [int(one) for one in attrs.strides],
                    [int(one) for one in attrs.padding],
                    [int(one) for one in attrs.dilation],
                    groups,
                    attrs.data_layout,
                    attrs.kernel_layout,
                )
            )

    mutator = Regular(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            module.update_func(variable, mutator.visit_expr(function))
    return module


def _width(channels: int, vector: int) -> int:
    """How many channels fill vectors: as many as there are when a good part of a vector divides them."""
    whole = min(vector, _SMALLEST)
    if channels % whole == 0:
        return channels
    wide = vector if channels > vector else whole
    return -(-channels // wide) * wide
