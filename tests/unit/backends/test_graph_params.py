"""The reader of parameter files: what is whole is read, and all else is Permanent, whatever the bytes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.backends.graph import read_params
from lisiere.errors import Permanent

PARAMS_MAGIC, TENSOR_MAGIC = 0xF7E58D4F05049CB7, 0xDD5E40F096B4A13F
CODES = {"i": 0, "u": 1, "f": 2}
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")


def tensor(
    shape: tuple[int, ...] = (2, 3),
    code: int = 2,
    bits: int = 32,
    data: bytes = bytes(24),
    lanes: int = 1,
    ndim: int | None = None,
    size: int | None = None,
    magic: int = TENSOR_MAGIC,
) -> bytes:
    return (
        struct.pack("<QQiiiBBH", magic, 0, 1, 0, len(shape) if ndim is None else ndim, code, bits, lanes)
        + struct.pack(f"<{len(shape)}q", *shape)
        + struct.pack("<q", len(data) if size is None else size)
        + data
    )


def names(*given: bytes, count: int | None = None, lengths: tuple[int, ...] | None = None) -> bytes:
    made = struct.pack("<Q", len(given) if count is None else count)
    for name, length in zip(given, lengths or tuple(map(len, given)), strict=True):
        made += struct.pack("<Q", length) + name
    return made


def file(heads: bytes, tensors: tuple[bytes, ...], magic: int = PARAMS_MAGIC, count: int | None = None) -> bytes:
    return (
        struct.pack("<QQ", magic, 0)
        + heads
        + struct.pack("<Q", len(tensors) if count is None else count)
        + b"".join(tensors)
    )


def written(arrays: dict[str, NDArray[Any]]) -> bytes:
    return file(
        names(*(name.encode() for name in arrays)),
        tuple(
            tensor(array.shape, CODES[array.dtype.kind], array.dtype.itemsize * 8, array.tobytes())
            for array in arrays.values()
        ),
    )


def read(tmp_path: Path, data: bytes) -> dict[str, NDArray[Any]]:
    path = tmp_path / "m.params"
    path.write_bytes(data)
    return read_params(path)


ARRAYS: dict[str, NDArray[Any]] = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "größe": np.asarray([-1, 2], np.int64),
    "scalar": np.asarray(7, np.uint8),
    "empty": np.zeros((0, 4), np.float64),
    "last": np.asarray([1.5], np.float16),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, written(ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        assert (found[name] == array).all()


def test_a_file_without_parameters_is_whole(tmp_path: Path) -> None:
    assert read(tmp_path, written({})) == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name < "\ud800" or name > "\udfff"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4)),
        max_size=4,
    )
)
def test_any_parameters_come_back(tmp_path: Path, what: dict[str, tuple[str, list[int]]]) -> None:
    arrays = {name: np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape) for name, (dtype, shape) in what.items()}
    found = read(tmp_path, written(arrays))
    assert list(found) == list(arrays)
    assert all((found[name] == array).all() and found[name].dtype == array.dtype for name, array in arrays.items())


def test_a_file_cut_off_at_any_byte_is_permanent(tmp_path: Path) -> None:
    whole = written(ARRAYS)
    for at in range(len(whole)):
        with pytest.raises(Permanent, match=r"m\.params"):
            read(tmp_path, whole[:at])


def test_a_file_without_parameters_cut_off_at_any_byte_is_permanent(tmp_path: Path) -> None:
    whole = written({})
    for at in range(len(whole)):
        with pytest.raises(Permanent):
            read(tmp_path, whole[:at])


W = (b"w",)
HUGE = 2**63 - 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        b"\xff" * 200,
        file(names(*W), (tensor(),), magic=1),
        file(names(*W), (tensor(magic=1),)),
        file(names(*W), (tensor(),), count=0),
        file(names(*W), (tensor(),), count=2),
        file(names(*W, count=2), (tensor(),)),
        file(names(*W, count=2**64 - 1), (tensor(),)),
        file(names(*W, lengths=(2**64 - 1,)), (tensor(),)),
        file(names(*W, lengths=(2**63,)), (tensor(),)),
        file(names(*W, lengths=(0,)), (tensor(),)),
        file(names(b"\xff\xfe"), (tensor(),)),
        file(names(*W), (tensor(lanes=4),)),
        file(names(*W), (tensor(code=3),)),
        file(names(*W), (tensor(code=4, bits=16),)),
        file(names(*W), (tensor(bits=0),)),
        file(names(*W), (tensor(bits=1),)),
        file(names(*W), (tensor(bits=8),)),
        file(names(*W), (tensor(bits=31),)),
        file(names(*W), (tensor(bits=128),)),
        file(names(*W), (tensor(ndim=-1),)),
        file(names(*W), (tensor(ndim=2**31 - 1),)),
        file(names(*W), (tensor(ndim=1),)),
        file(names(*W), (tensor(shape=(1,) * 70, data=bytes(4)),)),
        file(names(*W), (tensor(shape=(-1,)),)),
        file(names(*W), (tensor(shape=(-2, -3)),)),
        file(names(*W), (tensor(shape=(-6, 0), data=b""),)),
        file(names(*W), (tensor(shape=(7,)),)),
        file(names(*W), (tensor(shape=(5,)),)),
        file(names(*W), (tensor(shape=(HUGE, HUGE)),)),
        file(names(*W), (tensor(shape=(HUGE,), size=HUGE),)),
        file(names(*W), (tensor(size=-24),)),
        file(names(*W), (tensor(size=0),)),
        file(names(*W), (tensor(size=23),)),
        file(names(*W), (tensor(size=25),)),
        file(names(*W), (tensor(size=HUGE),)),
    ],
)
def test_what_is_not_of_the_format_is_permanent(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Permanent, match=r"m\.params"):
        read(tmp_path, data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.integers(0, 400), st.binary(min_size=1, max_size=9))
def test_any_damage_is_permanent_or_harmless(tmp_path: Path, at: int, junk: bytes) -> None:
    data = bytearray(written(ARRAYS))
    data[at : at + len(junk)] = junk
    try:
        found = read(tmp_path, bytes(data))
    except Permanent:
        return
    assert sum(array.nbytes for array in found.values()) <= len(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_permanent_or_harmless(tmp_path: Path, data: bytes) -> None:
    for start in (b"", struct.pack("<QQ", PARAMS_MAGIC, 0), file(names(*W), ())[:-8] + struct.pack("<Q", 1)):
        try:
            read(tmp_path, start + data)
        except Permanent as error:
            assert "m.params" in str(error)  # noqa: PT017 - both ends are allowed
