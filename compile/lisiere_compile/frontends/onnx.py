"""Front end: an ONNX file -> a checked model with static shapes -> a Relax module.

Whatever the compiler cannot take is refused here by name, before any work is spent on it.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere.models import TensorSpec
from lisiere_compile.frontends.batch_norm import fold_batch_norm
from lisiere_compile.frontends.converters import extended, own_converters
from lisiere_compile.frontends.onnx_passes import TENSOR_MAX_BYTES, prepare

ONNX_MAX_BYTES = 1 << 31  # protobuf's own limit
# ONNX element types that a manifest has a name for. Source: TensorProto.DataType.
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 11: "float64"}
# These decide at run time what to do next, which a straight list of kernels cannot.
_CONTROL_FLOW = {"If", "Loop", "Scan"}


@dataclass(frozen=True)
class OnnxModel:
    """A checked ONNX model.

    Attributes:
        proto: onnx.ModelProto.
        inputs: with static shapes.
        outputs: their names; shapes are known after lowering.
    """

    proto: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def read_onnx(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> OnnxModel:
    """Read and check an ONNX file and fix its input shapes.

    Args:
        file: one file; weights in further files are refused, since no digest covers them.
        shapes: what the job's DataInputConfig says; a dynamic first dimension is read as 1 without it.

    Raises:
        Rejected: not ONNX, not whole, an operator that is not known, or a shape that is not static.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if file.stat().st_size > ONNX_MAX_BYTES:
        raise Rejected(f"{file} is larger than {ONNX_MAX_BYTES} bytes, which no ONNX file can be.")
    try:
        proto = onnx.load(str(file), load_external_data=False)
    except DecodeError as error:
        raise Rejected(f"{file} is not an ONNX file, or is cut short.") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise Rejected(f"{file} is not an ONNX file, or is cut short: it has no graph with outputs.")
    tensors = list(_tensors(proto.graph))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise Rejected(f"{file} keeps weights in other files. Save it as one file.")
    if any(math.prod(tensor.dims) * 4 > TENSOR_MAX_BYTES or min(tensor.dims, default=0) < 0 for tensor in tensors):
        raise Rejected(f"{file} has a tensor of a shape that no device can hold.")
    if len(proto.graph.sparse_initializer):
        raise Rejected(f"{file} keeps weights sparse. Save it with dense ones.")
    try:
        onnx.checker.check_model(proto)
    except Exception as error:  # its C++ errors come as several classes
        first = (str(error).strip().splitlines() or ["it gives no reason"])[0]
        raise Rejected(f"{file} is not a valid ONNX model: {first.rstrip('.')}.") from error
    specs = input_specs(proto, shapes, file)
    try:
        prepared, problems = prepare(proto, specs)
    except Rejected:
        raise
    except Exception as error:  # what the checker let pass, such as attributes of another type
        raise Rejected(f"{file} is not a valid ONNX model: {first_line(error)}") from error
    _check_operators(prepared, problems, file)
    return OnnxModel(prepared, specs, tuple(one.name for one in proto.graph.output))


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors that a graph holds, in operators and in the graphs inside of them too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def input_specs(proto: Any, shapes: Mapping[str, tuple[int, ...]], file: Path) -> tuple[TensorSpec, ...]:
    """Return the inputs that are no weights, with their shapes fixed; see `read_onnx`.

    Raises:
        Rejected: a shape is not static, or not the one in the job.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [one for one in proto.graph.input if one.name not in weights]
    unknown = sorted(set(shapes) - {one.name for one in inputs})
    if unknown:
        raise Rejected(
            f"DataInputConfig names {', '.join(unknown)}, but the inputs of {file.name} are "
            f"{', '.join(one.name for one in inputs) or 'none'}."
        )
    return tuple(_input_spec(one, shapes.get(one.name), file) for one in inputs)


def _check_operators(proto: Any, problems: list[tuple[Any, str]], file: Path) -> None:
    """Every operator must be one that the Relax front end converts; all that are not are named at once."""
    from tvm.relax.frontend.onnx import onnx_frontend

    known = {"Constant", *onnx_frontend._get_convert_map(), *own_converters()} - _CONTROL_FLOW
    bad = [node for node in proto.graph.node if node.op_type not in known or node.domain not in ("", "ai.onnx")]
    unfit = [node for node, _ in problems]
    said = [name_nodes([node for node in bad if node not in unfit])] if bad else []
    said += [f"{name_nodes([node])}, which {why}" for node, why in problems]
    if any(said):
        raise Rejected(f"{file.name} uses operators that cannot be compiled: {'; '.join(filter(None, said))}.")


def name_nodes(nodes: list[Any]) -> str:
    """Return operators and their nodes, such as `TopK (node best, node #7)`."""
    found: dict[str, list[str]] = {}
    for index, node in enumerate(nodes):
        operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        name = node.name or (f"the one that makes {node.output[0]}" if node.output else f"#{index}")
        found.setdefault(operator, []).append(name)
    return "; ".join(f"{operator} ({', '.join(names)})" for operator, names in sorted(found.items()))


def _input_spec(value: Any, given: tuple[int, ...] | None, file: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = _DTYPES.get(tensor.elem_type)
    if dtype is None:
        raise Rejected(f"The input {value.name!r} of {file.name} has an element type that no manifest can name.")
    # Zero or less is how some exporters write `dynamic`.
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]
    names = [
        dim.dim_param or "?" if size is None else str(size) for dim, size in zip(tensor.shape.dim, dims, strict=True)
    ]
    said = f"the input {value.name!r} of {file.name} has the shape [{', '.join(names)}]"
    if given is None:
        shape = tuple(1 if size is None and index == 0 else size for index, size in enumerate(dims))
        dynamic = [f"{index} ({names[index]})" for index, size in enumerate(shape) if size is None]
        if dynamic:
            raise Rejected(
                f"Dimension {', '.join(dynamic)} is dynamic: {said}. Give the whole shape in the job's "
                "DataInputConfig, or by `--shape`."
            )
    elif not tensor.HasField("shape"):
        shape = given
    elif len(given) != len(dims):
        raise Rejected(f"DataInputConfig gives {list(given)}, but {said}, with {len(dims)} dimensions.")
    elif any(size is not None and size != wanted for size, wanted in zip(dims, given, strict=True)):
        raise Rejected(f"DataInputConfig gives {list(given)}, but {said}.")
    else:
        shape = given
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)  # type: ignore[arg-type]


def to_relax(model: OnnxModel, name: str) -> Any:
    """Convert to a Relax module whose constants are in its body.

    Raises:
        Rejected: an operator is used in a way that the front end cannot convert.
    """
    from tvm.relax.frontend.onnx import from_onnx

    shapes = {spec.name: list(spec.shape) for spec in model.inputs}
    # It prints what it fails at, where only a command's own output belongs.
    with warnings.catch_warnings(), extended(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # it warns of what the checker has accepted above
        try:
            return from_onnx(fold_batch_norm(model.proto), shape_dict=shapes, keep_params_in_input=False)
        except Exception as error:  # the front end raises whatever its operators raise
            raise Rejected(f"{name} cannot be converted: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line that says something, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
