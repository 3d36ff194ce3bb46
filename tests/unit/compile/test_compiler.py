"""Operators through the whole compiler: every artifact here has passed its own gate against ONNX Runtime."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from lisiere.backends import open_backend
from lisiere.cli import main as lisiere
from lisiere.errors import Permanent, Rejected
from lisiere.models import open_package
from lisiere.models.manifest import Verified
from lisiere_compile import artifact, compiler
from lisiere_compile.artifact import archive_of, write_golden
from lisiere_compile.compiler import STAGES, Log, compile_job
from lisiere_compile.frontends import onnx_rewrites
from lisiere_compile.source import unpack
from lisiere_compile.verify import Verdict

from .conftest import Compile, dense, make_job, make_model, parse, write_package

node = helper.make_node
INT64 = onnx.TensorProto.INT64


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def number(value: float) -> np.ndarray[Any, Any]:
    return np.array(value, np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def window_net() -> onnx.ModelProto:
    """Normalise a window, two dense layers: what a small forecaster is made of."""
    nodes = [
        node("Slice", ["x", "from", "to", "axis"], ["last"]),
        node("Sub", ["x", "last"], ["moved"]),
        node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["square"]),
        node("ReduceMean", ["square"], ["variance"], axes=[1], keepdims=1),
        node("Add", ["variance", "eps"], ["safe"]),
        node("Sqrt", ["safe"], ["deviation"]),
        node("Div", ["moved", "deviation"], ["z"]),
        node("Reshape", ["z", "flat"], ["zf"]),
        node("Concat", ["zf", "zf"], ["both"], axis=1),
        node("Gemm", ["both", "w1", "b1"], ["h"], transB=1),
        node("Tanh", ["h"], ["t"]),
        node("MatMul", ["t", "w2"], ["o"]),
        node("Reshape", ["o", "form"], ["y"]),
    ]
    weights = {
        "from": ints(11), "to": ints(12), "axis": ints(1), "eps": number(1e-5), "flat": ints(-1, 12),
        "w1": normal(20, 24), "b1": normal(20), "w2": normal(20, 18), "form": ints(-1, 6, 3),
    }  # fmt: skip
    return make_model(nodes, {"x": ["N", 12, 1]}, {"y": ["N", 6, 3]}, weights)


def picture_net() -> onnx.ModelProto:
    """Convolution, pool, depthwise and 1x1 convolutions, global pool, dense: a small classifier."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "wd"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=12),
        node("Relu", ["d"], ["r2"]),
        node("Conv", ["r2", "w1"], ["c1"], kernel_shape=[1, 1]),
        node("Clip", ["c1", "low", "high"], ["cl"]),
        node("GlobalAveragePool", ["cl"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "wf", "bf"], ["l"]),
        node("Softmax", ["l"], ["y"], axis=1),
    ]
    weights = {
        "w": normal(12, 1, 3, 3), "b": normal(12), "wd": normal(12, 1, 3, 3), "w1": normal(20, 12, 1, 1),
        "low": number(0), "high": number(6), "wf": normal(20, 10), "bf": normal(10),
    }  # fmt: skip
    return make_model(nodes, {"x": ["N", 1, 14, 14]}, {"y": ["N", 10]}, weights)


def many_outputs() -> onnx.ModelProto:
    """Outputs that are an input, a constant, one another; a kernel with two outputs; bool between kernels."""
    nodes = [
        node("Split", ["x"], ["a", "b"], axis=1),
        node("Greater", ["x", "zero"], ["big"]),
        node("Softmax", ["x"], ["s"]),
        node("MatMul", ["s", "w"], ["m"]),
        node("Where", ["big", "m", "x"], ["y"]),
        node("Cast", ["big"], ["number"], to=INT64),
        node("ArgMax", ["number"], ["best"], axis=1),
        node("Identity", ["x"], ["same"]),
        node("Identity", ["y"], ["again"]),
        node("Identity", ["c"], ["fixed"]),
        node("Add", ["a", "b"], ["sum"]),
    ]
    outputs = {"y": [1, 8], "same": [1, 8], "again": [1, 8], "fixed": [3], "best": [1, 1], "a": [1, 4], "sum": [1, 4]}
    weights = {"zero": normal(1, 8) * 0, "w": normal(8, 8), "c": normal(3)}
    return make_model(nodes, {"x": [1, 8]}, outputs, weights, {"best": INT64})


