"""Model folders: whatever is wrong with one, it is Rejected before anything of it is loaded."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lisiere.documents import MAX_BYTES
from lisiere.errors import Rejected
from lisiere.models import Manifest, TensorSpec, open_package, write_manifest
from lisiere.models.manifest import Anomaly, Classification, Forecasting, ImageInput, NeoFiles, WindowInput
from lisiere.models.package import GRAPH_MAX_BYTES, NEO_SUFFIXES, find_manifest, read_manifest

LABELS = "ash\nbeech\noak\n"


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may come as far as loading a library."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a library was loaded")

    monkeypatch.setattr(ctypes, "CDLL", never)


def classifier(**changes: Any) -> Manifest:
    manifest = Manifest(
        schema="lisiere.model/1",
        name="trees",
        version="1.0.0",
        inputs=(TensorSpec(name="image", shape=(1, 3, 8, 8)),),
        outputs=(TensorSpec(name="scores", shape=(1, 3)),),
        input=ImageInput(),
        task=Classification(labels="labels.txt"),
        files={},
        onnx="model.onnx",
    )
    return msgspec.structs.replace(manifest, **changes)


def forecaster(**changes: Any) -> Manifest:
    manifest = classifier(
        inputs=(TensorSpec(name="window", shape=(1, 6, 2)),),
        outputs=(TensorSpec(name="quantiles", shape=(1, 2, 3)),),
        input=WindowInput(channels=("level", "wind"), length=6, step_s=60.0, max_gap=2),
        task=Forecasting(horizon=2, quantiles=(0.1, 0.5, 0.9), channel="level"),
    )
    return msgspec.structs.replace(manifest, **changes)


def detector(**changes: Any) -> Manifest:
    return forecaster(
        **{"outputs": (TensorSpec(name="score", shape=(1, 1)),), "task": Anomaly(threshold=1.0), **changes}
    )


def folder(at: Path, manifest: Manifest | None = None) -> Path:
    """A model folder as its manifest says, with files of no use but the right digests."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "labels.txt").write_text(LABELS)
    (at / "model.onnx").write_bytes(b"not really ONNX")
    write_manifest(manifest or classifier(), at / "model.yaml")
    return at


def edited(at: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The folder with its manifest's document changed, past every check of `write_manifest`."""
    document = yaml.safe_load((at / "model.yaml").read_text())
    edit(document)
    (at / "model.yaml").write_text(yaml.safe_dump(document, allow_unicode=True))
    return at


def declare(at: Path, manifest: Manifest) -> Path:
    """A folder whose manifest is written down without a look at its meaning."""
    folder(at)
    files = yaml.safe_load((at / "model.yaml").read_text())["files"]
    if not isinstance(manifest.task, Classification):
        del files["labels.txt"]
    document = msgspec.to_builtins(manifest)
    document["files"] = files
    (at / "model.yaml").write_text(yaml.safe_dump(document))
    return at


@pytest.mark.parametrize("manifest", [classifier(), forecaster(), detector()])
def test_a_whole_folder_is_opened(tmp_path: Path, manifest: Manifest) -> None:
    path = folder(tmp_path, manifest)
    package = open_package(path)
    assert package.path == path
    assert package.manifest.name == "trees"
    assert package.labels() == (("ash", "beech", "oak") if isinstance(manifest.task, Classification) else ())
    assert package.digest == "sha256:" + hashlib.sha256((path / "model.yaml").read_bytes()).hexdigest()


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "model.onnx").write_bytes(b"x")
    sealed = write_manifest(classifier(description="Bäume — 木"), tmp_path / "manifest.yaml")
    assert read_manifest(tmp_path / "manifest.yaml") == sealed
    assert set(sealed.files) == {"labels.txt", "model.onnx"}


def test_a_compiled_manifest_goes_before_an_authored_one(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "manifest.yaml").write_text("")
    assert find_manifest(tmp_path).name == "manifest.yaml"


@pytest.mark.parametrize("name", ["", "absent", "a-file"])
def test_what_is_no_model_folder_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").write_text("x")
    with pytest.raises(Rejected, match="folder"):
        open_package(tmp_path / name)


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "model.onnx").write_bytes(b"not really onnx")
    with pytest.raises(Rejected, match="SHA-256"):
        open_package(path)


@pytest.mark.parametrize("data", [b"", b"not really ONN", b"not really ONNX."])
def test_another_size_is_found(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path)
    (path / "model.onnx").write_bytes(data)
    with pytest.raises(Rejected, match="bytes"):
        open_package(path)


