from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lisiere.backends.graph import read_params
from lisiere_compile.params import LIST_MAGIC, TENSOR_MAGIC, encode_params

DTYPES = st.sampled_from(["float32", "float64", "float16", "int8", "uint8", "int32", "int64"])
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("params") / "x.params"


@given(tensors=st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=4))
def test_what_is_written_is_read_back(file: Path, tensors: dict[str, Any]) -> None:
    file.write_bytes(encode_params(tensors))
    found = read_params(file)
    assert list(found) == list(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_layout_byte_for_byte() -> None:
    data = encode_params({"w": np.array([[1.0, 2.0]], np.float32)})
    expected = struct.pack("<QQQQ1sQ", LIST_MAGIC, 0, 1, 1, b"w", 1)
    expected += struct.pack("<QQiiiBBHqqq", TENSOR_MAGIC, 0, 1, 0, 2, 2, 32, 1, 1, 2, 8) + struct.pack("<ff", 1, 2)
    assert data == expected


def test_big_endian_and_strided_arrays_are_written_in_order(file: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    file.write_bytes(encode_params({"w": array}))
    np.testing.assert_array_equal(read_params(file)["w"], array)


def test_truth_travels_as_bytes(file: Path) -> None:
    file.write_bytes(encode_params({"w": np.array([True, False])}))
    np.testing.assert_array_equal(read_params(file)["w"], np.array([1, 0], np.uint8))


def test_a_dtype_without_a_code_is_an_error() -> None:
    with pytest.raises(ValueError, match="complex64"):
        encode_params({"w": np.zeros(1, np.complex64)})
