from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from lisiere.errors import Rejected
from lisiere_compile.frontends.onnx import first_line, read_onnx, to_relax

from ..conftest import dense, make_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


def save(model: onnx.ModelProto, file: Path) -> Path:
    onnx.save(model, str(file))
    return file


def test_a_dynamic_batch_is_one(file: Path) -> None:
    model = read_onnx(save(dense("N"), file), {})
    assert [(spec.name, spec.shape, spec.dtype) for spec in model.inputs] == [("x", (1, 8), "float32")]
    assert model.outputs == ("y",)


def test_the_job_fixes_dynamic_dimensions(file: Path) -> None:
    assert read_onnx(save(dense("N"), file), {"x": (3, 8)}).inputs[0].shape == (3, 8)


def test_other_dynamic_dimensions_are_named(file: Path) -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", 3, "high", "wide"]}, {"y": []}, {})
    with pytest.raises(Rejected, match=r"2 \(high\), 3 \(wide\).*DataInputConfig"):
        read_onnx(save(model, file), {})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"z": (1, 8)}, "names z, but the inputs of m.onnx are x"),
        ({"x": (8,)}, "with 2 dimensions"),
        ({"x": (1, 9)}, r"gives \[1, 9\], but the input 'x'"),
    ],
)
def test_wrong_shapes_in_the_job_are_refused(file: Path, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        read_onnx(save(dense(), file), shapes)


def test_initialisers_among_the_inputs_are_no_inputs(file: Path) -> None:
    model = dense()
    model.graph.input.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [8, 4]))
    assert [spec.name for spec in read_onnx(save(model, file), {}).inputs] == ["x"]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 100, b"\x08\x07" * 3, bytes(range(256))])
def test_other_bytes_are_refused(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(Rejected, match=r"not an ONNX file|not a valid"):
        read_onnx(file, {})


def test_a_truncated_file_is_refused_wherever_it_ends(file: Path) -> None:
    whole = dense().SerializeToString()
    for end in range(1, len(whole), 7):
        file.write_bytes(whole[:end])
        with pytest.raises(Rejected):
            read_onnx(file, {})


def test_all_unknown_operators_are_named_with_their_nodes(file: Path) -> None:
    nodes = [
        helper.make_node("RNN", ["x", "w", "r"], ["a"], name="memory", hidden_size=2),
        helper.make_node("Det", ["x"], ["y"]),
    ]
    weights = {"w": np.zeros((1, 2, 2), np.float32), "r": np.zeros((1, 2, 2), np.float32)}
    model = make_model(nodes, {"x": [2, 2, 2]}, {"y": [2], "a": [2, 1, 2, 2]}, weights)
    with pytest.raises(Rejected, match=r"Det \(the one that makes y\); RNN \(memory\)"):
        read_onnx(save(model, file), {})


def test_another_domain_is_not_the_same_operator(file: Path) -> None:
    model = make_model([helper.make_node("Relu", ["x"], ["y"], domain="my.ops")], {"x": [1]}, {"y": [1]}, {})
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with pytest.raises(Rejected, match=r"my\.ops\.Relu"):
        read_onnx(save(model, file), {})


def test_control_flow_is_refused(file: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "b", [], [helper.make_tensor_value_info("b", 1, [1])]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch, name="choice")
    model = make_model([node], {"x": [1]}, {"y": [1]}, {"c": np.array(True)})
    with pytest.raises(Rejected, match=r"If \(choice\)"):
        read_onnx(save(model, file), {})


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    model = dense()
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(Rejected, match="one file"):
        read_onnx(tmp_path / "m.onnx", {})


def test_an_element_type_without_a_name_is_refused(file: Path) -> None:
    types = {"x": onnx.TensorProto.BOOL, "y": onnx.TensorProto.BOOL}
    model = make_model([helper.make_node("Not", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, {}, types)
    with pytest.raises(Rejected, match="element type"):
        read_onnx(save(model, file), {})


def test_the_importer_prints_nothing(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model([helper.make_node("Reshape", ["x", "s"], ["y"])], {"x": [2], "s": [1]}, {"y": [2]}, {},
                       {"s": onnx.TensorProto.INT64})  # fmt: skip
    with pytest.raises(Rejected, match="cannot be converted"):
        to_relax(read_onnx(save(model, file), {}), "m")
    assert capfd.readouterr().out == ""


def test_first_line_is_a_sentence() -> None:
    assert first_line(ValueError("\n  bad thing.\nmore")) == "bad thing."
    assert first_line(KeyError()) == "KeyError."