@pytest.mark.parametrize("name", ["model.onnx", "labels.txt"])
def test_a_missing_file_is_found(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path)
    (path / name).unlink()
    with pytest.raises(Rejected, match=f"lists {name}"):
        open_package(path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = folder(tmp_path / "model")
    (tmp_path / "elsewhere").write_bytes((path / "model.onnx").read_bytes())
    (path / "model.onnx").unlink()
    (path / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Rejected, match=r"model\.onnx"):
        open_package(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_found(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = folder(tmp_path)
    (path / "model.onnx").unlink()
    make(path / "model.onnx")
    with pytest.raises(Rejected, match=r"model\.onnx"):
        open_package(path)


NAMES = [
    "..",
    ".",
    "",
    "../model.onnx",
    "/etc/passwd",
    "a/b",
    "a\\b",
    ".hidden",
    "-rf",
    "model.onnx\n",
    "mödel",
    "a\x00b",
    "x" * 129,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["files"][name] = document["files"].pop("model.onnx")

    with pytest.raises(Rejected, match="is not a manifest"):
        open_package(edited(folder(tmp_path), rename))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["onnx", "task.labels", "golden.file", "neo.library"])
def test_nor_can_the_name_of_a_role(tmp_path: Path, name: str, role: str) -> None:
    def refer(document: dict[str, Any]) -> None:
        if role == "neo.library":
            document["neo"] = {"graph": "g", "params": "p", "library": name}
        elif role == "golden.file":
            document["golden"] = {"file": name}
        elif role == "onnx":
            document["onnx"] = name
        else:
            document["task"]["labels"] = name

    with pytest.raises(Rejected, match="is not a manifest"):
        open_package(edited(folder(tmp_path), refer))


def test_a_role_without_a_digest_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"model\.onnx without listing its digest"):
        open_package(edited(folder(tmp_path), lambda document: document["files"].pop("model.onnx")))


def test_a_folder_with_nothing_to_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="nothing to run"):
        open_package(edited(folder(tmp_path), lambda document: document.update(onnx=None)))


@pytest.mark.parametrize(
    "place",
    ["", "inputs.0", "outputs.0", "input", "task", "files.labels\\.txt"],
)
def test_unknown_keys_are_rejected_everywhere(tmp_path: Path, place: str) -> None:
    def add(document: dict[str, Any]) -> None:
        at: Any = document
        for key in place.replace("\\.", "\x00").split(".") if place else []:
            at = at[int(key)] if key.isdigit() else at[key.replace("\x00", ".")]
        at["surprise"] = 1

    with pytest.raises(Rejected, match="surprise"):
        open_package(edited(folder(tmp_path), add))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "lisiere.model/2"),
        ("schema", None),
        ("name", "a/b"),
        ("name", ""),
        ("name", "trees\n"),
        ("version", "1"),
        ("version", "1.0"),
        ("version", "1.0.0\n"),
        ("version", 1.0),
        ("inputs", []),
        ("outputs", []),
        ("inputs", [{"name": "image", "shape": [1, 3, 0, 8]}]),
        ("inputs", [{"name": "image", "shape": [1, 3, -8, 8]}]),
        ("inputs", [{"name": "image", "shape": [1, 3, None, 8]}]),
        ("inputs", [{"name": "image", "shape": [1, 3, "8", 8]}]),
        ("inputs", [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "float16"}]),
        ("inputs", [{"name": "image", "shape": [1, 3, 8, 8], "dtype": "object"}]),
        ("input", {"type": "sound"}),
        ("input", {"type": "image", "fit": "squeeze"}),
        ("input", {"type": "image", "fill": 256}),
        ("task", {"type": "classification"}),
        ("task", {"type": "classification", "labels": "labels.txt", "top": 0}),
        ("files", {}),
        ("files", {"model.onnx": {"sha256": "0" * 63, "bytes": 5}}),
        ("files", {"model.onnx": {"sha256": "G" * 64, "bytes": 5}}),
        ("files", {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}),
        ("files", {"model.onnx": {"sha256": "0" * 64}}),
        ("golden", {"file": "g.npz", "rtol": -1.0}),
        ("golden", {"file": "g.npz", "atol": float("nan")}),
    ],
)
def test_what_is_not_of_the_schema_is_rejected(tmp_path: Path, key: str, value: object) -> None:
    path = edited(folder(tmp_path), lambda document: document.update({key: value}))
    with pytest.raises(Rejected, match="is not a manifest"):
        open_package(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00",
        b"a: [",
        b"\x00",
        b"version: 2026-99-99",
        b"name: !!bool perhaps",
        b'name: !!int ""',
        b"name: !!timestamp never",
        b"name: !!python/object/apply:os.system [true]",
        b"[" * 20_000,
    ],
)
def test_what_is_not_yaml_is_rejected(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path)
    (path / "model.yaml").write_bytes(data)
    with pytest.raises(Rejected, match="is not YAML"):
        open_package(path)


