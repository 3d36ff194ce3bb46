"""Trees without libdlr: the library of an ensemble, called directly.

It is what the backend `graph` runs when an artifact has no graph, and knows the same libraries that libdlr does: those
of this project's compiler and those of SageMaker Neo. Source: predictor.cc of treelite 0.9x inside neo-ai-dlr 1.6.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np

from lisiere.backends.base import Tensor, check_feeds
from lisiere.errors import Permanent
from lisiere.models import Package, TensorSpec

_LEFT_OUT = -1  # what stands in the place of a float for a feature without a value


def load(package: Package, threads: int = 1) -> TreesModel:  # noqa: ARG001 - one row is one thread's work
    """Load the package's ensemble.

    Raises:
        Permanent: the library cannot be loaded here, or is not what the manifest says.
    """
    return TreesModel(package)


def open_library(package: Package) -> ctypes.CDLL:
    """Load an artifact's library into this process.

    Raises:
        Permanent: it cannot be loaded here.
    """
    neo = package.manifest.neo
    assert neo is not None  # noqa: S101 - open_backend looked
    try:
        return ctypes.CDLL(str(package.file(neo.library).resolve()))
    except OSError as error:
        raise Permanent(f"{package.file(neo.library)} cannot be loaded on this machine: {error}") from error


def missing_value(library: ctypes.CDLL) -> float | None:
    """Return the number that stands for a missing value where a host would drop NaN, or None if there is none.

    libdlr 1.6 drops zeros and NaN alike. Libraries of this project take what was dropped for zero, and export this
    number for what is missing; those of Neo take both for missing.
    """
    try:
        return float(ctypes.c_float.in_dll(library, "lisiere_missing").value)
    except ValueError:
        return None


class TreesModel:
    """An ensemble of trees: one row of numbers in, one row out."""

    def __init__(self, package: Package) -> None:
        self.inputs: tuple[TensorSpec, ...] = package.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = package.manifest.outputs
        self._path = package.path
        library = open_library(package)
        self._takes_nan = missing_value(library) is not None
        features = int(self._function(library, "get_num_feature", ctypes.c_size_t)())
        groups = int(self._function(library, "get_num_output_group", ctypes.c_size_t)())
        shapes = [(spec.shape, spec.dtype) for spec in (*self.inputs, *self.outputs)]
        if len(shapes) != 2 or shapes[0] != ((1, features), "float32") or shapes[1][1] != "float32":
            raise Permanent(
                f"The trees of {self._path} take one float32 input [1, {features}] and give one float32 output, which "
                "is not what the manifest declares."
            )
        self._row = np.zeros(features, np.float32)
        self._result = np.zeros(max(groups, 1), np.float32)
        row, result = (ctypes.c_void_p(array.ctypes.data) for array in (self._row, self._result))
        self._several = groups > 1
        if self._several:
            self._predict = self._function(library, "predict_multiclass", ctypes.c_size_t)
            self._arguments: tuple[object, ...] = (row, ctypes.c_int(0), result)
        else:
            self._predict = self._function(library, "predict", ctypes.c_float)
            self._arguments = (row, ctypes.c_int(0))
        self._closed = False
        count = self._run()
        if count != self.outputs[0].size:
            raise Permanent(f"The trees of {self._path} give {count} numbers, but the manifest declares otherwise.")

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; see `Model.run`."""
        if self._closed:
            raise Permanent(f"The model of {self._path} has been closed.")
        (array,) = check_feeds(self.inputs, feeds)
        np.copyto(self._row, array[0])
        if not self._takes_nan:
            self._row.view(np.int32)[np.isnan(self._row)] = _LEFT_OUT
        count = self._run()
        output = self.outputs[0]
        return {output.name: self._result[:count].reshape(output.shape).copy()}

    def close(self) -> None:
        """Refuse further runs. The library stays mapped: unloading code is not safe while any may run."""
        self._closed = True

    def _run(self) -> int:
        """Predict the row and return how many numbers there are."""
        if self._several:
            return int(self._predict(*self._arguments))
        self._result[0] = self._predict(*self._arguments)
        return 1

    def _function(self, library: ctypes.CDLL, name: str, result: type) -> ctypes._NamedFuncPointer:
        try:
            function = library[name]
        except AttributeError as error:
            raise Permanent(f"The library of {self._path} lacks {name}, so it is no ensemble of trees.") from error
        function.restype = result
        return function
