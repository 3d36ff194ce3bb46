"""One contract for all backends, with the same golden vectors: dlr, graph and onnx."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from lisiere.backends import BACKENDS, Backend, Model, open_backend, open_model
from lisiere.backends.dlr import find_library
from lisiere.backends.golden import check_golden, load_golden
from lisiere.errors import Permanent, Rejected
from lisiere.models import Package, open_package, write_manifest
from lisiere.models.package import read_draft
from support import require
from support.artifacts import MAKERS, TREES, compiled

KINDS = (*MAKERS, TREES)


def runs(backend: Backend, kind: str) -> bool:
    """An ensemble of trees has no ONNX file."""
    return (backend, kind) != ("onnx", TREES)


@pytest.fixture(params=KINDS)
def any_package(request: pytest.FixtureRequest) -> Package:
    return open_package(compiled(request.param))


@pytest.fixture(params=[(name, kind) for kind in KINDS for name in BACKENDS if runs(name, kind)], ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    name, kind = request.param
    if name == "dlr":
        require(find_library(), "libdlr")
    return name, kind


@pytest.fixture
def package(pair: tuple[Backend, str]) -> Package:
    return open_package(compiled(pair[1]))


@pytest.fixture
def model(pair: tuple[Backend, str], package: Package) -> Model:
    return open_backend(pair[0], package)


def test_golden_vectors_are_reproduced(model: Model, package: Package) -> None:
    golden = package.manifest.golden
    assert golden is not None
    cases = load_golden(package)
    assert cases
    for inputs, expected in cases:
        found = model.run(inputs)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, golden.rtol, golden.atol)
    model.close()


def test_the_interface_is_the_manifest_s(model: Model, package: Package) -> None:
    assert model.inputs == package.manifest.inputs
    assert model.outputs == package.manifest.outputs
    for name, output in model.run(zeros(model)).items():
        spec = next(spec for spec in model.outputs if spec.name == name)
        assert output.shape == spec.shape
        assert output.dtype == spec.dtype
    model.close()


def test_results_belong_to_the_caller(model: Model) -> None:
    feeds = zeros(model)
    first = model.run(feeds)
    kept = {name: value.copy() for name, value in first.items()}
    model.run({name: value + 1 for name, value in feeds.items()})
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
    assert all(not value.any() for value in feeds.values())
    model.close()


def test_the_same_input_gives_the_same_output(model: Model) -> None:
    rng = np.random.default_rng(5)
    feeds = {spec.name: rng.normal(size=spec.shape).astype(spec.dtype) for spec in model.inputs}
    first, second = model.run(feeds), model.run(feeds)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    model.close()


def test_an_input_that_is_not_contiguous_is_read_right(model: Model) -> None:
    rng = np.random.default_rng(6)
    spec = model.inputs[0]
    wide = rng.normal(size=(*spec.shape, 2)).astype(spec.dtype)
    strided = wide[..., 0]
    assert not strided.flags.c_contiguous
    expected = model.run({spec.name: np.ascontiguousarray(strided)})
    for name, value in model.run({spec.name: strided}).items():
        np.testing.assert_array_equal(value, expected[name])
    model.close()


def test_an_input_that_nobody_may_write_to_is_read(model: Model) -> None:
    rng = np.random.default_rng(7)
    feeds = {spec.name: rng.normal(size=spec.shape).astype(spec.dtype) for spec in model.inputs}
    expected = model.run(feeds)
    for array in feeds.values():
        array.flags.writeable = False
    for name, value in model.run(feeds).items():
        np.testing.assert_array_equal(value, expected[name])
    model.close()


def test_wrong_feeds_are_rejected_before_the_runtime_sees_them(model: Model) -> None:
    spec = model.inputs[0]
    good = zeros(model)[spec.name]
    for feeds in (
        {},
        {"other": good},
        {spec.name: good, "other": good},
        {spec.name: good[0]},
        {spec.name: good.astype(np.float64)},
        {spec.name: np.zeros((*spec.shape[:-1], spec.shape[-1] + 1), spec.dtype)},
    ):
        with pytest.raises(Rejected):
            model.run(feeds)
    model.close()


def test_a_closed_model_says_so(model: Model) -> None:
    model.close()
    model.close()
    with pytest.raises(Permanent, match="closed"):
        model.run(zeros(model))


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_side_by_side_do_not_touch_each_other(backend: Backend) -> None:
    if backend == "dlr":
        require(find_library(), "libdlr")
    packages = [open_package(compiled(kind)) for kind in KINDS if runs(backend, kind)]
    models = [open_backend(backend, package) for package in packages]
    failures: list[BaseException] = []

    def work(model: Model, package: Package) -> None:
        golden = package.manifest.golden
        assert golden is not None
        try:
            for _ in range(50):
                for inputs, expected in load_golden(package):
                    for name, value in model.run(inputs).items():
                        np.testing.assert_allclose(value, expected[name], golden.rtol, golden.atol)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, packages, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    for model in models:
        model.close()


def test_every_backend_agrees_in_models_verify(any_package: Package) -> None:
    require(find_library(), "libdlr")
    held = {name: outcome.holds for name, outcome in check_golden(any_package).items()}
    assert held == {"dlr": True, "graph": True, "onnx": True if any_package.manifest.onnx else None}


def test_auto_takes_dlr_first(any_package: Package) -> None:
    require(find_library(), "libdlr")
    opened = open_model(any_package)
    assert (opened.backend, opened.why) == ("dlr", "auto: first choice")
    opened.model.close()


def test_auto_goes_on_to_graph_without_libdlr_and_says_why(
    any_package: Package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LISIERE_LIBDLR", str(tmp_path / "none.so"))
    opened = open_model(any_package)
    assert opened.backend == "graph"
    assert opened.why.startswith("auto: not dlr: ")
    opened.model.close()


def test_a_library_in_the_model_folder_is_never_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neo artifacts may bring a libdlr.so of their own, which would be code from nobody knows where."""
    require(find_library(), "libdlr")
    folder = tmp_path / "model"
    shutil.copytree(compiled("classifier"), folder)
    (folder / "libdlr.so").write_bytes(b"not a library")
    monkeypatch.chdir(folder)
    model = open_backend("dlr", open_package(folder))
    assert model.run(zeros(model))
    model.close()