@pytest.mark.parametrize("data", [b"", b"5", b"[]", b"~", b"{}", b"figures: &a {x: *a}", b"files: &a [*a]"])
def test_yaml_that_is_no_manifest_is_rejected(tmp_path: Path, data: bytes) -> None:
    path = folder(tmp_path)
    (path / "model.yaml").write_bytes(data)
    with pytest.raises(Rejected, match="is not a manifest"):
        open_package(path)


def test_an_oversized_manifest_is_not_read(tmp_path: Path) -> None:
    path = folder(tmp_path)
    os.truncate(path / "model.yaml", MAX_BYTES + 1)
    with pytest.raises(Rejected, match="larger than"):
        open_package(path)


def test_a_manifest_that_goes_away_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="cannot be read"):
        read_manifest(tmp_path / "model.yaml")


IMAGE, SCORES = TensorSpec(name="image", shape=(1, 3, 8, 8)), TensorSpec(name="scores", shape=(1, 3))
WINDOW = WindowInput(channels=("level", "wind"), length=6, step_s=60.0)
NAN, INF = float("nan"), float("inf")


def series_input(**changes: Any) -> WindowInput:
    return msgspec.structs.replace(WINDOW, **changes)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (classifier(inputs=(IMAGE, IMAGE)), "2 inputs"),
        (classifier(inputs=(TensorSpec(name="image", shape=(3, 8, 8)),)), "shape"),
        (classifier(inputs=(TensorSpec(name="image", shape=(2, 3, 8, 8)),)), "shape"),
        (classifier(inputs=(TensorSpec(name="image", shape=(1, 8, 8, 3)),)), "channels"),
        (classifier(inputs=(TensorSpec(name="image", shape=(1, 1, 8, 8)),)), "channels"),
        (classifier(input=ImageInput(layout="NHWC")), "channels"),
        (classifier(input=ImageInput(colour="gray")), "channels"),
        (classifier(input=ImageInput(mean=(1.0, 2.0))), "input.mean"),
        (classifier(input=ImageInput(mean=())), "input.mean"),
        (classifier(input=ImageInput(mean=(NAN,))), "input.mean"),
        (classifier(input=ImageInput(scale=(1.0,) * 4)), "input.scale"),
        (classifier(input=ImageInput(scale=(1.0, INF, 1.0))), "input.scale"),
        (classifier(input=WINDOW), "fill the input"),
        (classifier(task=Anomaly(threshold=1.0)), "images go with"),
        (forecaster(task=Classification(labels="labels.txt")), "images go with"),
        (forecaster(input=series_input(length=7)), "fill the input"),
        (forecaster(input=series_input(channels=("level",))), "fill the input"),
        (forecaster(input=series_input(step_s=INF)), "step_s"),
        (forecaster(input=series_input(max_gap=6)), "max_gap"),
        (forecaster(task=Forecasting(horizon=3, quantiles=(0.1, 0.5, 0.9), channel="level")), "fill the output"),
        (forecaster(task=Forecasting(horizon=2, quantiles=(0.1, 0.9), channel="level")), "fill the output"),
        (forecaster(task=Forecasting(horizon=2, quantiles=(0.5, 0.1, 0.9), channel="level")), "must rise"),
        (forecaster(task=Forecasting(horizon=2, quantiles=(0.1, 0.1, 0.9), channel="level")), "must rise"),
        (forecaster(task=Forecasting(horizon=2, quantiles=(0.1, 0.5, 0.9), channel="rain")), "rain"),
        (detector(outputs=(SCORES,)), "anomaly output"),
        (detector(task=Anomaly(threshold=1.0, output="reconstruction")), "anomaly output"),
        (detector(task=Anomaly(threshold=1.0, output="residual")), "rows of"),
        (detector(task=Anomaly(threshold=NAN)), "threshold"),
        (detector(task=Anomaly(threshold=-INF)), "threshold"),
    ],
)
def test_parts_that_do_not_agree_are_rejected(tmp_path: Path, manifest: Manifest, says: str) -> None:
    with pytest.raises(Rejected, match=says):
        open_package(declare(tmp_path / "read", manifest))
    with pytest.raises(Rejected, match=says):
        folder(tmp_path / "written", manifest)
    assert not (tmp_path / "written" / "model.yaml").exists()


