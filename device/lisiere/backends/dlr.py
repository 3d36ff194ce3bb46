"""Backend `dlr`: the real libdlr, called through its C API.

The Python package `dlr` reports home by HTTPS when it is imported and when it loads a model, and its `run` costs about
50 µs on top of the C call. So it is only asked where its library lies; none of its code runs here, and a
library that lies in a model folder is never loaded. Source: dlr.h of neo-ai-dlr, release 1.6.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lisiere.backends import trees
from lisiere.backends.base import Tensor, check_feeds
from lisiere.errors import Permanent
from lisiere.models import Package, TensorSpec

_CPU = 1  # DLDeviceType kDLCPU
ENVIRONMENT = "LISIERE_LIBDLR"


def find_library() -> Path | None:
    """Return the path of libdlr: `$LISIERE_LIBDLR`, else where the wheel of `dlr` puts it, else None."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given)
    name = "libdlr.dylib" if sys.platform == "darwin" else "libdlr.so"
    # The wheel installs the library as a data file outside the package, and its record says where.
    try:
        files = importlib.metadata.files("dlr") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    libraries = (Path(str(file.locate())) for file in files if file.name == name)
    return next((library.resolve() for library in libraries if library.is_file()), None)


def load(package: Package, threads: int = 1) -> DlrModel:
    """Load the package's Neo artifact in libdlr.

    Raises:
        Permanent: libdlr is not on this machine, or refuses the artifact.
    """
    path = find_library()
    if path is None:
        raise Permanent(
            "libdlr was not found: `pip install dlr==1.6.0` brings it on x86-64 Linux; elsewhere build it and set "
            f"{ENVIRONMENT}."
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Permanent(f"{path} could not be loaded: {error}") from error
    library.DLRGetLastError.restype = ctypes.c_char_p
    return DlrModel(library, package, threads)


@contextlib.contextmanager
def _unbound() -> Iterator[None]:
    """Leave this thread on the CPUs that it may run on: libdlr's thread pool for trees binds it to the first one."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class DlrModel:
    """A model inside libdlr. Not for two threads at once: libdlr keeps one set of buffers a model."""

    def __init__(self, library: ctypes.CDLL, package: Package, threads: int) -> None:
        self.inputs: tuple[TensorSpec, ...] = package.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = package.manifest.outputs
        self._library = library
        self._path = package.path
        self._handle = ctypes.c_void_p()
        ensemble = package.manifest.neo is not None and package.manifest.neo.graph is None
        # What stands for a missing value, which libdlr drops; None for a graph, which has no such thing.
        self._missing = trees.missing_value(trees.open_library(package)) if ensemble else None
        with _unbound():
            self._call(
                "CreateDLRModel",
                ctypes.byref(self._handle),
                os.fsencode(package.path.resolve()),
                _CPU,
                ctypes.c_int(0),
            )
        # Everything about a call that does not change between calls, made once.
        self._set, self._run, self._get = library.SetDLRInput, library.RunDLRModel, library.GetDLROutput
        self._reference = ctypes.byref(self._handle)
        self._setters = [
            (ctypes.c_char_p(s.name.encode()), (ctypes.c_int64 * len(s.shape))(*s.shape), ctypes.c_int(len(s.shape)))
            for s in self.inputs
        ]
        try:
            if ensemble:
                # One row is one thread's work, and libdlr knows the size of its answer once it has a row.
                for (name, shape, ndim), spec in zip(self._setters, self.inputs, strict=True):
                    row = np.zeros(spec.shape, spec.dtype)
                    self._call("SetDLRInput", self._reference, name, shape, ctypes.c_void_p(row.ctypes.data), ndim)
            else:
                self._call("SetDLRNumThreads", self._reference, ctypes.c_int(threads))
            self._check_interface()
        except Permanent:
            self.close()
            raise
        self._getters = []
        for index, spec in enumerate(self.outputs):
            buffer = np.empty(spec.shape, spec.dtype)
            self._getters.append((spec.name, buffer, ctypes.c_int(index), ctypes.c_void_p(buffer.ctypes.data)))

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; see `Model.run`."""
        if not self._handle:
            raise Permanent(f"The model of {self._path} has been closed.")
        reference = self._reference
        for (name, shape, ndim), given in zip(self._setters, check_feeds(self.inputs, feeds), strict=True):
            array = given if self._missing is None else np.where(np.isnan(given), np.float32(self._missing), given)
            if self._set(reference, name, shape, _address(array), ndim):
                self._fail("SetDLRInput")
        self.infer()
        results = {}
        for output, buffer, index, address in self._getters:
            if self._get(reference, index, address):
                self._fail("GetDLROutput")
            results[output] = buffer.copy()
        return results

    def infer(self) -> None:
        """Infer on the inputs that are in place from the last `run`, and leave the outputs where they are."""
        if self._run(self._reference):
            self._fail("RunDLRModel")

    def close(self) -> None:
        """Delete the model inside libdlr."""
        if self._handle:
            self._library.DeleteDLRModel(ctypes.byref(self._handle))
            self._handle = ctypes.c_void_p()

    def _check_interface(self) -> None:
        """What libdlr says of the artifact must be what the manifest says: it copies by its own sizes."""
        inputs, outputs = ctypes.c_int(), ctypes.c_int()
        self._call("GetDLRNumInputs", ctypes.byref(self._handle), ctypes.byref(inputs))
        self._call("GetDLRNumOutputs", ctypes.byref(self._handle), ctypes.byref(outputs))
        if (inputs.value, outputs.value) != (len(self.inputs), len(self.outputs)):
            raise Permanent(
                f"libdlr finds {inputs.value} inputs and {outputs.value} outputs in {self._path}, but the manifest "
                f"declares {len(self.inputs)} and {len(self.outputs)}."
            )
        for index, spec in enumerate(self.outputs):
            size, ndim = ctypes.c_int64(), ctypes.c_int()
            self._call(
                "GetDLROutputSizeDim",
                ctypes.byref(self._handle),
                index,
                ctypes.byref(size),
                ctypes.byref(ndim),
            )
            if size.value != spec.size:
                raise Permanent(
                    f"libdlr gives {size.value} numbers for the output {spec.name!r} of {self._path}, but the "
                    f"manifest declares {spec.size}."
                )

    def _call(self, name: str, *arguments: object) -> None:
        if getattr(self._library, name)(*arguments):
            self._fail(name)

    def _fail(self, name: str) -> None:
        message = (self._library.DLRGetLastError() or b"").decode(errors="replace").strip()
        first = message.splitlines()[0] if message else "it gave no reason"
        raise Permanent(f"libdlr failed in {name} for {self._path}: {first}.")


def _address(array: Tensor) -> object:
    """Return where an array's numbers are, for a foreign function; `array.ctypes` takes three times as long."""
    if array.flags.writeable:
        return ctypes.byref(ctypes.c_char.from_buffer(array.data))
    return ctypes.c_void_p(array.ctypes.data)
