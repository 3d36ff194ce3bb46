"""Layout: channels last for convolutions, and no transposes left between elementwise operators.

TVM's own pass changes the layout of convolutions and of most of what stands between them. What it does not know it
fences in with transposes. Here these sink through elementwise operators until they meet their inverse and vanish.
"""

from __future__ import annotations

from typing import Any

CHANNELS_LAST = {"relax.nn.conv1d": ["NWC", "WIO"], "relax.nn.conv2d": ["NHWC", "HWIO"]}
# Operators whose output at a place depends on their inputs at this place alone, all other arguments being numbers.
_ELEMENTWISE = {
    *("abs", "add", "ceil", "clip", "cos", "divide", "equal", "erf", "exp", "floor", "floor_divide", "greater"),
    *("greater_equal", "less", "less_equal", "log", "logical_and", "logical_not", "logical_or", "maximum", "minimum"),
    *("mod", "multiply", "negative", "not_equal", "power", "round", "rsqrt", "sigmoid", "sign", "sin", "sqrt"),
    *("square", "subtract", "tan", "tanh", "where", "astype"),
    *("nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.silu", "nn.softplus"),
}


def sink_transposes(module: Any) -> Any:
    """Move every transpose below the elementwise operators that read it, and cancel it against its inverse."""
    import tvm
    from tvm import relax

    tensor_like = (relax.Var, tvm.ir.GenericConst)

    @relax.expr_functor.mutator
    class Sink(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            operator = str(getattr(call.op, "name", "")).removeprefix("relax.")
            if operator == "permute_dims":
                return self._merged(call)
            if operator in _ELEMENTWISE:
                return self._sunk(call)
            return call

        def _permutation(self, expression: Any) -> tuple[Any, tuple[int, ...]] | None:
            """What a transposed value is made from, and how; None when it is no transpose."""
            if not isinstance(expression, relax.Var):
                return None
            bound = self.builder_.lookup_binding(expression)
            if getattr(getattr(bound, "op", None), "name", "") != "relax.permute_dims":
                return None
            return bound.args[0], _order(bound)

        def _merged(self, call: Any) -> Any:
            """Two transposes in a row are one, or none."""
            inner = self._permutation(call.args[0])
            if inner is None:
                return call
            source, first = inner
            both = tuple(first[axis] for axis in _order(call))
            return source if both == tuple(range(len(both))) else relax.op.permute_dims(source, list(both))

        def _sunk(self, call: Any) -> Any:
            """An elementwise operator on transposed values, as the transpose of one on the values themselves."""
            found = [self._permutation(argument) for argument in call.args]
            orders = {one[1] for one in found if one is not None}
            if len(orders) != 1:
                return call
            order = orders.pop()
            arguments = []
            for argument, one in zip(call.args, found, strict=True):
                if one is not None:
                    arguments.append(one[0])
                elif not isinstance(argument, tensor_like) or _rank(argument) == 0:
                    arguments.append(argument)
                elif isinstance(argument, tvm.ir.GenericConst) and _rank(argument) == len(order):
                    inverse = [order.index(axis) for axis in range(len(order))]
                    arguments.append(self.builder_.emit(relax.op.permute_dims(argument, inverse)))
                else:
                    return call
            inside = self.builder_.emit(relax.Call(call.op, arguments, call.attrs, call.ty_args))
            return relax.op.permute_dims(inside, list(order))

    mutator = Sink(module)
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            module.update_func(variable, mutator.visit_expr(function))
    return module


def _order(call: Any) -> tuple[int, ...]:
    """The permutation of a transpose, without which it reverses."""
    rank = _rank(call.args[0])
    given = call.attrs.axes
    return tuple(reversed(range(rank))) if given is None else tuple(int(axis) % rank for axis in given)


def _rank(expression: Any) -> int:
    return int(expression.ty.ndim)
