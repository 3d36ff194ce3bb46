"""PyTorch programs through the whole compiler, and files that must not be loaded."""

from __future__ import annotations

import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.backends import open_backend
from lisiere.errors import Rejected
from lisiere.models import open_package
from lisiere_compile.compiler import compile_job
from lisiere_compile.frontends.pytorch import convert_pytorch
from support import require

from ..conftest import make_job, parse

SHAPE = (1, 3, 8, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small network as PyTorch saves it in four ways."""
    require(find_spec("torch") and find_spec("onnxscript"), "torch with onnxscript")
    import torch

    folder = tmp_path_factory.mktemp("torch")
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, 5),
    ).eval()
    example = torch.randn(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is old
        torch.jit.trace(model, example).save(str(folder / "traced.pt"))
        torch.jit.script(model).save(str(folder / "scripted.pth"))
        torch.export.save(torch.export.export(model, (example,)), folder / "program.pt2")
        batch = torch.export.Dim("batch", min=1, max=8)
        dynamic = torch.export.export(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(dynamic, folder / "dynamic.pt2")
    torch.save(model, folder / "module.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    np.savez(folder / "golden.npz", x=example.numpy(), y=model(example).detach().numpy())
    return folder


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("traced.pt", [list(SHAPE)]),
        ("program.pt2", None),
    ],
)
def test_a_network_gives_what_pytorch_gives(files: Path, tmp_path: Path, name: str, shapes: Any) -> None:
    changes = {} if shapes is None else {"DataInputConfig": json.dumps(shapes)}
    job = parse(make_job(files / name, Framework="PYTORCH", **changes))
    package = open_package(compile_job(job, tmp_path))
    golden = np.load(files / "golden.npz")
    (given,), (made,) = package.manifest.inputs, package.manifest.outputs
    model = open_backend("graph", package)
    try:
        found = model.run({given.name: golden["x"]})[made.name]
    finally:
        model.close()
    np.testing.assert_allclose(found, golden["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scripted.pth", "program.pt2"])
def test_the_job_names_the_inputs(files: Path, name: str) -> None:
    graph = convert_pytorch(files / name, {"picture": SHAPE}).graph
    assert [one.name for one in graph.input] == ["picture"]
    assert "Conv" in {node.op_type for node in graph.node}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("module.pt", "pickled module or a state_dict"),
        ("weights.pt", "pickled module or a state_dict"),
        ("traced.pt", "does not know the shapes.*DataInputConfig"),
        ("dynamic.pt2", "dynamic shapes"),
    ],
)
def test_what_is_no_program_with_shapes_is_refused(files: Path, name: str, words: str) -> None:
    with pytest.raises(Rejected, match=words):
        convert_pytorch(files / name, {})


def test_a_shape_that_does_not_fit_is_refused(files: Path) -> None:
    with pytest.raises(Rejected, match=r"PyTorch cannot export traced\.pt"):
        convert_pytorch(files / "traced.pt", {"input0": (1, 4, 8, 8)})


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + b"\0" * 40])
def test_other_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.pt").write_bytes(data)
    with pytest.raises(Rejected, match="not a PyTorch file"):
        convert_pytorch(tmp_path / "m.pt", {})


def test_a_cut_program_is_refused(files: Path, tmp_path: Path) -> None:
    whole = (files / "program.pt2").read_bytes()
    for end in range(0, len(whole), len(whole) // 9):
        (tmp_path / "m.pt2").write_bytes(whole[:end])
        with pytest.raises(Rejected):
            convert_pytorch(tmp_path / "m.pt2", {})


class _Touch:
    """What a pickle can do: here, make a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> Any:
        return open, (self.file, "w")


def _changed(source: Path, to: Path, change: Callable[[str, bytes], bytes], more: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        root = old.namelist()[0].partition("/")[0]
        for name, data in more.items():
            new.writestr(f"{root}/{name}", data)
    return to


@pytest.mark.parametrize("way", ["sample inputs", "constant", "target", "shared object", "expression"])
def test_no_code_of_a_program_runs(files: Path, tmp_path: Path, way: str) -> None:
    proof = tmp_path / "ran"
    bomb = pickle.dumps(_Touch(proof))
    more: dict[str, bytes] = {}

    def change(name: str, data: bytes) -> bytes:
        if way == "sample inputs" and name.endswith("sample_inputs/model.pt"):
            return bomb
        if way == "constant" and name.endswith("constants_config.json"):
            return json.dumps({"config": {"c": {"path_name": "custom_obj_0", "use_pickle": True}}}).encode()
        if way == "target":
            return data.replace(b"torch.ops.aten.relu.default", b"torch.os.system")
        if way == "expression" and name.endswith("models/model.json"):
            return data.replace(b'{"as_int": 8}', b'{"as_expr": {"expr_str": "open(1)"}}')
        return data

    if way == "constant":
        more["data/constants/custom_obj_0"] = bomb
    if way == "shared object":
        more["data/aotinductor/model/m.so"] = b"\x7fELF"
    with pytest.raises(Rejected):
        convert_pytorch(_changed(files / "program.pt2", tmp_path / "m.pt2", change, more), {})
    assert not proof.exists()


def test_a_name_twice_is_refused(files: Path, tmp_path: Path) -> None:
    """Two readers may take another one of the two each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice = _changed(files / "program.pt2", tmp_path / "m.pt2", lambda _, data: data, {"archive_format": b"pt2"})
    with pytest.raises(Rejected, match="a name twice"):
        convert_pytorch(twice, {})


def test_without_pytorch_the_message_names_it(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Rejected, match=r"pip install torch onnxscript"):
        convert_pytorch(files / "program.pt2", {})
