"""TFLite files as they come: real networks against LiteRT, and files that are damaged or beyond the converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.errors import Rejected
from lisiere_compile.frontends import to_onnx
from lisiere_compile.frontends.tflite import convert_tflite
from support import shared_data
from support.tflite import LiteRt, Op, T, make_tflite

NETWORKS = (
    "ad01_fp32", "ad01_int8", "kws_ref_model", "kws_ref_model_float32", "mobilenet_v1_0.25_128_quant",
    "pretrainedResnet", "pretrainedResnet_quant", "vww_96_float", "vww_96_int8",
)  # fmt: skip
QUANTA = 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_gives_what_litert_gives(name: str) -> None:
    file = shared_data() / "models" / f"{name}.tflite"
    session = ort.InferenceSession(convert_tflite(file, {}).SerializeToString(), providers=["CPUExecutionProvider"])
    plain, fast = LiteRt(file.read_bytes()), LiteRt(file.read_bytes(), plain=False)
    random = np.random.default_rng(11)
    for _ in range(5):
        feed = plain.random_feed(random)
        found, first, second = session.run(None, feed)[0], plain.run(feed)[0], fast.run(feed)[0]
        assert found.dtype == first.dtype
        assert found.argmax() in (first.argmax(), second.argmax())
        if found.dtype != np.float32:
            # LiteRT's own kernels differ from each other, by up to 28 quanta of pretrainedResnet_quant's softmax.
            apart = np.abs(first.astype(int) - second.astype(int)).max()
            assert np.abs(found.astype(int) - second.astype(int)).max() <= max(QUANTA, apart)
        elif name == "kws_ref_model_float32":
            # Its weights are integers, so LiteRT rounds the activations to integers too.
            np.testing.assert_allclose(found, second, atol=0.02)
        else:
            np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(second).max())))


def tiny() -> bytes:
    w = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensors = [T("x", [1, 4]), T("w", [3, 4], data=w), T("h", [1, 3]), T("y", [1, 3])]
    operators = [
        Op("FULLY_CONNECTED", ["x", "w", ""], ["h"], "FullyConnected"),
        Op("SOFTMAX", ["h"], ["y"], "Softmax", {"beta": 1.0}),
    ]
    return make_tflite(tensors, operators, ["x"], ["y"])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.tflite"


def test_the_converted_file_is_written_into_the_work_folder(file: Path, tmp_path: Path) -> None:
    file.write_bytes(tiny())
    (tmp_path / "work").mkdir()
    made = to_onnx(file, "TFLITE", tmp_path / "work", {"x": (1, 4)})
    assert made.parent == tmp_path / "work"
    session = ort.InferenceSession(str(made), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros((1, 4), np.float32)})[0] == pytest.approx(np.full((1, 3), 1 / 3))


def test_unknown_operators_are_all_named(file: Path) -> None:
    tensors = [T("x", [4]), T("a", [4]), T("y", [4])]
    operators = [Op("RFFT2D", ["x"], ["a"]), Op("LSTM", ["a"], ["y"])]
    file.write_bytes(make_tflite(tensors, operators, ["x"], ["y"]))
    with pytest.raises(Rejected, match=r"LSTM \(#1, which makes y\); RFFT2D \(#0, which makes a\)"):
        convert_tflite(file, {})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [({"z": (1, 4)}, "names z, but the inputs of m.tflite are x"), ({"x": (2, 4)}, r"gives \[2, 4\].*\[1, 4\]")],
)
def test_wrong_shapes_in_the_job_are_refused(file: Path, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    file.write_bytes(tiny())
    with pytest.raises(Rejected, match=words):
        convert_tflite(file, shapes)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x00" * 64, b"\x08\x00\x00\x00ONNX" * 9, b"\xff\xff\xff\x7fTFL3" * 9])
def test_other_bytes_are_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(Rejected, match=r"not a TFLite file|not a whole TFLite file|cannot be read"):
        convert_tflite(file, {})


@pytest.mark.parametrize("shape", [[1 << 30, 1 << 30], [-4]])
def test_shapes_that_no_tensor_has_are_refused(file: Path, shape: list[int]) -> None:
    file.write_bytes(make_tflite([T("x", shape), T("y", shape)], [Op("RELU", ["x"], ["y"])], ["x"], ["y"]))
    with pytest.raises(Rejected, match="which no tensor can have"):
        convert_tflite(file, {})


def test_a_constant_of_another_size_is_refused(file: Path) -> None:
    tensors = [T("x", [4]), T("w", [5], data=np.zeros(4, np.float32)), T("y", [4])]
    file.write_bytes(make_tflite(tensors, [Op("ADD", ["x", "w"], ["y"], "Add")], ["x"], ["y"]))
    with pytest.raises(Rejected, match="has 16 bytes of float32"):
        convert_tflite(file, {})


def test_scales_that_do_not_fit_are_refused(file: Path) -> None:
    x = T("x", [4], "int8", None, [0.1, 0.2], [0, 0])
    file.write_bytes(make_tflite([x, x._replace(name="y")], [Op("RELU", ["x"], ["y"])], ["x"], ["y"]))
    with pytest.raises(Rejected, match="scales that do not fit"):
        convert_tflite(file, {})


def test_a_cut_file_is_refused_or_whole(file: Path) -> None:
    """Whatever is cut off: an error of ours, or what was cut off did not matter."""
    whole = tiny()
    refused = 0
    for end in range(0, len(whole), 16):
        file.write_bytes(whole[:end])
        try:
            convert_tflite(file, {})
        except Rejected:
            refused += 1
    assert refused > len(whole) // 16 * 0.9


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(8, 4000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_end_in_an_error_of_ours_or_in_a_model(changes: list[tuple[int, int]]) -> None:
    import tempfile

    data = bytearray(tiny())
    for place, value in changes:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.tflite"
        file.write_bytes(data)
        try:
            convert_tflite(file, {})
        except Rejected:
            return