def grouped() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], group=2, strides=[2, 2]),
        node("Sigmoid", ["c"], ["s"]),
        node("Mul", ["c", "s"], ["y"]),
    ]
    return make_model(nodes, {"x": [1, 6, 9, 9]}, {"y": [1, 10, 4, 4]}, {"w": normal(10, 3, 3, 3)})


def attention() -> onnx.ModelProto:
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        node("MatMul", ["q", "t"], ["scores"]),
        node("Softmax", ["scores"], ["a"], axis=-1),
        node("MatMul", ["a", "x"], ["o"]),
        node("LayerNormalization", ["o", "g", "b"], ["n"], axis=-1),
        node("Erf", ["n"], ["e"]),
        node("Gather", ["e", "which"], ["y"], axis=1),
    ]
    weights = {"wq": normal(16, 16), "g": normal(16), "b": normal(16), "which": ints(0, -1)}
    return make_model(nodes, {"x": [1, 5, 16]}, {"y": [1, 2, 16]}, weights)


def masked() -> onnx.ModelProto:
    """A mask that is part of the model, as causal attention has it; the best three of the sums so far."""
    nodes = [
        node("Where", ["mask", "x", "low"], ["m"]),
        node("Softmax", ["m"], ["s"], axis=-1),
        node("CumSum", ["s", "axis"], ["c"]),
        node("TopK", ["c", "k"], ["y", "places"], axis=1),
    ]
    weights = {"mask": np.tri(4, 6) > 0, "low": number(-1e9), "axis": np.array(1), "k": ints(3)}
    return make_model(nodes, {"x": [4, 6]}, {"y": [4, 3], "places": [4, 3]}, weights, {"places": INT64})


