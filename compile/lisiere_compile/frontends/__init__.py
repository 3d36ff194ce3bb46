"""Front ends: a model in the format of its framework -> the ONNX file that the rest of the compiler works on.

ONNX is the one form behind this door, so that one importer, one reference (ONNX Runtime) and one fallback on the device
serve every framework. Trees are no graph of tensors and go another way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.frontends.pytorch import convert_pytorch
from lisiere_compile.frontends.tflite import convert_tflite

# Frameworks of jobs that have no front end -> how a model of theirs becomes an ONNX file.
_CONVERSIONS = {
    "TENSORFLOW": "`pip install tf2onnx`, then `python -m tf2onnx.convert --saved-model DIR --output model.onnx`",
    "KERAS": "`model.export('model.onnx', format='onnx')` in Keras 3, or tf2onnx with `--keras model.h5`",
    "MXNET": "`mxnet.onnx.export_model(symbol, params, [shape], [dtype], 'model.onnx')` in MXNet 1.9",
    "DARKNET": "demo_darknet2onnx.py of the project pytorch-YOLOv4 makes model.onnx of .cfg and .weights",
}


def check_framework(framework: str) -> None:
    """Check that models of a framework can be compiled here.

    Raises:
        Rejected: they cannot; the message says how they can.
    """
    if way := _CONVERSIONS.get(framework):
        raise Rejected(
            f"{framework} models are not compiled here. Convert to ONNX and compile that: {way}. Or give the job to "
            "SageMaker with `--cloud`."
        )


def to_onnx(file: Path, framework: str, work: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Return an ONNX file that computes what the model does; an ONNX file is returned as it is.

    Args:
        file: the model, in its framework's format.
        framework: as in a job, such as `TFLITE`.
        work: an empty folder for the converted file.
        shapes: what the job's DataInputConfig says.

    Raises:
        Rejected: there is no front end for the framework, or it cannot take this model.
    """
    check_framework(framework)
    if framework == "ONNX":
        return file
    if framework == "TFLITE":
        return _write(convert_tflite(file, shapes), work / f"{file.stem}.onnx")
    if framework == "PYTORCH":
        return _write(convert_pytorch(file, shapes), work / f"{file.stem}.onnx")
    raise Rejected(f"The framework {framework} cannot be compiled yet; export the model to ONNX.")


def _write(model: Any, file: Path) -> Path:
    import onnx

    onnx.save(model, str(file))
    return file
