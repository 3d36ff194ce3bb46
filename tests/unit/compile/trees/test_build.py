"""From a job to an artifact that libdlr loads and that answers as the library that trained the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.backends import open_backend
from lisiere.backends.dlr import find_library
from lisiere.backends.golden import load_golden
from lisiere.errors import ConfigError, Rejected
from lisiere.models import open_package
from lisiere_compile import compiler
from lisiere_compile.artifact import archive_of
from lisiere_compile.compiler import Log, compile_job
from lisiere_compile.trees import build, emit
from lisiere_compile.trees import load as module
from support import cross_tools, require
from support.ensembles import KINDS, data, saved

from ..conftest import make_job, parse


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read models in this process, which has everything imported already."""

    def load(file: Path, framework: str, work: Path) -> module.Loaded:
        return module._loaded(work / "forest.npz", module._read(file, framework, work / "forest.npz"))

    monkeypatch.setattr(compiler, "load", load)


def compiled(source: Path, kind: str, to: Path, **changes: Any) -> tuple[Path, Log]:
    log = Log()
    job = parse(make_job(source, Framework=KINDS[kind], **changes))
    return compile_job(job, to, log=log), log


def reference(kind: str) -> Any:
    """The answers of the library to the data that it was trained on."""
    inputs, _ = data(kind)
    if kind.startswith("xgb"):
        import xgboost

        return xgboost.Booster(model_file=saved(kind)).predict(xgboost.DMatrix(inputs))
    if kind.startswith("lgb"):
        import lightgbm

        return lightgbm.Booster(model_file=saved(kind)).predict(inputs)
    import skops.io

    model = skops.io.load(saved(kind), trusted=["sklearn.tree._tree.Tree"])
    return model.predict_proba(inputs)


@pytest.mark.parametrize("kind", ["xgb-binary", "xgb-multi", "forest-binary", "lgb-multi"])
def test_libdlr_answers_as_the_library_that_trained_the_model(kind: str, tmp_path: Path) -> None:
    require(find_library(), "libdlr")
    folder, log = compiled(saved(kind), kind, tmp_path)
    assert log.verdict.backend == "dlr"
    assert list(log.seconds) == ["import", "build", "link", "verify", "pack"]
    package = open_package(folder)
    expected = np.asarray(reference(kind), np.float32)
    inputs, _ = data(kind)
    assert (inputs == 0).any() or kind.endswith("multi")  # which libdlr would take for missing
    for backend in ("dlr", "graph"):
        model = open_backend(backend, package)
        found = np.concatenate([model.run({"data": row[None]})["output"] for row in inputs])
        model.close()
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-6)


def test_an_ensemble_has_nothing_to_tune(tmp_path: Path) -> None:
    job = parse(make_job(saved("xgb-multi"), Framework="XGBOOST"))
    with pytest.raises(ConfigError, match="no kernels to tune"):
        compile_job(job, tmp_path, tune_s=1)


@pytest.mark.usefixtures("in_process")
def test_the_artifact_says_what_it_is(tmp_path: Path) -> None:
    folder, log = compiled(saved("xgb-multi"), "xgb-multi", tmp_path)
    manifest = open_package(folder).manifest
    assert manifest.neo is not None
    assert (manifest.neo.graph, manifest.neo.params, manifest.onnx) == (None, None, None)
    assert (manifest.inputs[0].shape, manifest.outputs[0].shape) == ((1, 4), (1, 3))
    assert manifest.build is not None
    assert manifest.build.verified is not None
    assert manifest.build.verified.reference.startswith("xgboost 3")
    assert manifest.build.verified.cases == log.verdict.cases == len(load_golden(open_package(folder))) == 64
    assert set(manifest.build.tools) == {"cc", "lisiere", "treelite", "numpy"}
    assert sorted(file.name for file in folder.iterdir()) == [
        "compiled.meta", "compiled.so", "golden.npz", "manifest.yaml"
    ]  # fmt: skip


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("device", "arch"), [("rasp4b", "aarch64"), ("rasp3b", "armv7l")])
@pytest.mark.parametrize("kind", ["xgb-binary", "forest-multi"])
def test_ensembles_for_a_raspberry_pi_answer_the_same(kind: str, device: str, arch: str, tmp_path: Path) -> None:
    cross_tools(arch)
    folder, log = compiled(saved(kind), kind, tmp_path, TargetDevice=device)
    build = open_package(folder).manifest.build
    assert build is not None
    assert build.verified is not None
    assert (build.arch, build.verified.by, build.verified.cases) == (arch, "qemu-user", 64)
    assert log.verdict.max_difference < 1e-6


@pytest.mark.usefixtures("in_process")
def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folder, _ = compiled(saved("lgb-binary"), "lgb-binary", tmp_path / name)
        archives.append(archive_of(folder).read_bytes())
    assert archives[0] == archives[1]


@pytest.mark.usefixtures("in_process")
def test_a_wrong_library_does_not_pass_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = emit.write_source
    monkeypatch.setattr(build, "write_source", lambda *args: whole(*args).replace("!left", "left"))
    with pytest.raises(Rejected, match=r"is wrong and was not kept.*from the golden vectors"):
        compiled(saved("lgb-binary"), "lgb-binary", tmp_path)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def author(folder: Path, **changes: Any) -> Path:
    """A model.yaml beside an isolation forest: thirty readings in, a score out."""
    folder.mkdir()
    shutil.copy(saved("isolation"), folder / "m.skops")
    document = {
        "schema": "lisiere.model/1",
        "name": "strange",
        "version": "1.0.0",
        "inputs": [{"name": "window", "shape": [1, 30]}],
        "outputs": [{"name": "score", "shape": [1, 1]}],
        "input": {"type": "window", "channels": ["a"], "length": 30, "step_s": 1},
        "task": {"type": "anomaly", "threshold": 0.6},
    }
    (folder / "model.yaml").write_text(json.dumps({**document, **changes}))
    return folder


@pytest.mark.usefixtures("in_process")
def test_what_the_author_says_is_kept(tmp_path: Path) -> None:
    folder, _ = compiled(author(tmp_path / "package"), "isolation", tmp_path)
    manifest = open_package(folder).manifest
    assert folder.name.startswith("strange-")
    assert (manifest.inputs[0].name, manifest.outputs[0].name) == ("window", "score")
    assert manifest.task is not None
    assert load_golden(open_package(folder))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [{"name": "window", "shape": [1, 30, 1]}]}, r"window float32 \[1, 30, 1\]"),
        ({"golden": {"file": "golden.npz"}}, r"names golden vectors"),
    ],
)
def test_what_the_author_says_must_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=message):
        compiled(author(tmp_path / "package", **change), "isolation", tmp_path)
