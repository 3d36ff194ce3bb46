"""Backend `onnx`: the package's ONNX file in ONNX Runtime, with the accelerators that its build has."""

from __future__ import annotations

from collections.abc import Mapping

from lisiere.backends.base import Tensor, check_feeds
from lisiere.errors import Permanent, Rejected
from lisiere.models import Package, TensorSpec

# Best first. ONNX Runtime itself goes on to the next where one cannot take a node.
_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
# What ONNX Runtime calls the manifest's dtypes; the others go by the same name.
_DTYPES = {"float32": "tensor(float)", "float64": "tensor(double)"}


def load(package: Package, threads: int = 1) -> OnnxModel:
    """Open the package's ONNX file.

    Raises:
        Permanent: ONNX Runtime is not installed, or refuses the file.
        Rejected: the file's interface is not the manifest's.
    """
    return OnnxModel(package, threads)


class OnnxModel:
    """A session of ONNX Runtime."""

    def __init__(self, package: Package, threads: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise Permanent("ONNX Runtime is not installed: `pip install lisiere[onnx]` brings it.") from error
        assert package.manifest.onnx is not None  # noqa: S101 - open_backend looked
        file = package.file(package.manifest.onnx)
        self.inputs: tuple[TensorSpec, ...] = package.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = package.manifest.outputs
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        available = set(ort.get_available_providers())
        try:
            session = ort.InferenceSession(
                str(file), options, providers=[name for name in _PROVIDERS if name in available]
            )
        except Exception as error:  # its bindings raise classes that they do not export
            raise Permanent(f"ONNX Runtime refuses {file}: {error}") from error
        for kind, specs, found in (
            ("input", self.inputs, session.get_inputs()),
            ("output", self.outputs, session.get_outputs()),
        ):
            shapes, dtypes = {node.name: node.shape for node in found}, {node.name: node.type for node in found}
            if set(shapes) != {spec.name for spec in specs}:
                raise Rejected(f"{file} has the {kind}s {', '.join(shapes)}, which is not what the manifest says.")
            for spec in specs:
                if not _fits(shapes[spec.name], spec.shape):
                    raise Rejected(
                        f"The {kind} {spec.name!r} of {file} has the shape {shapes[spec.name]}, but the manifest says "
                        f"{list(spec.shape)}."
                    )
                if dtypes[spec.name] != _DTYPES.get(spec.dtype, f"tensor({spec.dtype})"):
                    raise Rejected(
                        f"The {kind} {spec.name!r} of {file} is a {dtypes[spec.name]}, but the manifest says "
                        f"{spec.dtype}."
                    )
        self._file = file
        self._session: ort.InferenceSession | None = session
        self._names = [spec.name for spec in self.outputs]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; see `Model.run`."""
        if self._session is None:
            raise Permanent(f"The model of {self._file} has been closed.")
        arrays = check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(
                self._names, {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
            )
            return {spec.name: value.reshape(spec.shape) for spec, value in zip(self.outputs, values, strict=True)}
        except Exception as error:  # its own classes, or a dynamic output of another size than the manifest's
            raise Permanent(f"ONNX Runtime failed on {self._file}: {error}") from error

    def close(self) -> None:
        """Let the session go."""
        self._session = None


def _fits(found: list[int | str | None], declared: tuple[int, ...]) -> bool:
    """Whether a shape with dynamic dimensions (named or None) can be the declared one."""
    return len(found) == len(declared) and all(
        not isinstance(dim, int) or dim == wanted for dim, wanted in zip(found, declared, strict=True)
    )
