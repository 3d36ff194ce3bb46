"""The `.params` file of a Neo artifact: named tensors, little-endian.

Source: the layout that TVM's graph executor reads, as measured with DLR 1.6.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

LIST_MAGIC = 0xF7E58D4F05049CB7
TENSOR_MAGIC = 0xDD5E40F096B4A13F
_CPU = 1  # DLDeviceType kDLCPU
_CODES = {"i": 0, "u": 1, "f": 2}  # NumPy's dtype kinds -> DLDataTypeCode


def encode_params(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Encode name -> array in the order of the mapping; any byte order and layout is taken.

    Raises:
        ValueError: a dtype that the format has no code for, such as complex numbers.
    """
    parts = [struct.pack("<QQQ", LIST_MAGIC, 0, len(tensors))]
    for name in tensors:
        encoded = name.encode()
        parts += [struct.pack("<Q", len(encoded)), encoded]
    parts.append(struct.pack("<Q", len(tensors)))
    for name, array in tensors.items():
        if array.dtype.kind == "b":  # one bit in the old format; the wrappers take a byte for it
            array = array.astype("uint8")
        if array.dtype.kind not in _CODES:
            raise ValueError(f"The parameter {name!r} is {array.dtype}, which a parameter file cannot hold.")
        # ascontiguousarray would make a scalar one-dimensional.
        data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        code, bits = _CODES[array.dtype.kind], array.dtype.itemsize * 8
        parts.append(struct.pack("<QQiiiBBH", TENSOR_MAGIC, 0, _CPU, 0, array.ndim, code, bits, 1))
        parts.append(struct.pack(f"<{array.ndim}q", *array.shape))
        parts += [struct.pack("<q", len(data)), data]
    return b"".join(parts)