def test_a_manifest_is_not_written_for_files_that_are_absent(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"labels\.txt, model\.onnx"):
        write_manifest(classifier(), tmp_path / "model.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("ash\nbeech\noak", True),
        ("ash\r\nbeech\r\noak\r\n", True),
        ("\nash\n\n beech \noak\n\n", True),
        ("\ufeffash\nbeech\noak\n", True),
        ("ash\nbeech\n", False),
        ("ash\nbeech\noak\nyew\n", False),
        ("", False),
    ],
)
def test_there_are_as_many_labels_as_classes(tmp_path: Path, text: str, good: bool) -> None:
    path = folder(tmp_path)
    (path / "labels.txt").write_bytes(text.encode())
    write_manifest(classifier(), path / "model.yaml")
    if good:
        assert open_package(path).labels() == ("ash", "beech", "oak")
    else:
        with pytest.raises(Rejected, match="labels"):
            open_package(path)


def test_labels_that_are_not_text_are_rejected(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "labels.txt").write_bytes(b"ash\nb\xeatre\noak\n")
    write_manifest(classifier(), path / "model.yaml")
    with pytest.raises(Rejected, match="UTF-8"):
        open_package(path)


# The Neo artifact: image (1x3x8x8) and weight -> conv -> scores (1x3).
def graph() -> dict[str, Any]:
    return {
        "nodes": [
            {"op": "null", "name": "image", "inputs": []},
            {"op": "null", "name": "weight", "inputs": []},
            {
                "op": "tvm_op",
                "name": "conv",
                "attrs": {"func_name": "conv", "flatten_data": "0", "num_inputs": "2", "num_outputs": "1"},
                "inputs": [[0, 0, 0], [1, 0, 0]],
            },
        ],
        "arg_nodes": [0, 1],
        "heads": [[2, 0, 0]],
        "attrs": {
            "dltype": ["list_str", ["float32", "float32", "float32"]],
            "shape": ["list_shape", [[1, 3, 8, 8], [3, 192], [1, 3]]],
            "storage_id": ["list_int", [0, 1, 2]],
        },
        "node_row_ptr": [0, 1, 2, 3],
    }


def artifact(at: Path, document: object, manifest: Manifest | None = None) -> Path:
    at.mkdir(parents=True, exist_ok=True)
    (at / "m.json").write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    (at / "m.params").write_bytes(b"")
    (at / "m.so").write_bytes(b"\x7fELF but no library")
    neo = NeoFiles(graph="m.json", params="m.params", library="m.so")
    return folder(at, msgspec.structs.replace(manifest or classifier(), neo=neo))


def test_an_artifact_whose_graph_fits_is_opened(tmp_path: Path) -> None:
    assert open_package(artifact(tmp_path, graph())).manifest.neo is not None


def test_an_output_may_have_another_shape_of_the_same_size(tmp_path: Path) -> None:
    document = graph()
    document["attrs"]["shape"][1][2] = [3]
    open_package(artifact(tmp_path, document))


def spoil(*path: object) -> Callable[[object], dict[str, Any]]:
    def put(value: object) -> dict[str, Any]:
        document = graph()
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        return document

    return put


