"""Lowering: a Relax module -> a `Program`, a straight list of kernel calls.

Source: the passes as measured with TVM 0.27; NHWC is what the schedules want, since channels are then contiguous.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere_compile import quantise
from lisiere_compile.frontends.onnx import OnnxModel, first_line, name_nodes
from lisiere_compile.layout import CHANNELS_LAST, sink_transposes
from lisiere_compile.program import COPY, Call, Program, Value
from lisiere_compile.regular import make_regular
from lisiere_compile.target import Target

# bfloat16 and float8 are not NumPy's, and the parameter format has no code for them.
_DTYPES = {"bool", "float16", "float32", "float64"} | {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}


def legalise(module: Any, model: OnnxModel, target: Target) -> Any:
    """Run the passes that leave only `call_tir` in the body of `main`.

    Raises:
        Rejected: a pass fails on this model, usually because a shape is known only at run time.
    """
    import tvm
    from tvm import relax

    passes = relax.transform
    sequence = tvm.transform.Sequential(
        [
            passes.DecomposeOpsForInference(),
            tvm.transform.module_pass(lambda module, _context: quantise.rewrite(module, target), opt_level=0),
            passes.FoldConstant(),
            tvm.transform.module_pass(lambda module, _context: make_regular(module, target.vector), opt_level=0),
            passes.ConvertLayout(CHANNELS_LAST),
            passes.FoldConstant(),
            tvm.transform.module_pass(lambda module, _context: sink_transposes(module), opt_level=0),
            passes.FoldConstant(),
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
            passes.DeadCodeElimination(),
        ]
    )
    reason: Exception | None = None
    try:
        with tvm.target.Target(target.tvm()):
            lowered = sequence(module)
        if not _dynamic(lowered):
            return lowered
    except Exception as error:  # noqa: BLE001 - TVM raises what its passes raise, in many classes
        reason = error
    if dynamic := _dynamic(module):
        named = name_operators(dynamic, model)
        raise Rejected(f"The model has shapes that are known only at run time, from {named}.") from reason
    raise Rejected(
        f"The model cannot be lowered: {first_line(reason) if reason else 'a shape is not known.'}"
    ) from reason


def _dynamic(module: Any) -> list[str]:
    """Return the Relax operators in `main` whose result has a shape that is known only at run time."""
    import tvm

    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            kind = binding.var.ty
            shape = getattr(kind, "shape", None)
            fixed = shape is not None and all(isinstance(dim, tvm.tirx.IntImm | int) for dim in shape)
            if hasattr(kind, "dtype") and not fixed:
                found.append(str(getattr(getattr(binding.value, "op", None), "name", "")).removeprefix("relax."))
    return found


def name_operators(names: list[str], model: OnnxModel) -> str:
    """Name Relax operators in the words of the ONNX file, where its operators can be told from TVM's."""
    named = []
    for name in dict.fromkeys(filter(None, names)):
        plain = name.partition(" ")[0].rpartition(".")[2].replace("_", "").lower()
        nodes = [node for node in model.proto.graph.node if node.op_type.lower() == plain]
        named.append(name_nodes(nodes) if nodes else name)
    return "; ".join(named) or "an operator that TVM does not name"


def to_program(module: Any, model: OnnxModel) -> Program:
    """Read the body of `main` as a Program.

    Raises:
        Rejected: an operator has no kernel, or a shape is known only at run time.
    """
    return _Reader(module, model).read()


