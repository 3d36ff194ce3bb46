"""Backend `graph`: a Neo artifact without libdlr, by a small graph executor over ctypes.

It runs where no libdlr exists: aarch64, armv7, macOS. Formats: TVM's graph executor (`.json`), its parameter file
(`.params`) and its old packed-function ABI (`.so`); see docs/ARCHITECTURE.md for the layout.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.backends.base import Tensor, check_feeds
from lisiere.errors import Permanent
from lisiere.models import Package, TensorSpec
from lisiere.models.package import Graph

_ALIGNMENT = 128  # bytes; what TVM's generated code assumes of storage
_CPU = 1  # DLDeviceType kDLCPU
_TENSOR_HANDLE = 7  # kTVMDLTensorHandle
_PARAMS_MAGIC = 0xF7E58D4F05049CB7
_TENSOR_MAGIC = 0xDD5E40F096B4A13F
_KINDS = {"i": 0, "u": 1, "f": 2}  # NumPy's dtype kinds -> DLDataTypeCode
_CODES = {0: "int", 1: "uint", 2: "float"}
_BITS = (8, 16, 32, 64)


class _DLTensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


def load(package: Package, threads: int = 1) -> GraphModel:  # noqa: ARG001 - one thread is what it has
    """Load the package's Neo artifact.

    Raises:
        Permanent: a file is not in its format, or the shared object cannot be loaded here.
    """
    return GraphModel(package)


class GraphModel:
    """A straight list of kernel calls over buffers that are laid out once."""

    def __init__(self, package: Package) -> None:
        neo = package.manifest.neo
        assert neo is not None  # noqa: S101 - open_backend looked
        assert neo.graph is not None  # noqa: S101 - open_backend looked
        assert neo.params is not None  # noqa: S101 - open_package looked
        self.inputs: tuple[TensorSpec, ...] = package.manifest.inputs
        self.outputs: tuple[TensorSpec, ...] = package.manifest.outputs
        self._path = package.path
        self._graph = msgspec.json.decode(package.file(neo.graph).read_bytes(), type=Graph)
        try:
            self._library = ctypes.CDLL(str(package.file(neo.library).resolve()))
        except OSError as error:
            raise Permanent(f"{package.file(neo.library)} cannot be loaded on this machine: {error}") from error
        self._host = _Host(self._library)
        arrays = self._allocate()
        self._fill(arrays, read_params(package.file(neo.params)))
        names = [node.name for node in self._graph.nodes]
        self._feeds = [arrays[self._entry(names.index(spec.name), 0)] for spec in self.inputs]
        self._heads = [arrays[self._entry(node, output)] for node, output, *_ in self._graph.heads]
        self._calls = self._link(arrays)
        self._closed = False

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once; see `Model.run`."""
        if self._closed:
            raise Permanent(f"The model of {self._path} has been closed.")
        for slot, array in zip(self._feeds, check_feeds(self.inputs, feeds), strict=True):
            np.copyto(slot, array)
        self.infer()
        return {
            spec.name: head.reshape(spec.shape).copy() for spec, head in zip(self.outputs, self._heads, strict=True)
        }

    def infer(self) -> None:
        """Infer on the inputs that are in place from the last `run`, and leave the outputs where they are."""
        for function, arguments in self._calls:
            if function(*arguments):
                raise Permanent(f"A kernel of {self._path} failed: {self._host.error or 'it gave no reason'}.")

    def close(self) -> None:
        """Let the buffers go. The shared object stays mapped: unloading code is not safe while any may run."""
        self._closed = True
        self._calls, self._feeds, self._heads = [], [], []

    def _entry(self, node: int, output: int) -> int:
        return self._graph.node_row_ptr[node] + output

    def _allocate(self) -> list[NDArray[Any]]:
        """One array an entry; entries with one storage id share memory."""
        attrs = self._graph.attrs
        dtypes = [np.dtype(name) for name in attrs.dltype[1]]
        sizes: dict[int, int] = {}
        for dtype, shape, storage in zip(dtypes, attrs.shape[1], attrs.storage_id[1], strict=True):
            sizes[storage] = max(sizes.get(storage, 0), dtype.itemsize * math.prod(shape))
        buffers = {storage: _aligned(size) for storage, size in sizes.items()}
        return [
            buffers[storage][: dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
            for dtype, shape, storage in zip(dtypes, attrs.shape[1], attrs.storage_id[1], strict=True)
        ]

    def _fill(self, arrays: list[NDArray[Any]], params: dict[str, NDArray[Any]]) -> None:
        given = {spec.name for spec in self.inputs}
        for index in self._graph.arg_nodes:
            name = self._graph.nodes[index].name
            if name in given:
                continue
            slot = arrays[self._entry(index, 0)]
            value = params.get(name)
            if value is None or value.shape != slot.shape or value.dtype != slot.dtype:
                raise Permanent(f"The parameter {name!r} of {self._path} is missing or not of the graph's shape.")
            np.copyto(slot, value)

    def _link(self, arrays: list[NDArray[Any]]) -> list[tuple[Callable[..., int], tuple[Any, ...]]]:
        """Make each kernel's call ready: function and arguments, with everything they point to kept alive."""
        self._keep: list[object] = [arrays]
        calls: list[tuple[Callable[..., int], tuple[Any, ...]]] = []
        for index, node in enumerate(self._graph.nodes):
            if node.op == "null":
                continue
            name = node.attrs.get("func_name", "")
            entries = [self._entry(source, output) for source, output, *_ in node.inputs]
            entries += [self._entry(index, output) for output in range(int(node.attrs.get("num_outputs", "1")))]
            if name == "__nop":  # TVM's marker for a reshape that shares its input's storage
                continue
            try:
                function = self._library[name]
            except AttributeError as error:
                raise Permanent(f"The shared object of {self._path} lacks the kernel {name!r}.") from error
            count = len(entries)
            tensors = [_tensor(arrays[entry]) for entry in entries]
            values = (ctypes.c_void_p * count)(*(ctypes.addressof(tensor) for tensor in tensors))
            codes = (ctypes.c_int * count)(*([_TENSOR_HANDLE] * count))
            result, kind = ctypes.c_int64(), ctypes.c_int()
            self._keep.append((tensors, result, kind))
            arguments = (values, codes, ctypes.c_int(count), ctypes.byref(result), ctypes.byref(kind), None)
            calls.append((function, arguments))
        return calls


class _Host:
    """What generated code expects of its host: the functions behind the pointers that the library exports."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.error = ""
        # Kernels ask for the same sizes at every run, so what they give back is kept for the next: by size, by address.
        self._free_by_size: dict[int, list[int]] = {}
        self._buffers: dict[int, NDArray[np.uint8]] = {}
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        hooks: dict[str, Any] = {
            "__TVMAPISetLastError": ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._set_error),
            "__TVMBackendAllocWorkspace": ctypes.CFUNCTYPE(
                pointer, integer, integer, ctypes.c_uint64, integer, integer
            )(self._allocate),
            "__TVMBackendFreeWorkspace": ctypes.CFUNCTYPE(integer, integer, integer, pointer)(self._free),
            "__TVMBackendParallelLaunch": ctypes.CFUNCTYPE(integer, pointer, pointer, integer)(self._launch),
            "__TVMBackendParallelBarrier": ctypes.CFUNCTYPE(integer, integer, pointer)(lambda _task, _env: 0),
        }
        for name, hook in hooks.items():
            try:
                slot = ctypes.c_void_p.in_dll(library, name)
            except ValueError:
                continue  # this library does not use it
            # One library serves every model that is loaded from it, in libdlr too: what it has is left to it.
            if slot.value and name != "__TVMAPISetLastError":
                continue
            # The library is never unmapped, so what it points to must stay for as long.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(hook))
            slot.value = ctypes.cast(hook, ctypes.c_void_p).value

    def _set_error(self, message: bytes) -> None:
        self.error = message.decode(errors="replace")

    def _allocate(self, _device: int, _id: int, size: int, _code: int, _bits: int) -> int:
        if free := self._free_by_size.get(size):
            return free.pop()
        buffer = _aligned(size)
        address = int(buffer.ctypes.data)
        self._buffers[address] = buffer
        return address

    def _free(self, _device: int, _id: int, address: int) -> int:
        buffer = self._buffers.get(address)
        if buffer is None:
            return -1
        self._free_by_size.setdefault(len(buffer), []).append(address)
        return 0

    def _launch(self, function: int, closure: int, _tasks: int) -> int:
        """Run a parallel region as one task. Source: TVMParallelGroupEnv {void* sync_handle; int num_task}."""

        class Environment(ctypes.Structure):
            _fields_ = [("sync", ctypes.c_void_p), ("tasks", ctypes.c_int)]

        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        environment = Environment(None, 1)
        return int(kind(function)(0, ctypes.addressof(environment), closure))


def read_params(file: Path) -> dict[str, NDArray[Any]]:
    """Read a `.params` file: parameter name -> array, a view of the file's bytes.

    Raises:
        Permanent: it is not in TVM's parameter format.
    """
    data = file.read_bytes()
    try:
        magic, _, count = struct.unpack_from("<QQQ", data)
        if magic != _PARAMS_MAGIC:
            raise Permanent(f"{file} does not begin as a parameter file does.")
        at, names = 24, []
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", data, at)
            names.append(data[at + 8 : at + 8 + length].decode())
            at += 8 + length
        if struct.unpack_from("<Q", data, at) != (count,):
            raise Permanent(f"{file} does not hold one array for each name.")
        at += 8
        found: dict[str, NDArray[Any]] = {}
        for name in names:
            magic, _, _, _, ndim, code, bits, lanes = struct.unpack_from("<QQiiiBBH", data, at)
            if magic != _TENSOR_MAGIC or lanes != 1 or code not in _CODES or bits not in _BITS:
                raise Permanent(f"The parameter {name!r} of {file} is not in a form that can be read.")
            at += 32
            shape = struct.unpack_from(f"<{ndim}q", data, at)
            at += 8 * ndim
            (size,) = struct.unpack_from("<q", data, at)
            at += 8
            dtype = np.dtype(f"{_CODES[code]}{bits}")
            if min(shape, default=0) < 0 or size != dtype.itemsize * math.prod(shape):
                raise Permanent(f"The parameter {name!r} of {file} has {size} bytes, which its shape does not.")
            flat = np.frombuffer(data, dtype, math.prod(shape), at)
            found[name] = flat.reshape(shape)
            at += size
    except (struct.error, ValueError, TypeError, OverflowError) as error:
        raise Permanent(f"{file} is not a whole parameter file: {error}") from error
    return found


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.zeros(max(size, 1) + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + max(size, 1)]


def _tensor(array: NDArray[Any]) -> _DLTensor:
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    return _DLTensor(
        data=array.ctypes.data,
        device_type=_CPU,
        ndim=array.ndim,
        code=_KINDS[array.dtype.kind],
        bits=array.dtype.itemsize * 8,
        lanes=1,
        shape=ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)),
    )
