"""Front end: a program of `torch.export` (.pt2) or TorchScript (.pt, .pth) -> an ONNX model, by PyTorch's exporters.

PyTorch's loaders run what a file says: pickles, the text of symbolic shapes, names of functions. So a file is looked
through before PyTorch sees it, and what could be more than tensors and operators is refused. TorchScript is a language
of its own without access to Python; it is loaded as it is.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lisiere.errors import Rejected
from lisiere_compile.quiet import quiet

OPSET = 18
SCRIPT_OPSET = 17
JSON_MAX_BYTES = 256 << 20
_PARTS = ("models/", "data/weights/", "data/constants/", "data/sample_inputs/", ".data/", "extra/")
_FILES = ("archive_format", "archive_version", "byteorder", "version")
# Weights and constants are tensors under these names; objects of Python have others.
_TENSORS = ("weight_", "tensor_")
_TARGET = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+\.\w+|_operator\.(getitem|add|sub|mul)")


def convert_pytorch(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """Return the onnx.ModelProto of a PyTorch file.

    Args:
        file: a `torch.export` archive with static shapes, or TorchScript, whose inputs are taken as float32.
        shapes: what the job's DataInputConfig says, in the order of the inputs; TorchScript must have it, since it
            knows neither names nor shapes.

    Raises:
        Rejected: PyTorch is not installed, the file is neither of the two, or PyTorch cannot export it.
    """
    kind = _kind(file)
    if kind == "pickle":
        raise Rejected(
            f"{file.name} is a pickled module or a state_dict, which is Python code or weights without a model. Save "
            "`torch.jit.trace(model, example)` or `torch.export.save(torch.export.export(model, (example,)), file)`."
        )
    if kind == "script" and not shapes:
        raise Rejected(
            f"{file.name} is TorchScript, which does not know the shapes of its inputs: give them in DataInputConfig, "
            'such as [[1, 3, 224, 224]] or {"input0": [1, 3, 224, 224]}.'
        )
    try:
        import torch
    except ModuleNotFoundError as error:
        raise Rejected(
            "PYTORCH models need PyTorch: `pip install torch onnxscript`, or lisiere[torch]. The CPU wheel is enough "
            "(--index-url https://download.pytorch.org/whl/cpu)."
        ) from error
    try:
        with warnings.catch_warnings(), quiet(), _no_pickles(), torch.no_grad():
            warnings.simplefilter("ignore")  # that one of the two exporters is older than the other
            return _exported(file, shapes) if kind == "exported" else _script(file, shapes)
    except Rejected:
        raise
    except Exception as error:  # PyTorch and its exporters raise whatever they meet
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise Rejected(f"PyTorch cannot export {file.name}: {first.rstrip('.')}.") from error


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Hold every torch.load to tensors, also where PyTorch asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _kind(file: Path) -> str:
    """Tell an exported program, TorchScript and a pickle apart by the names in the archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            inner = [name.partition("/")[2] for name in names]
            if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
                raise Rejected(f"{file.name} holds a name twice, or several folders, which no PyTorch file does.")
            if "archive_format" in inner:
                _check_exported(archive, file)
                return "exported"
            if "serialized_exported_program.json" in inner:
                raise Rejected(f"{file.name} was written by PyTorch before 2.8. Export the model with a later one.")
            if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
                return "script"
            if "data.pkl" in inner:
                return "pickle"
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, NotImplementedError, RecursionError) as error:
        if file.read_bytes()[:1] == b"\x80":  # how pickles of PyTorch before 1.6 begin
            return "pickle"
        raise Rejected(f"{file.name} is not a PyTorch file, or is cut short.") from error
    raise Rejected(f"{file.name} is neither a program of torch.export nor TorchScript.")


def _check_exported(archive: zipfile.ZipFile, file: Path) -> None:
    """See to it that a `.pt2` holds tensors and operators alone.

    Source: torch/export/pt2_archive and torch/_export/serde of PyTorch 2.13.
    """
    for name in archive.namelist():
        inner = name.partition("/")[2]
        if not inner.startswith(_PARTS) and inner not in _FILES:
            raise Rejected(f"{file.name} holds {inner!r}, which is more than a program of torch.export is made of.")
        if not inner.endswith(".json"):
            continue
        if archive.getinfo(name).file_size > JSON_MAX_BYTES:
            raise Rejected(f"{file.name} describes its program in more than {JSON_MAX_BYTES} bytes.")
        for key, value in _items(json.loads(archive.read(name))):
            if key == "path_name" and not str(value).startswith(_TENSORS):
                raise Rejected(f"{file.name} holds an object of Python ({value}); only tensors are taken.")
            if key == "target" and not _TARGET.fullmatch(str(value)):
                raise Rejected(f"{file.name} calls {value}, which is no operator of PyTorch that can be compiled.")
            if key in ("expr_str", "guards_code") and value:
                raise Rejected(
                    f"{file.name} was exported with dynamic shapes. Export it with the shapes that the device will use."
                )


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a JSON document, however deep."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _items(one)


def _exported(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    import torch

    program = torch.export.load(file)
    names = list(program.graph_signature.user_inputs)
    # A job's list of shapes has no names of its own, so it names the inputs.
    given = list(shapes) if shapes and len(shapes) == len(names) else None
    made = torch.onnx.export(
        program, f=None, dynamo=True, opset_version=OPSET, input_names=given, external_data=False, verbose=False
    )
    if made is None:
        raise Rejected(f"PyTorch gives no model for {file.name}.")
    return made.model_proto


def _script(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    import io

    import onnx
    import torch

    module = torch.jit.load(file, map_location="cpu").eval()
    example = tuple(torch.zeros(shape) for shape in shapes.values())
    result = module(*example)
    results = list(result) if isinstance(result, tuple | list) else [result]
    if not all(isinstance(one, torch.Tensor) for one in results):
        raise Rejected(f"{file.name} gives something other than tensors.")
    target = io.BytesIO()
    torch.onnx.export(
        module,
        example,
        target,
        dynamo=False,
        opset_version=SCRIPT_OPSET,
        input_names=list(shapes),
        output_names=[f"output{index}" for index in range(len(results))],
    )
    return onnx.load_from_string(target.getvalue())
