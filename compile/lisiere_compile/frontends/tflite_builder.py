"""The ONNX graph that a TFLite graph becomes, while it grows.

TFLite keeps channels last and ONNX wants them first. A tensor may therefore exist in several forms, each a permutation
of its axes; a form is made when an operator asks for it, from one that is there, so that two transposes never meet.
Quantised tensors are stored as integers and dequantised at each use (QDQ): what permutes them stays outside of the
pattern `DequantizeLinear -> operator -> QuantizeLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere_compile.frontends.tflite_reader import Operator, Quantisation, Tensor, TfliteModel

Form = tuple[int, ...]
CHANNELS_FIRST: Form = (0, 3, 1, 2)
OPSET = 17
IR_VERSION = 8
# ActivationFunctionType -> what it clips to.
_BOUNDS: dict[int, tuple[float | None, float | None]] = {1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
_NO_ACTIVATION, _TANH = 0, 4


def own(rank: int) -> Form:
    """The form of a tensor in the file: no axis moved."""
    return tuple(range(rank))


class Builder:
    """Collects nodes and weights; operators ask it for their inputs and give it their outputs."""

    def __init__(self, model: TfliteModel) -> None:
        self._model = model
        self._nodes: list[Any] = []
        self._weights: dict[str, NDArray[Any]] = {}
        self._forms: dict[int, dict[Form, str]] = {}
        self._folded: dict[int, NDArray[Any]] = {}
        self._operator: Operator | None = None
        self._next = 0
        taken: set[str] = set()
        self._names: dict[int, str] = {}
        for index in dict.fromkeys((*model.inputs, *model.outputs)):
            name = model.tensors[index].name or f"tensor_{index}"
            self._names[index] = name if name not in taken else f"{name}_{index}"
            taken.add(self._names[index])
        for index in model.inputs:
            self._forms[index] = {own(len(model.tensors[index].shape)): self._names[index]}

    def begin(self, operator: Operator) -> None:
        """Name the nodes that follow after an operator."""
        self._operator = operator

    def tensor(self, index: int) -> Tensor:
        """A tensor of the file."""
        return self._model.tensors[index]

    def is_input(self, index: int) -> bool:
        """Whether a tensor comes from outside."""
        return index in self._model.inputs

    def constant(self, index: int) -> NDArray[Any] | None:
        """The data of a tensor as it is stored, None for one that is computed."""
        return self._folded.get(index, self._model.tensors[index].data)

    def known(self, index: int, what: str) -> NDArray[Any]:
        """The data of a tensor that must be constant, since shapes follow from it."""
        value = self.constant(index)
        if value is None:
            raise Rejected(f"its {what} is computed at run time.")
        return value

    def fold(self, index: int, value: NDArray[Any]) -> None:
        """Make a tensor constant."""
        self._folded[index] = value

    def fold_real(self, index: int) -> None:
        """Make a quantised constant one of real numbers."""
        value, quantisation = self.constant(index), self.tensor(index).quantisation
        if value is None or quantisation is None:
            return
        shape = [1] * value.ndim
        if quantisation.axis is not None:
            shape[quantisation.axis] = -1
        scales, zeros = quantisation.scales.reshape(shape), quantisation.zero_points.reshape(shape)
        self._folded[index] = ((value - zeros) * scales).astype(np.float32)

    # nodes

    def emit(self, kind: str, inputs: Sequence[str], count: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output; others are `<name>_<number>`."""
        from onnx import helper

        name = self._fresh()
        outputs = [name, *(f"{name}_{number}" for number in range(1, count))]
        label = f"{self._operator.kind.lower()}_{self._operator.index}/{name}" if self._operator else name
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=label, **attributes))
        return name

    def weight(self, value: NDArray[Any]) -> str:
        """Add a constant."""
        name = self._fresh()
        self._weights[name] = np.asarray(value, order="C")
        return name

    def numbers(self, *values: int) -> str:
        """Add a constant list of positions or sizes."""
        return self.weight(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """Add a constant float32 number."""
        return self.weight(np.array(value, np.float32))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Add a Reshape."""
        return self.emit("Reshape", [name, self.numbers(*shape)])

    def _fresh(self) -> str:
        taken = self._names.values()
        while True:
            self._next += 1
            if (name := f"t{self._next}") not in taken:
                return name

    # tensors

    def form(self, index: int) -> Form:
        """The form in which a tensor was made."""
        forms = self._forms.get(index)
        return next(iter(forms)) if forms else own(len(self.tensor(index).shape))

    def common_form(self, indices: Sequence[int]) -> Form:
        """A form in which tensors of one rank, and constants, meet with the fewest permutations."""
        made = [index for index in indices if self.constant(index) is None]
        ranks = {len(self.tensor(index).shape) for index in made}
        whole = max((len(self.tensor(index).shape) for index in indices), default=0)
        forms = [self.form(index) for index in made] if ranks == {whole} else []
        return next((form for form in forms if form != own(whole)), own(whole))

    def stored(self, index: int, form: Form | None = None) -> str:
        """The name of a tensor in a form, as integers where it is quantised."""
        tensor = self.tensor(index)
        if tensor.dtype.startswith("type"):
            raise Rejected(f"{tensor.name!r} has the element {tensor.dtype}, which is not known here.")
        form = form or self.form(index)
        forms = self._forms.setdefault(index, {})
        if form not in forms:
            value = self.constant(index)
            if value is not None:
                # A constant of lower rank broadcasts from its last axes, as it would without the permutation.
                forms[form] = self.weight(value.reshape((1,) * (len(form) - value.ndim) + value.shape).transpose(form))
            elif not forms:
                raise Rejected(f"{tensor.name!r} is used before it is made.")
            else:
                forms[form] = self._permute(next(iter(forms.items())), form, tensor.shape)
        return forms[form]

    def _permute(self, source: tuple[Form, str], to: Form, shape: tuple[int, ...]) -> str:
        form, name = source
        if [axis for axis in form if shape[axis] != 1] == [axis for axis in to if shape[axis] != 1]:
            return self.reshape(name, [shape[axis] for axis in to])  # only axes of one element move
        return self.emit("Transpose", [name], perm=[form.index(axis) for axis in to])

    def real(self, index: int, form: Form | None = None) -> str:
        """The name of a tensor in a form, dequantised where it is quantised."""
        form = form or self.form(index)
        quantisation = self.tensor(index).quantisation
        if index in self._folded:  # real numbers already, or no quantised ones
            return self.stored(index, form)
        axis = None
        if quantisation is not None and quantisation.axis is not None:
            axis = form.index(quantisation.axis + len(form) - len(self.tensor(index).shape))
        return self.dequantised(self.stored(index, form), index, axis)

    def dequantised(self, name: str, index: int, axis: int | None = None) -> str:
        """Dequantise what is stored as a tensor is; `axis` is where the scales lie that differ along one."""
        tensor = self.tensor(index)
        if tensor.quantisation is None:
            return name
        if (axis is None) != (tensor.quantisation.axis is None):
            raise Rejected(f"{tensor.name!r} has several scales, which cannot be kept in another shape.")
        attributes = {} if axis is None else {"axis": axis}
        return self.emit("DequantizeLinear", [name, *self._parameters(tensor, tensor.quantisation)], **attributes)

    def _parameters(self, tensor: Tensor, quantisation: Quantisation) -> list[str]:
        single = quantisation.axis is None
        scale = self.weight(quantisation.scales[0] if single else quantisation.scales)
        if tensor.dtype == "int32":  # of a bias: the operators take no zero point for it
            if quantisation.zero_points.any():
                raise Rejected(f"{tensor.name!r} is int32 with a zero point.")
            return [scale]
        if tensor.dtype not in ("int8", "uint8"):
            raise Rejected(f"{tensor.name!r} is quantised to {tensor.dtype}; int8 and uint8 are what can be compiled.")
        limits = np.iinfo(tensor.dtype)
        zeros = quantisation.zero_points
        if zeros.min() < limits.min or zeros.max() > limits.max:
            raise Rejected(f"{tensor.name!r} has a zero point that is no {tensor.dtype}.")
        return [scale, self.weight((zeros[0] if single else zeros).astype(tensor.dtype))]

    def put(self, index: int, name: str, form: Form | None = None) -> None:
        """Say which node makes a tensor, as it is stored, and in what form."""
        if index in self._forms or self.constant(index) is not None:
            raise Rejected(f"{self.tensor(index).name!r} is made twice.")
        self._forms[index] = {form or own(len(self.tensor(index).shape)): name}

    def put_real(self, index: int, name: str, form: Form | None = None) -> None:
        """Say which node makes a tensor as real numbers; it is quantised where the file says so."""
        tensor = self.tensor(index)
        if tensor.quantisation is not None:
            if tensor.quantisation.axis is not None or tensor.dtype == "int32":
                raise Rejected(f"{tensor.name!r} is computed, but quantised as only a constant can be.")
            name = self.emit("QuantizeLinear", [name, *self._parameters(tensor, tensor.quantisation)])
        self.put(index, name, form)

    def same_scale(self, one: int, other: int) -> bool:
        """Whether two tensors mean the same numbers by the same integers, so that bytes may be moved as they are."""
        first, second = self.tensor(one), self.tensor(other)
        if first.dtype != second.dtype or (first.quantisation is None) != (second.quantisation is None):
            return False
        if first.quantisation is None or second.quantisation is None:
            return True
        return (
            first.quantisation.axis is None
            and second.quantisation.axis is None
            and bool(first.quantisation.scales[0] == second.quantisation.scales[0])
            and bool(first.quantisation.zero_points[0] == second.quantisation.zero_points[0])
        )

    def activated(self, name: str, function: int, output: int) -> str:
        """Apply a fused activation, unless the range of the quantised output does the same."""
        if function == _NO_ACTIVATION:
            return name
        if function == _TANH:
            return self.emit("Tanh", [name])
        if function not in _BOUNDS:
            raise Rejected(f"its fused activation {function} is not known here.")
        return self.clipped(name, *_BOUNDS[function], output)

    def clipped(self, name: str, low: float | None, high: float | None, output: int) -> str:
        """Clip to bounds, unless the range of the quantised output does the same."""
        tensor = self.tensor(output)
        if tensor.quantisation is not None and tensor.dtype in ("int8", "uint8"):
            limits, scale = np.iinfo(tensor.dtype), float(tensor.quantisation.scales[0])
            zero = int(tensor.quantisation.zero_points[0])
            if low is not None and zero + round(low / scale) <= limits.min:
                low = None
            if high is not None and zero + round(high / scale) >= limits.max:
                high = None
        if low is None and high is None:
            return name
        if low == 0 and high is None:
            return self.emit("Relu", [name])
        bounds = ["" if bound is None else self.scalar(bound) for bound in (low, high)]
        return self.emit("Clip", [name, *bounds] if bounds[1] else [name, bounds[0]])

    # the whole

    def finish(self) -> Any:
        """Return the onnx.ModelProto; every tensor has the shape that the TFLite file gives it, or it is refused."""
        from onnx import helper, numpy_helper

        self._operator = None
        outputs = [self._output(index) for index in self._model.outputs]
        needed = set(outputs)
        nodes = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            "tflite",
            [self._info(index) for index in self._model.inputs],
            [self._info(index) for index in dict.fromkeys(self._model.outputs)],
            [numpy_helper.from_array(value, name) for name, value in self._weights.items() if name in needed],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        self._check_shapes(model)
        return model

    def _output(self, index: int) -> str:
        """Give an output its name: by renaming what makes it, or by a copy where that has a name already."""
        name, wanted = self.stored(index, own(len(self.tensor(index).shape))), self._names[index]
        if name == wanted:
            return wanted
        made = any(name in node.output for node in self._nodes)
        if not made or name in self._names.values():
            self._nodes.append(self._copy(name, wanted))
            return wanted
        for node in self._nodes:
            for names in (node.input, node.output):
                for position, one in enumerate(names):
                    if one == name:
                        names[position] = wanted
        for forms in self._forms.values():
            for form, one in forms.items():
                if one == name:
                    forms[form] = wanted
        return wanted

    @staticmethod
    def _copy(name: str, wanted: str) -> Any:
        from onnx import helper

        return helper.make_node("Identity", [name], [wanted], name=f"output/{wanted}")

    def _info(self, index: int) -> Any:
        from onnx import helper

        tensor = self.tensor(index)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return helper.make_tensor_value_info(self._names[index], kind, tensor.shape)

    def _check_shapes(self, model: Any) -> None:
        import onnx

        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        found = {
            value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*inferred.graph.value_info, *inferred.graph.output)
        }
        for index, forms in self._forms.items():
            tensor = self.tensor(index)
            for form, name in forms.items():
                if len(form) != len(tensor.shape) or name not in found:
                    continue
                if found[name] != tuple(tensor.shape[axis] for axis in form):
                    raise Rejected(
                        f"{tensor.name!r} has the shape {list(tensor.shape)} in the file, but what makes it gives "
                        "another; shapes that are known only at run time cannot be compiled."
                    )
