"""Reading what the libraries save: each kind gives its library's own answers, and nothing else gets through."""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lisiere.errors import LisiereError, Permanent, Rejected
from lisiere_compile.link import link
from lisiere_compile.trees import load as module
from lisiere_compile.trees.emit import write_source
from lisiere_compile.trees.forest import DEFAULT_LEFT
from lisiere_compile.trees.load import Loaded, Report, load, sniff
from support import require
from support.ensembles import KINDS, saved


def read_here(file: Path, framework: str, work: Path) -> Report:
    """Read in this process: the same as in another, without the seconds that one takes to begin."""
    return module._read(file, framework, work / "forest.npz")


def loaded(kind: str, work: Path) -> Loaded:
    report = read_here(saved(kind), KINDS[kind], work)
    return module._loaded(work / "forest.npz", report)


def answers(model: Loaded, work: Path) -> NDArray[np.float32]:
    """What the compiled library says to the trial inputs, called as libdlr calls it."""
    library = ctypes.CDLL(str(link(work, write_source(model.forest, work), None, "trees.so")))
    several = model.forest.groups > 1
    predict = library.predict_multiclass if several else library.predict
    predict.restype = ctypes.c_size_t if several else ctypes.c_float
    found = np.zeros((len(model.inputs), 1, model.forest.groups), np.float32)
    for row, result in zip(model.inputs, found, strict=True):
        row_at, result_at = (ctypes.c_void_p(array.ctypes.data) for array in (row, result))
        if several:
            assert predict(row_at, 0, result_at) == model.forest.outputs
        else:
            result[0, 0] = predict(row_at, 0)
    return found[..., : model.forest.outputs]


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_compiled_ensemble_answers_as_its_library(kind: str, tmp_path: Path) -> None:
    model = loaded(kind, tmp_path)
    assert model.reference.split()[0] in ("xgboost", "lightgbm", "scikit-learn")
    assert len(np.unique(model.outputs)) > 2 or kind == "xgb-class"
    np.testing.assert_allclose(answers(model, tmp_path), model.outputs, 1e-6, 1e-6)
    missing = bool(np.isnan(model.inputs).any())
    assert missing is not kind.startswith("boosting")  # scikit-learn refuses what is missing there