class _Reader:
    """Walks the bindings of `main` once."""

    def __init__(self, module: Any, model: OnnxModel) -> None:
        import tvm
        from tvm import relax

        self._tvm, self._relax = tvm, relax
        self._module, self._model = module, model
        # `main` first names what TVM's variables stand for: a Value, a tuple of them, a number.
        self._bound: dict[Any, Any] = {}
        self._constants: dict[Value, NDArray[Any]] = {}
        self._calls: list[Call] = []
        self._functions: dict[str, Any] = {}
        self._unsupported: list[str] = []
        self._next = 0

    def read(self) -> Program:
        main = self._module["main"]
        inputs = tuple(self._value(parameter.ty) for parameter in main.params)
        for parameter, value in zip(main.params, inputs, strict=True):
            self._bound[parameter] = value
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bound[binding.var] = self._expression(getattr(binding, "value", None), binding.var)
        if self._unsupported:
            raise Rejected(
                f"The model uses operators that have no kernel: {name_operators(self._unsupported, self._model)}."
            )
        result = self._expression(main.body.body, None)
        outputs = self._own_outputs(self._flat(result), inputs)
        return Program(inputs, outputs, tuple(self._calls), self._constants, self._functions)

    def _value(self, kind: Any) -> Value:
        """A new value of a tensor type, whose shape must be static."""
        shape = getattr(kind, "shape", None)
        if shape is None or not all(isinstance(dim, self._tvm.tirx.IntImm | int) for dim in shape):
            raise Rejected(f"A tensor has the shape {shape or 'unknown'}, which is known only at run time.")
        dtype = str(kind.dtype)
        if dtype not in _DTYPES:
            raise Rejected(f"A tensor is {dtype}, which an artifact cannot hold.")
        self._next += 1
        return Value(self._next, tuple(int(dim) for dim in shape), dtype)

    def _values(self, kind: Any) -> Any:
        """The value or the tuple of values of a type."""
        if hasattr(kind, "fields"):
            return tuple(self._values(field) for field in kind.fields)
        return self._value(kind)

    def _expression(self, node: Any, variable: Any) -> Any:
        ir, relax = self._tvm.ir, self._relax
        if node in self._bound:
            return self._bound[node]
        if isinstance(node, ir.GenericConst):
            return self._constant(node)
        if isinstance(node, relax.Tuple):
            return tuple(self._expression(field, None) for field in node.fields)
        if isinstance(node, relax.TupleGetItem):
            whole = self._expression(node.tuple_value, None)
            return whole[node.index] if isinstance(whole, tuple) else None
        if isinstance(node, self._tvm.tirx.IntImm | self._tvm.tirx.FloatImm):
            return node.value
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.call_tir":
            return self._call(node, variable)
        name = getattr(getattr(node, "op", None), "name", type(node).__name__)
        self._unsupported.append(str(name).removeprefix("relax."))
        return None

    def _constant(self, node: Any) -> Value:
        value = self._value(node.ty)
        self._constants[value] = np.ascontiguousarray(node.value.numpy()).reshape(value.shape)
        self._bound[node] = value
        return value

    def _call(self, node: Any, variable: Any) -> Any:
        name = str(node.args[0].name_hint)
        function = self._functions[name] = self._module[node.args[0]]
        if packed := self._packed_calls(function):
            # It calls into TVM's own runtime, which no device has.
            self._unsupported.append(f"{name} through {', '.join(sorted(packed))}")
            return None
        arguments = [self._expression(argument, None) for argument in node.args[1].fields]
        result = self._values(variable.ty)
        if None not in arguments:  # else something before it had no kernel, and is named
            self._calls.append(Call(name, tuple(arguments), self._flat(result)))
        return result

    def _packed_calls(self, function: Any) -> set[str]:
        import tvm_ffi

        found: set[str] = set()

        def visit(node: Any) -> None:
            if "packed" in str(getattr(node.op, "name", "")):
                found.add(str(node.args[0]).strip('"'))

        tvm_ffi.structural_walk(function.body, [(self._tvm.ir.Call, visit)])
        return found

    def _flat(self, result: Any) -> tuple[Value, ...]:
        return result if isinstance(result, tuple) else (result,)

    def _own_outputs(self, results: tuple[Value, ...], inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        """Copy every output that is an input, a constant or an earlier output: hosts want one tensor each."""
        outputs: list[Value] = []
        for value in results:
            own = value
            if value in inputs or value in self._constants or value in outputs:
                self._next += 1
                own = Value(self._next, value.shape, value.dtype)
                self._calls.append(Call(COPY, (value,), (own,)))
            outputs.append(own)
        return tuple(outputs)