@pytest.mark.parametrize(
    "document",
    [
        spoil("attrs", "shape", 1, 0)([1, 3, 8, 9]),
        spoil("attrs", "shape", 1, 0)([1, 8, 8, 3]),
        spoil("attrs", "shape", 1, 0)([3, 8, 8]),
        spoil("attrs", "shape", 1, 0)([]),
        spoil("attrs", "shape", 1, 2)([1, 4]),
        spoil("attrs", "shape", 1, 2)([-1, -3]),
        spoil("attrs", "shape", 1)([[1, 3, 8, 8]]),
        spoil("attrs", "shape", 1)([]),
        spoil("attrs", "dltype", 1, 0)("float64"),
        spoil("attrs", "dltype", 1, 0)("uint8"),
        spoil("attrs", "dltype", 1, 2)("float64"),
        spoil("attrs", "dltype", 1)(["float32"]),
        spoil("attrs", "storage_id", 1)([0]),
        spoil("nodes", 0, "name")("picture"),
        spoil("nodes")([]),
        spoil("nodes", 2, "inputs")([[2, 0, 0]]),
        spoil("nodes", 2, "inputs")([[3, 0, 0]]),
        spoil("nodes", 2, "inputs")([[-1, 0, 0]]),
        spoil("nodes", 2, "inputs")([[0, 1, 0]]),
        spoil("nodes", 2, "inputs")([[0, -1, 0]]),
        spoil("nodes", 2, "inputs")([[0]]),
        spoil("nodes", 2, "attrs")([]),
        spoil("arg_nodes")([0, 2]),
        spoil("arg_nodes")([0, 7]),
        spoil("arg_nodes")([-3]),
        spoil("heads")([]),
        spoil("heads")([[2, 1, 0]]),
        spoil("heads")([[2, -1, 0]]),
        spoil("heads")([[-1, 0, 0]]),
        spoil("heads")([[9, 0, 0]]),
        spoil("heads")([[2]]),
        spoil("heads")([[2, 0, 0], [2, 0, 0]]),
        spoil("node_row_ptr")([]),
        spoil("node_row_ptr")([0, 1, 2]),
        spoil("node_row_ptr")([0, 1, 2, 9]),
        spoil("node_row_ptr")([1, 2, 3, 3]),
        spoil("node_row_ptr")([0, 2, 1, 3]),
        spoil("node_row_ptr")([0, -1, 2, 3]),
        {},
        [],
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"x":' * 20_000,
    ],
)
def test_a_graph_that_is_not_the_manifests_is_rejected(tmp_path: Path, document: object) -> None:
    path = artifact(tmp_path, document)
    with pytest.raises(Rejected, match=r"m\.json"):
        open_package(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.data())
def test_any_number_in_a_graph_is_harmless_or_rejected(tmp_path: Path, data: st.DataObject) -> None:
    places: list[tuple[object, ...]] = [
        ("arg_nodes", 0),
        ("heads", 0, 0),
        ("heads", 0, 1),
        ("nodes", 2, "inputs", 0, 0),
        ("nodes", 2, "inputs", 1, 1),
        ("attrs", "shape", 1, 0, 1),
        ("attrs", "shape", 1, 1, 0),
        ("attrs", "storage_id", 1, 0),
        ("node_row_ptr", 1),
    ]
    place = data.draw(st.sampled_from(places))
    number = data.draw(st.integers(-4, 8) | st.integers())
    path = artifact(tmp_path, spoil(*place)(number))
    try:
        open_package(path)
    except Rejected as error:
        assert "m.json" in str(error)  # noqa: PT017 - both ends are allowed


def test_an_oversized_graph_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = artifact(tmp_path, graph())
    monkeypatch.setattr("lisiere.models.package.GRAPH_MAX_BYTES", 10)
    assert GRAPH_MAX_BYTES > 1 << 20
    with pytest.raises(Rejected, match="larger than 10 bytes"):
        open_package(path)


@pytest.mark.parametrize("suffix", sorted(NEO_SUFFIXES))
def test_a_file_that_a_runtime_would_pick_up_must_be_listed(tmp_path: Path, suffix: str) -> None:
    path = artifact(tmp_path, graph())
    (path / f"other{suffix}").write_bytes(b"x")
    with pytest.raises(Rejected, match=f"other{suffix}"):
        open_package(path)


@pytest.mark.parametrize("name", ["README.md", "libdlr.so", "compiled.meta", "notes.yaml"])
def test_other_files_may_lie_about(tmp_path: Path, name: str) -> None:
    path = artifact(tmp_path, graph())
    (path / name).write_bytes(b"x")
    open_package(path)


def test_an_authored_package_may_hold_its_job_and_its_training(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "job.json").write_text("{}")
    (path / "train.py").write_text("")
    open_package(path)


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(key=st.sampled_from(Manifest.__struct_fields__), value=DOCUMENTS)
def test_any_value_of_any_key_opens_or_is_rejected(tmp_path: Path, key: str, value: object) -> None:
    path = edited(folder(tmp_path), lambda document: document.update({key: value}))
    try:
        open_package(path)
    except Rejected as error:
        assert str(path) in str(error)  # noqa: PT017 - both ends are allowed