@pytest.mark.parametrize("kind", ["xgb-multi", "xgb-class", "lgb-binary"])
def test_treelite_stands_in_for_a_library_that_is_not_here(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(kind)
    expected = loaded(kind, tmp_path).outputs
    for name in ("xgboost", "lightgbm"):
        monkeypatch.setitem(sys.modules, name, None)
    report = read_here(file, KINDS[kind], tmp_path)
    assert report.reference == "treelite"
    np.testing.assert_allclose(module._loaded(tmp_path / "forest.npz", report).outputs, expected, 1e-5, 1e-6)


def test_another_process_reads_the_same(tmp_path: Path) -> None:
    here = loaded("lgb-binary", tmp_path)
    there = load(saved("lgb-binary"), "LIGHTGBM", tmp_path)
    assert there.reference == here.reference
    np.testing.assert_array_equal(there.outputs, here.outputs)
    np.testing.assert_array_equal(there.forest.threshold, here.forest.threshold)


def test_a_package_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "treelite.py").write_text("raise ModuleNotFoundError('No module', name='treelite')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Permanent, match=r"lisiere\[trees\].*treelite"):
        load(saved("lgb-binary"), "LIGHTGBM", tmp_path)


def test_a_crash_while_reading_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "treelite.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(Rejected, match=r"ended by SIGSEGV"):
        load(saved("lgb-binary"), "LIGHTGBM", tmp_path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    for name in ("model.pkl", "model.skops", "xgboost-model"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(Rejected, match=r"runs code.*skops"):
            read_here(tmp_path / name, "SKLEARN", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_skops_file_with_something_else_inside_is_refused(tmp_path: Path) -> None:
    require(importlib.util.find_spec("skops"), "skops")
    import skops.io
    from sklearn.linear_model import LogisticRegression

    skops.io.dump(LogisticRegression().fit([[0], [1]], [0, 1]), tmp_path / "line.skops")
    with pytest.raises(Rejected, match=r"LogisticRegression"):
        read_here(tmp_path / "line.skops", "SKLEARN", tmp_path)
    skops.io.dump({"call": subprocess.Popen}, tmp_path / "call.skops")
    with pytest.raises(Rejected, match=r"subprocess\.Popen"):
        read_here(tmp_path / "call.skops", "SKLEARN", tmp_path)


def test_a_skops_file_that_unpacks_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(importlib.util.find_spec("skops"), "skops")
    with zipfile.ZipFile(tmp_path / "bomb.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * 200_000)
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    with pytest.raises(Rejected, match=r"unpacks to more"):
        read_here(tmp_path / "bomb.skops", "SKLEARN", tmp_path)


def test_splits_on_categories_are_named(tmp_path: Path) -> None:
    require(importlib.util.find_spec("lightgbm"), "lightgbm")
    import lightgbm

    random = np.random.default_rng(0)
    inputs = np.column_stack([random.random(400), random.integers(0, 8, 400)])
    data = lightgbm.Dataset(inputs, np.isin(inputs[:, 1], (1, 4, 6)).astype(float), categorical_feature=[1])
    lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 3).save_model(tmp_path / "m.txt")
    with pytest.raises(Rejected, match=r"splits on categories, in feature 1"):
        read_here(tmp_path / "m.txt", "LIGHTGBM", tmp_path)


def test_a_linear_model_is_refused(tmp_path: Path) -> None:
    require(importlib.util.find_spec("xgboost"), "xgboost")
    import xgboost

    data = xgboost.DMatrix(np.eye(4), np.arange(4))
    xgboost.train({"booster": "gblinear", "nthread": 1}, data, 2).save_model(tmp_path / "m.json")
    with pytest.raises(Rejected, match=r"m\.json is not a whole model of XGBOOST"):
        read_here(tmp_path / "m.json", "XGBOOST", tmp_path)


def test_the_framework_of_the_job_must_fit(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"is a model of LIGHTGBM, but the job's framework is XGBOOST"):
        read_here(saved("lgb-binary"), "XGBOOST", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"0 bytes"),
        (b"binf\0\0\0\0", r"old binary format"),
        (b"\0\0\0\x3f\x04\0\0\0", r"not a model of trees.*old binary format"),
        (b"PK\x03\x04", r"not a model of trees"),
    ],
)
def test_what_is_no_model_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(Rejected, match=message):
        read_here(tmp_path / "model.bin", "XGBOOST", tmp_path)


def test_a_framework_is_told_by_the_first_bytes() -> None:
    for kind, framework in KINDS.items():
        assert sniff(saved(kind)) == framework


# Reads each file that it is told of in a process of its own, without importing everything again for each.
READER = """
import os, signal, sys
import lightgbm, scipy.sparse, skops.io, sklearn.ensemble, treelite, xgboost
from lisiere_compile.trees.load import main
for line in sys.stdin:
    path, framework = line.split()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        os.dup2(os.open(path + ".said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        main([path, framework, path + ".npz"])
        sys.stdout.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[subprocess.Popen[str]]:
    for name in ("xgboost", "lightgbm"):
        require(importlib.util.find_spec(name), name)
    command = [sys.executable, "-c", READER]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


@pytest.mark.parametrize("kind", ["xgb-binary", "xgb-multi", "lgb-binary", "forest-multi"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_damaged_file_is_read_or_refused(
    kind: str, tmp_path: Path, reader: subprocess.Popen[str], draw: st.DataObject
) -> None:
    """The libraries may crash on it, which is why they have a process of their own."""
    whole = saved(kind).read_bytes()
    at = draw.draw(st.integers(0, len(whole) - 1))
    change = draw.draw(st.one_of(st.none(), st.binary(min_size=1, max_size=4)))
    file = tmp_path / f"damaged{saved(kind).suffix}"
    file.write_bytes(whole[:at] if change is None else whole[:at] + change + whole[at + len(change) :])
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(f"{file} {KINDS[kind]}\n")
    reader.stdin.flush()
    status = int(reader.stdout.readline())
    assert status <= 0
    assert status != -signal.SIGALRM
    try:
        report = module._judge(file, status, Path(f"{file}.said").read_text(errors="replace"), "")
    except LisiereError:
        return
    forest = module._loaded(Path(f"{file}.npz"), report).forest
    split = np.flatnonzero(forest.child > 0)
    assert (forest.child[split] > split).all()
    assert (forest.feature[split] & ~DEFAULT_LEFT < forest.features).all()