def table() -> onnx.ModelProto:
    """Integer input that is a position."""
    weights = {"t": normal(5, 8)}
    return make_model([node("Gather", ["t", "x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4, 8]}, weights, {"x": INT64})


def identity() -> onnx.ModelProto:
    return make_model([node("Identity", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}, {})


def scalar() -> onnx.ModelProto:
    return make_model([node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": [1, 4]}, {"y": []}, {})


MODELS = [window_net, picture_net, many_outputs, grouped, attention, masked, table, identity, scalar]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_model_runs_alike_under_every_backend(compile_model: Compile, make: Any) -> None:
    folder, log = compile_model(make())
    assert log.verdict.cases == 8  # four random, and the four that became golden vectors
    package = open_package(folder)
    golden = np.load(folder / "golden.npz")
    for backend in ("graph", "onnx"):
        model = open_backend(backend, package)
        for case in range(4):
            found = model.run({"x": golden["inputs/x"][case]})
            for name, array in found.items():
                np.testing.assert_allclose(array, golden[f"outputs/{name}"][case], rtol=1e-4, atol=1e-4)
        model.close()


def test_the_artifact_holds_what_libdlr_wants_and_what_the_package_said(compile_model: Compile) -> None:
    folder, log = compile_model(dense())
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "compiled.json", "compiled.meta", "compiled.params", "compiled.so", "golden.npz", "manifest.yaml", "model.onnx"
    ]  # fmt: skip
    assert list(log.seconds) == list(STAGES)
    manifest = open_package(folder).manifest
    assert set(names) == {*manifest.files, "manifest.yaml"}  # all of it stands under the digest
    assert (manifest.licence, manifest.figures) == ("CC0-1.0", {"error": 0.25})
    assert manifest.data is not None
    assert manifest.build is not None
    assert "apache-tvm" in manifest.build.tools
    meta = json.loads((folder / "compiled.meta").read_text())
    assert meta["Model"]["Outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 4]}]
    assert not list(folder.parent.glob(".*"))
    assert folder.stat().st_mode & 0o055 == 0o055


def test_no_onnx_leaves_the_onnx_file_out(compile_model: Compile) -> None:
    folder, _ = compile_model(dense(), keep_onnx=False)
    assert not (folder / "model.onnx").exists()
    assert open_package(folder).manifest.onnx is None


def test_the_same_job_gives_the_same_bytes(compile_model: Compile) -> None:
    folder, _ = compile_model(picture_net())
    first = {file.name: file.read_bytes() for file in (*folder.iterdir(), archive_of(folder))}
    shutil.rmtree(folder)
    folder, _ = compile_model(picture_net())
    second = {file.name: file.read_bytes() for file in (*folder.iterdir(), archive_of(folder))}
    assert {name for name in first if first[name] != second.get(name)} == set()


def test_the_archive_is_the_artifact(compile_model: Compile, tmp_path: Path) -> None:
    folder, _ = compile_model(dense())
    unpack(archive_of(folder), tmp_path / "unpacked")
    assert open_package(tmp_path / "unpacked").digest == open_package(folder).digest


def test_the_manifest_says_how_it_was_checked_and_what_it_takes(compile_model: Compile) -> None:
    folder, log = compile_model(dense())
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.verified == Verified(by=log.verdict.backend, cases=8)
    assert build.peak_activation_bytes is not None
    assert build.peak_activation_bytes >= 4 * (8 + 4)


def test_convolutions_are_scheduled(compile_model: Compile) -> None:
    _, log = compile_model(picture_net())
    assert not [name for name in log.unscheduled if "conv2d" in name or "matmul" in name]


def test_operators_without_a_kernel_are_all_named(compile_model: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_rewrites, "TABLE", {})
    nodes = [
        node("TopK", ["x", "k"], ["v", "i"], axis=1, name="best"),
        node("CumSum", ["v", "axis"], ["y"], name="total"),
    ]
    weights = {"k": ints(2), "axis": np.array(1, np.int64)}
    with pytest.raises(Rejected, match=r"TopK \(best\); CumSum \(total\)"):
        compile_model(make_model(nodes, {"x": [1, 8]}, {"y": [1, 2]}, weights))


def test_shapes_that_are_known_only_at_run_time_are_refused(compile_model: Compile) -> None:
    nodes = [node("NonZero", ["x"], ["n"], name="where"), node("Cast", ["n"], ["y"], to=1)]
    with pytest.raises(Rejected, match=r"only at run time.*NonZero \(where\)"):
        compile_model(make_model(nodes, {"x": [1, 4]}, {"y": [2, 4]}, {}))


def test_a_manifest_that_does_not_agree_is_refused(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", dense(), outputs=[{"name": "z", "shape": [1, 4]}])
    with pytest.raises(Rejected, match=r"declares the outputs z float32 \[1, 4\], but the compiled model has y"):
        compile_job(parse(make_job(package)), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("framework", "way"),
    [("TENSORFLOW", "tf2onnx"), ("KERAS", "export"), ("MXNET", "export_model"), ("DARKNET", "darknet2onnx")],
)
def test_a_framework_without_a_front_end_names_the_way_out(tmp_path: Path, framework: str, way: str) -> None:
    with pytest.raises(Rejected, match=f"{framework}.*{way}.*--cloud"):
        compile_job(parse(make_job("whatever", Framework=framework)), tmp_path)


def test_a_bare_model_becomes_an_artifact_of_tensors_alone(tmp_path: Path) -> None:
    onnx.save(quantised(), str(tmp_path / "my net.onnx"))
    folder = compile_job(parse(make_job("my net.onnx")), tmp_path)
    assert folder.name.startswith("my-net-")
    package = open_package(folder)
    assert (package.manifest.name, package.manifest.version) == ("my-net", "0.0.0")
    assert (package.manifest.input, package.manifest.task) == (None, None)
    assert [spec.dtype for spec in package.manifest.outputs] == ["int8"]
    assert lisiere(["models", "inspect", str(folder)]) == 0
    assert lisiere(["models", "verify", str(folder)]) == 0
    other = compile_job(parse(make_job("my net.onnx")), tmp_path, name="other", threads=2)
    assert open_package(other).manifest.name == "other"
    assert open_package(other).manifest.build.threads == 2  # type: ignore[union-attr]


def quantised() -> onnx.ModelProto:
    """int8 in and out, where the last bit may differ between runtimes."""
    small: dict[str, Any] = {"s": np.float32(0.02), "t": np.float32(0.05), "z": np.int8(3), "w": normal(8, 4)}
    nodes = [
        node("DequantizeLinear", ["x", "s", "z"], ["f"]),
        node("MatMul", ["f", "w"], ["m"]),
        node("QuantizeLinear", ["m", "t", "z"], ["y"]),
    ]
    int8 = onnx.TensorProto.INT8
    weights = {name: np.asarray(value) for name, value in small.items()}
    return make_model(nodes, {"x": [1, 8]}, {"y": [1, 4]}, weights, {"x": int8, "y": int8})


@pytest.mark.parametrize(("to", "name"), [(onnx.TensorProto.BOOL, "bool"), (onnx.TensorProto.FLOAT16, "float16")])
def test_an_output_that_no_manifest_can_name_is_refused(tmp_path: Path, to: int, name: str) -> None:
    model = make_model([node("Cast", ["x"], ["y"], to=to)], {"x": [1, 4]}, {"y": [1, 4]}, {}, {"y": to})
    onnx.save(model, str(tmp_path / "m.onnx"))
    with pytest.raises(Rejected, match=rf"output 'y' is {name}.*Cast it to"):
        compile_job(parse(make_job("m.onnx")), tmp_path)


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write_package(tmp_path / "package", dense())

    def fail(_folder: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifact, "pack", fail)
    with pytest.raises(Permanent, match="No space left"):
        compile_job(parse(make_job(package)), tmp_path)
    assert not (tmp_path / "out").exists()


def test_golden_vectors_of_the_package_are_kept_and_checked(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package", dense(), golden={"file": "g.npz"})
    inputs = normal(2, 1, 8)
    write_golden(package / "g.npz", {"x": inputs}, {"y": normal(2, 1, 4)})
    with pytest.raises(Rejected, match="from the golden vectors"):
        compile_job(parse(make_job(package)), tmp_path)
    assert not (tmp_path / "out").exists()
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in dense().graph.initializer}
    right = np.maximum(inputs @ weights["w"] + weights["b"], 0)
    write_golden(package / "g.npz", {"x": inputs}, {"y": right})
    folder = compile_job(parse(make_job(package)), tmp_path)
    np.testing.assert_array_equal(np.load(folder / "golden.npz")["outputs/y"], right)


@pytest.mark.parametrize("error", [Rejected("wrong"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_artifact_and_nothing_else(
    compile_model: Compile, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder, _ = compile_model(dense())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def fail(_folder: Path, _onnx: Path) -> Verdict:
        raise error

    monkeypatch.setattr(compiler, "verify_apart", fail)
    with pytest.raises(type(error)):
        compile_model(dense(relu="Sigmoid"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert sorted(folder.parent.iterdir()) == [folder, archive_of(folder)]


def test_a_new_artifact_replaces_the_old_one(compile_model: Compile) -> None:
    compile_model(dense())
    folder, _ = compile_model(dense(relu="Sigmoid"))
    golden = np.load(folder / "golden.npz")["outputs/y"]
    assert golden.min() >= 0
    assert golden.max() <= 1
    assert sorted(folder.parent.iterdir()) == [folder, archive_of(folder)]


def test_what_is_no_artifact_is_not_replaced(compile_model: Compile) -> None:
    folder, _ = compile_model(dense())
    (folder / "manifest.yaml").unlink()
    with pytest.raises(Rejected, match="is not an artifact"):
        compile_model(dense())


def test_a_missing_compiler_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write_package(tmp_path / "package", dense())
    monkeypatch.setenv("CC", "no-such-compiler")
    log = Log()
    with pytest.raises(Permanent, match="no-such-compiler"):
        compile_job(parse(make_job(package)), tmp_path, log=log)
    assert not log.seconds


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("byte_offset", ctypes.c_uint64),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "bits", "lanes", "count", "kind"),
    [(0, 32, 1, 2, 7), (2, 64, 1, 2, 7), (2, 32, 4, 2, 7), (2, 32, 1, 1, 7), (2, 32, 1, 2, 0)],
    ids=["int", "double", "lanes", "too few", "no tensor"],
)
def test_a_kernel_refuses_what_it_was_not_compiled_for(
    compile_model: Compile, code: int, bits: int, lanes: int, count: int, kind: int
) -> None:
    folder, _ = compile_model(make_model([node("Tanh", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]}, {}))
    graph = json.loads((folder / "compiled.json").read_text())
    library = ctypes.CDLL(str(folder / "compiled.so"))
    said: list[bytes] = []
    hook = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(said.append)
    ctypes.c_void_p.in_dll(library, "__TVMAPISetLastError").value = ctypes.cast(hook, ctypes.c_void_p).value
    kernel = library[graph["nodes"][-1]["attrs"]["func_name"]]
    shape = (ctypes.c_int64 * 2)(1, 4)
    arrays = [np.zeros(64) for _ in range(2)]
    tensors = [
        _Tensor(array.ctypes.data, 1, 0, 2, one, two, three, shape, None, 0)
        for array, (one, two, three) in zip(arrays, [(code, bits, lanes), (2, 32, 1)], strict=True)
    ]
    values = (ctypes.c_void_p * 2)(*(ctypes.addressof(tensor) for tensor in tensors))
    kinds = (ctypes.c_int * 2)(kind, kind)
    assert kernel(values, kinds, count, None, None, None) != 0
    assert said
    assert said[0]
