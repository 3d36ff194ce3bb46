from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from bench import models
from bench.litert import to_tflite
from lisiere.errors import Rejected
from lisiere_compile.bench import report
from lisiere_compile.bench import run as bench_run
from lisiere_compile.bench.peers import missing
from lisiere_compile.bench.rounds import Plan
from lisiere_compile.bench.run import OURS, bench_model, compare
from lisiere_compile.bench.subject import open_subject
from support import require, tiny
from support.artifacts import compiled

QUICK = Plan(rounds=2, seconds=0, batch_ms=0.1)


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_a_compiled_model_and_its_peer_are_measured_and_agree(peer: str, tmp_path: Path) -> None:
    require(not missing(peer), peer)
    lines: list[str] = []
    model = tiny.classifier(tmp_path / "tiny") / "model.onnx"
    (tmp_path / "work").mkdir()
    found = bench_model(model, tmp_path / "work", against=(peer,), plan=QUICK, say=lines.append)
    assert list(found.contestants) == [OURS, peer]
    for figure in found.contestants.values():
        assert figure.ms is not None
        assert figure.ms.n == 2
        assert figure.agrees
    assert found.reference == found.best_peer == peer
    difference = found.contestants[OURS].difference
    assert difference is not None
    assert 0 <= difference < 1e-5
    assert found.ratio is not None
    assert found.kernels > 0
    assert set(found.compile_s) >= {"import", "build", "link"}
    assert any("measuring" in line for line in lines)
    document = report.document([found], (peer,), 1, QUICK)
    assert document.geometric_mean == pytest.approx(found.ratio.median)
    assert msgspec.json.decode(report.encode(document), type=report.Document) == document


def test_an_artifact_is_measured_as_it_is(tmp_path: Path) -> None:
    found = bench_model(compiled("forecaster"), tmp_path, against=("onnxruntime",), plan=QUICK)
    assert found.compile_s == {}
    assert found.contestants[OURS].ms is not None
    assert found.contestants[OURS].agrees


def test_whoever_cannot_run_a_model_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], name="which")  # its output has no shape until it runs
    graph = helper.make_graph(
        [node],
        "dynamic",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2, "m"])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(tmp_path / "m.onnx")
    )
    monkeypatch.setattr(bench_run, "missing", lambda peer: "openvino is not here" if peer == "openvino" else "")
    (tmp_path / "work").mkdir()
    found = bench_model(tmp_path / "m.onnx", tmp_path / "work", plan=QUICK)
    assert found.contestants[OURS].absent.startswith("not compiled: ")
    assert found.contestants["openvino"].absent == "openvino is not here"
    assert "--tflite" in found.contestants["litert"].absent
    assert found.contestants["onnxruntime"].ms is not None
    assert found.ratio is None
    text = report.table(report.document([found], tuple(found.contestants)[1:], 1, QUICK))
    assert text.splitlines()[1].split().count("absent") == 3
    assert "m: openvino did not run: openvino is not here" in text


def test_a_tflite_model_is_compiled_and_is_its_own_for_litert(tmp_path: Path) -> None:
    require(not missing("litert"), "LiteRT")
    model = to_tflite(models.overhead(tmp_path / "m.onnx"), tmp_path / "m.tflite")
    (tmp_path / "work").mkdir()
    found = bench_model(model, tmp_path / "work", against=("onnxruntime", "litert"), plan=QUICK)
    assert {figure.absent for figure in found.contestants.values()} == {""}
    assert all(figure.agrees for figure in found.contestants.values())


def test_a_tflite_that_is_another_model_is_not_measured(tmp_path: Path) -> None:
    from support import shared_data

    require(not missing("litert"), "LiteRT")
    other = shared_data() / "models" / "ad01_fp32.tflite"
    found = bench_model(compiled("forecaster"), tmp_path, tflite=other, against=("litert",), plan=QUICK)
    assert "it is another model" in found.contestants["litert"].absent
    assert found.best_peer is None


def test_a_peer_with_another_answer_is_marked_and_no_yardstick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bench_run.compare

    def differ(found: list[np.ndarray], wanted: list[np.ndarray]) -> tuple[float | None, bool]:
        return (0.5, False) if calls.pop() else real(found, wanted)

    calls = [True, False]
    require(not missing("openvino"), "OpenVINO")
    monkeypatch.setattr(bench_run, "compare", differ)
    found = bench_model(compiled("forecaster"), tmp_path, against=("onnxruntime", "openvino"), plan=QUICK)
    assert found.contestants[OURS].agrees
    assert not found.contestants["openvino"].agrees
    assert found.best_peer == "onnxruntime"
    text = report.table(report.document([found], ("onnxruntime", "openvino"), 1, QUICK))
    assert "openvino gives another answer than onnxruntime (by 0.5)" in text


def test_answers_are_compared_by_what_rounding_explains() -> None:
    one = np.asarray([1.0, 2.0], np.float32)
    difference, agrees = compare([one], [one + np.float32(1e-4)])
    assert difference == pytest.approx(1e-4, rel=0.01)
    assert agrees
    assert compare([one], [one + np.float32(0.1)])[1] is False
    assert compare([one], [one, one]) == (None, False)
    assert compare([one], [one[:1]]) == (None, False)
    assert compare([one], [one.astype(np.float64)]) == (None, False)
    assert compare([one], [np.asarray([1.0, np.nan], np.float32)])[1] is False
    steps = np.asarray([10, 20], np.int8)
    assert compare([steps], [steps + np.int8(2)]) == (2.0, True)
    assert compare([steps], [steps + np.int8(30)]) == (30.0, False)
    positions = np.asarray([10, 20], np.int64)
    assert compare([positions], [positions]) == (0.0, True)
    assert compare([positions], [positions + 1]) == (1.0, False)
    far = np.asarray([-128], np.int8), np.asarray([127], np.int8)
    assert compare([far[0]], [far[1]]) == (255.0, False)


def test_feeds_are_the_same_every_time_and_shapes_are_filled_in(tmp_path: Path) -> None:
    model = tiny.forecaster(tmp_path / "tide") / "model.onnx"
    for work in ("a", "b"):
        (tmp_path / work).mkdir()
    first, second = open_subject(model, tmp_path / "a"), open_subject(model, tmp_path / "b", name="other")
    assert (first.name, second.name) == ("model", "other")
    np.testing.assert_array_equal(first.feeds["window"], second.feeds["window"])
    dims = onnx.load(str(first.onnx)).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 6, 1]


@pytest.mark.parametrize("content", [b"", b"neither", None])
def test_what_is_no_model_is_refused(content: bytes | None, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    if content is not None:
        model.write_bytes(content)
    with pytest.raises(Rejected, match=r"m\.onnx"):
        open_subject(model, tmp_path)


def test_importing_openvino_reports_nothing() -> None:
    require(not missing("openvino"), "OpenVINO")
    program = (
        "import sys\n"
        "seen = []\n"
        "names = ('socket.', 'os.fork', 'os.exec', 'os.posix_spawn', 'os.system', 'subprocess.')\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name.startswith(names) else None)\n"
        "from lisiere_compile.bench.peers import _unreported\n"
        "with _unreported():\n"
        "    import openvino\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')], 'it was imported'\n"
        "openvino.Core().available_devices\n"
        "print(*seen)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == ([], "")
