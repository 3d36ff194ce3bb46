"""Front end: a TFLite file -> an ONNX model with the same inputs, outputs and numbers.

Float models become float ones; quantised models become QDQ models whose weights stay integers. The interface keeps
TFLite's layout (channels last).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends import tflite_moves, tflite_operators
from lisiere_compile.frontends.tflite_builder import Builder
from lisiere_compile.frontends.tflite_reader import Operator, TfliteModel, read_tflite

OPERATORS = {**tflite_operators.TABLE, **tflite_moves.TABLE}


def convert_tflite(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the onnx.ModelProto that computes what a `.tflite` file does.

    Args:
        file: the flatbuffer; its first subgraph is taken.
        shapes: what the job's DataInputConfig says; it must agree with the file, whose operators contain its shapes.

    Raises:
        Rejected: it is not such a file or not whole, an operator is not known here, or a shape is not static.
    """
    model = read_tflite(file)
    _check_inputs(model, shapes, file)
    unknown = [operator for operator in model.operators if operator.kind not in OPERATORS]
    if unknown:
        raise Rejected(f"{file.name} uses operators that cannot be compiled: {_named(unknown, model)}.")
    builder = Builder(model)
    for operator in model.operators:
        builder.begin(operator)
        try:
            OPERATORS[operator.kind](builder, operator)
        except Rejected as error:
            raise Rejected(f"{file.name}: {_named([operator], model)} cannot be compiled: {error}") from error
        except Exception as error:  # whatever arithmetic does with shapes and options that contradict each other
            raise Rejected(
                f"{file.name}: {_named([operator], model)} has inputs or options that contradict each other."
            ) from error
    try:
        return builder.finish()
    except Rejected as error:
        raise Rejected(f"{file.name}: {error}") from error
    except Exception as error:  # ONNX's own checks, which come as several classes
        first = (str(error).strip().splitlines() or ["it gives no reason"])[0]
        raise Rejected(f"{file.name} contradicts itself: {first.rstrip('.')}.") from error


def _named(operators: list[Operator], model: TfliteModel) -> str:
    """Return operators and where they are, such as `TOPK_V2 (#4, which makes best)`."""
    found: dict[str, list[str]] = {}
    for operator in operators:
        output = model.tensors[operator.outputs[0]].name
        found.setdefault(operator.kind, []).append(f"#{operator.index}, which makes {output}")
    return "; ".join(f"{kind} ({', '.join(places)})" for kind, places in sorted(found.items()))


def _check_inputs(model: TfliteModel, shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    inputs = {model.tensors[index].name: model.tensors[index].shape for index in model.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise Rejected(f"DataInputConfig names {name}, but the inputs of {file.name} are {', '.join(inputs)}.")
        if shape != inputs[name]:
            raise Rejected(
                f"DataInputConfig gives {list(shape)}, but the input {name!r} of {file.name} has the shape "
                f"{list(inputs[name])}, which is part of its operators; convert the model again with the shape wanted."
            )