def zeros(model: Model) -> dict[str, np.ndarray]:
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in model.inputs}


def test_an_artifact_without_a_manifest_runs_once_one_is_written_and_sealed(tmp_path: Path) -> None:
    """What SageMaker Neo delivers: three files, and nothing that says what goes in."""
    source = compiled("classifier")
    for name in ("compiled.json", "compiled.params", "compiled.so", "compiled.meta", "labels.txt"):
        shutil.copy(source / name, tmp_path / name)
    document = {
        "schema": "lisiere.model/1",
        "name": "gate",
        "version": "1.0.0",
        "inputs": [{"name": "image", "shape": [1, 3, 8, 8]}],
        "outputs": [{"name": "scores", "shape": [1, 3]}],
        "input": {"type": "image"},
        "task": {"type": "classification", "labels": "labels.txt", "scores": "softmax"},
        "neo": {"graph": "compiled.json", "params": "compiled.params", "library": "compiled.so"},
    }
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump(document))
    write_manifest(read_draft(file), file)
    opened = open_model(open_package(tmp_path))
    assert opened.backend in ("dlr", "graph")
    assert opened.model.run(zeros(opened.model))["scores"].shape == (1, 3)
    opened.model.close()
    file.write_text(yaml.safe_dump({**document, "inputs": [{"name": "image", "shape": [1, 3, 9, 9]}]}))
    write_manifest(read_draft(file), file)
    with pytest.raises(Rejected, match=r"but the manifest says float32 \[1, 3, 9, 9\]"):
        open_package(tmp_path)
