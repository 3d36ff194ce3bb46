"""Integer inference: what stands between DequantizeLinear and QuantizeLinear becomes kernels of 8-bit numbers.

The rewrite runs on the module as the front end gives it, before layouts and legalisation. It walks `main` once and
keeps, for each tensor of 8-bit numbers, how it lies in memory (`Held`), so that transposes and reshapes become words
and not work, and activations have their channels last between kernels. What no pattern of `patterns` takes stays as it
was; only what is left over reads such a tensor in the layout and type that the model gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lisiere_compile.evaluate import Evaluator, operator, shape_of
from lisiere_compile.held import Held, Match, bytes_of
from lisiere_compile.kernels import int8_elements
from lisiere_compile.kernels.emit import Tensor
from lisiere_compile.kernels.int8 import Kernel, Result, Source, dot_of, shift
from lisiere_compile.patterns import Matcher
from lisiere_compile.target import Target


def rewrite(module: Any, target: Target) -> Any:
    """Return the module with integer kernels where its QuantizeLinear and DequantizeLinear allow."""
    from tvm import relax

    bindings = [binding for block in module["main"].body.blocks for binding in block.bindings]
    if not all(isinstance(binding, relax.VarBinding) for binding in bindings):
        return module
    values = {binding.var: binding.value for binding in bindings}
    if not any(operator(value)[0] == "relax.quantize" for value in values.values()):
        return module
    matcher = Matcher(values, Evaluator(values), target)
    for parameter in module["main"].params:
        matcher.look(parameter, None)
    for variable, value in values.items():
        matcher.look(variable, value)
    return _Writer(module, values, matcher, target).write()


class _Writer:
    """Writes the new `main`: the kernels and what is left over, both only where something needs them."""

    def __init__(self, module: Any, values: dict[Any, Any], matcher: Matcher, target: Target) -> None:
        from tvm import ir, relax

        self._relax, self._var = relax, ir.Var
        self._main, self._values, self._target = module["main"], values, target
        self._held, self._matches = matcher.held, matcher.matches
        self._stored = dot_of(target).stored
        self._needed: set[Any] = set()
        self._exposed: set[Any] = set()
        self._new: dict[Any, Any] = {parameter: parameter for parameter in self._main.params}
        self._arranged: dict[Any, Any] = {}
        self._others = {name: one for name, one in module.functions_items() if name.name_hint != "main"}

    def write(self) -> Any:
        import tvm

        relax, main = self._relax, self._main
        self._need(main.body.body)
        self._builder = relax.BlockBuilder(tvm.IRModule(self._others))
        with self._builder.function("main", list(main.params), attrs=dict(main.attrs)):
            with self._builder.dataflow():
                for variable, value in self._values.items():
                    for root in (bytes_of(variable), variable):
                        if root in self._needed and root in self._matches:
                            self._new[root] = self._kernel(root, self._matches[root])
                        elif root in self._needed:
                            self._new[root] = self._builder.emit(self._substitute(value))
                output = self._builder.emit_output(self._substitute(main.body.body))
            self._builder.emit_func_output(output)
        return relax.transform.DeadCodeElimination()(self._builder.get())

    def _need(self, expression: Any) -> None:
        """Note all that an expression outside the patterns needs, and what it sees of tensors of 8-bit numbers."""
        waiting = list(self._variables(expression))
        while waiting:
            variable = waiting.pop()
            root = self._held[variable].root if variable in self._held else variable
            if root is not variable or variable in self._held:
                self._exposed.add(root)
            roots = [root]
            while roots:
                root = roots.pop()
                if root in self._needed:
                    continue
                self._needed.add(root)
                if root in self._matches:
                    roots += [view.held.root for view, _ in self._matches[root].inputs]
                elif root in self._values:
                    waiting += self._variables(self._values[root])

    def _variables(self, expression: Any) -> Iterator[Any]:
        relax = self._relax
        if isinstance(expression, relax.Call):
            for argument in expression.args:
                yield from self._variables(argument)
        elif isinstance(expression, relax.Tuple):
            for field in expression.fields:
                yield from self._variables(field)
        elif isinstance(expression, relax.TupleGetItem):
            yield from self._variables(expression.tuple_value)
        elif isinstance(expression, self._var) and not isinstance(expression, relax.GlobalVar):
            yield expression

    def _substitute(self, expression: Any) -> Any:
        """Return an expression of the old function over the new variables."""
        relax = self._relax
        if isinstance(expression, relax.Call):
            arguments = [self._substitute(argument) for argument in expression.args]
            return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([self._substitute(field) for field in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            return relax.TupleGetItem(self._substitute(expression.tuple_value), expression.index)
        if expression in self._held:
            return self._plain(self._held[expression])
        return self._new.get(expression, expression) if isinstance(expression, self._var) else expression

    def _plain(self, held: Held) -> Any:
        """Return a tensor in the layout, shape and type of the model."""
        order = tuple(range(len(held.dims)))
        expression, tensor = self._arrange(held, order)
        if tensor.dtype != held.dtype:
            expression = self._call(int8_elements.retype(tensor, held.dtype, self._target), [expression], tensor.shape)
        if tensor.shape != held.shape:
            expression = self._builder.emit(self._relax.op.reshape(expression, held.shape))
        return expression

    def _arrange(self, held: Held, order: tuple[int, ...]) -> tuple[Any, Tensor]:
        """Return a tensor as it is stored, or transposed so that its axes lie in an order."""
        expression = self._new[held.root]
        if not held.lies(order):
            key = (held.root, held.dims, tuple(held.order.index(axis) for axis in order))
            if key not in self._arranged:
                if shape_of(expression) != held.dims:
                    expression = self._builder.emit(self._relax.op.reshape(expression, held.dims))
                self._arranged[key] = self._builder.emit(self._relax.op.permute_dims(expression, list(key[2])))
            expression = self._arranged[key]
        return expression, Tensor(shape_of(expression) or (), str(expression.ty.dtype))

    def _kernel(self, root: Any, match: Match) -> Any:
        sources, expressions = [], []
        for view, order in match.inputs:
            expression, tensor = self._arrange(view.held, order)
            sources.append(Source(tensor, view.zero + shift(view.held.dtype, tensor.dtype)))
            expressions.append(expression)
        # What only kernels read is of the type that they like best.
        dtype = match.held.dtype if root in self._exposed else self._stored
        moved = [number + shift(match.held.dtype, dtype) for number in match.result]
        result = Result(Tensor(match.held.dims, dtype), *moved)
        return self._call(match.build(sources, result), expressions, match.held.dims)

    def _call(self, kernel: Kernel, expressions: list[Any], shape: tuple[int, ...]) -> Any:
        relax = self._relax
        name = self._builder.add_func(kernel.function, kernel.name)
        arguments = expressions + [relax.const(constant) for constant in kernel.constants]
        dtype = kernel.dtype
        return self._builder.emit(relax.call_tir(name, arguments, relax.TensorType(shape, dtype)))
