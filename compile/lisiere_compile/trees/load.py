"""Reading a model file: which library wrote it, its forest, and what that library itself answers to trial inputs.

The libraries read with native code that was not written for hostile files, so all of it happens in a process of its
own (`python -m lisiere_compile.trees.load FILE FRAMEWORK OUT.npz`), bounded in time and memory.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.errors import LisiereError, Permanent, Rejected
from lisiere_compile.trees.forest import DEFAULT_LEFT, Forest, from_treelite

FRAMEWORKS = ("XGBOOST", "LIGHTGBM", "SKLEARN")
MAX_BYTES = 512 << 20
TIMEOUT_S = 300
_MEMORY = 12 << 30
# What these estimators hold that skops does not trust by itself: arrays of nodes.
_TRUSTED = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
_PICKLE = (
    "a pickle or a joblib file, which runs code when it is opened, so it is not. Where the model comes from, save it "
    "by `skops.io.dump(model, 'model.skops')` (scikit-learn) or `model.save_model('model.json')` (XGBoost)"
)
_OLD_XGBOOST = (
    "in XGBoost's old binary format, which is no longer read. Load it with the XGBoost that wrote it (1.0 to 3.0) and "
    "save it by `booster.save_model('model.json')`"
)
Predict = Callable[[NDArray[np.float32]], NDArray[Any]]


@dataclass(frozen=True)
class _Read:
    """What a library read: treelite's form of the model, and how to ask the reference.

    Attributes:
        finish, alpha: in place of the model's own, where the library does otherwise.
    """

    model: Any
    predict: Predict
    reference: str
    finish: str | None = None
    alpha: float | None = None


@dataclass(frozen=True)
class Loaded:
    """A model file, read.

    Attributes:
        inputs, outputs: [cases, 1, features] and [cases, 1, outputs], float32: what `reference` answered.
        reference: the library that wrote the model where it is installed, else treelite.
    """

    forest: Forest
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    framework: str
    reference: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the process prints; `refusal` is empty when it went well, `missing` names a package that is not there."""

    framework: str = ""
    reference: str = ""
    refusal: str = ""
    missing: str = ""


def sniff(file: Path) -> str | None:
    """Return the framework whose model a file holds by its first bytes, or None when it is not a model of trees.

    Raises:
        Rejected: it is a pickle, or in XGBoost's old binary format; the message says what to do.
    """
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) or file.suffix in (
        ".pkl", ".pickle", ".joblib",
    ):  # fmt: skip
        raise Rejected(f"{file.name} is {_PICKLE}.")
    if head.startswith((b"binf", b"bs64")):
        raise Rejected(f"{file.name} is {_OLD_XGBOOST}.")
    if head.lstrip().startswith(b"tree\n") or head.startswith(b"tree\r\n"):
        return "LIGHTGBM"
    if head.startswith(b"PK\x03\x04") and file.suffix == ".skops":
        return "SKLEARN"
    # UBJSON begins with an object whose key has a length of eight bytes; it and JSON differ in the second byte.
    return "XGBOOST" if head.startswith(b"{L\0\0") or head.lstrip().startswith(b"{") else None


def load(file: Path, framework: str, work: Path) -> Loaded:
    """Read a model file in another process.

    Args:
        file: as the library saved it.
        framework: XGBOOST, LIGHTGBM or SKLEARN, as the job says.
        work: a folder for what the process leaves.

    Raises:
        Rejected: it is not such a model, is damaged, or has what cannot be compiled.
        Permanent: a package that reads it is not installed; the message names it.
    """
    out = work / "forest.npz"
    command = [sys.executable, "-m", "lisiere_compile.trees.load", str(file.resolve()), framework, str(out)]
    try:
        done = subprocess.run(  # noqa: S603 - this module
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Rejected(f"{file.name} was not read within {TIMEOUT_S} seconds.") from error
    return _loaded(out, _judge(file, done.returncode, done.stdout, done.stderr))


def _judge(file: Path, returncode: int, said: str, complained: str) -> Report:
    """Return what the process found, or raise what it ran into, a crash included."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        raise Rejected(f"Reading {file.name} was ended by {name}: it is damaged, or too large for this machine.")
    try:
        report = msgspec.json.decode(said.splitlines()[-1], type=Report)
    except (msgspec.DecodeError, IndexError) as error:
        last = (complained.strip().splitlines() or ["it gave no reason"])[-1]
        raise Rejected(f"{file.name} cannot be read: {last}.") from error
    if report.missing:
        raise Permanent(f"`pip install lisiere[trees]` brings what reading {file.name} needs: {report.missing}.")
    if report.refusal:
        raise Rejected(report.refusal)
    return report


def _loaded(out: Path, report: Report) -> Loaded:
    with np.load(out, allow_pickle=False) as archive:
        values: dict[str, Any] = {
            name: value.item() if value.ndim == 0 else value for name, value in archive.items() if "/" not in name
        }
        vectors = archive["golden/inputs"], archive["golden/outputs"]
    return Loaded(Forest(**values), *vectors, report.framework, report.reference)


def _read(file: Path, framework: str, out: Path) -> Report:
    """Do the work, in the process."""
    if not 0 < file.stat().st_size <= MAX_BYTES:
        raise Rejected(f"{file.name} has {file.stat().st_size} bytes; from 1 to {MAX_BYTES} are taken.")
    found = sniff(file)
    if found is None:
        raise Rejected(
            f"{file.name} is not a model of trees that can be read: a JSON or UBJSON file of XGBoost, a text file of "
            f"LightGBM, or a .skops file of scikit-learn. If it is {_OLD_XGBOOST}."
        )
    if found != framework:
        raise Rejected(f"{file.name} is a model of {found}, but the job's framework is {framework}.")
    import treelite

    read = {"XGBOOST": _xgboost, "LIGHTGBM": _lightgbm, "SKLEARN": _sklearn}[found]
    try:
        result = read(file)
        forest = from_treelite(result.model, result.finish, result.alpha)
        inputs, outputs = _answers(forest, result.predict)
    except (LisiereError, ModuleNotFoundError):
        raise
    except (Exception, treelite.TreeliteError) as error:  # three libraries' errors, which share no class
        raise Rejected(f"{file.name} is not a whole model of {found}: {_first_line(error)}.") from error
    arrays = {name: getattr(forest, name) for name in forest.__dataclass_fields__}
    arrays |= {"golden/inputs": inputs[:, None], "golden/outputs": outputs[:, None]}
    with out.open("wb") as stream:
        np.savez(stream, **arrays)
    return Report(framework=found, reference=result.reference)


def _xgboost(file: Path) -> _Read:
    import treelite

    ubjson = file.read_bytes()[:2] == b"{L"
    model = treelite.frontend.load_xgboost_model(str(file), format_choice="ubjson" if ubjson else "json")
    # The library answers with the number of the class then, and with shares of one for multi:softprob.
    finish = "max_index" if b"multi:softmax" in file.read_bytes() else None
    try:
        import xgboost
    except ModuleNotFoundError:
        return _Read(model, _gtil(model, finish), "treelite", finish)
    booster = xgboost.Booster()
    # By its bytes: the library goes by the ending of a name, and this file may have any.
    booster.load_model(bytearray(file.read_bytes()))
    booster.set_param({"nthread": 1})

    def predict(inputs: NDArray[np.float32]) -> NDArray[Any]:
        found: NDArray[Any] = booster.predict(xgboost.DMatrix(inputs), validate_features=False)
        return found

    return _Read(model, predict, f"xgboost {xgboost.__version__}", finish)


def _lightgbm(file: Path) -> _Read:
    import treelite

    model = treelite.frontend.load_lightgbm_model(str(file))
    try:
        import lightgbm
    except ModuleNotFoundError:
        return _Read(model, _gtil(model, None), "treelite")
    booster = lightgbm.Booster(model_file=str(file))

    def predict(inputs: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(booster.predict(inputs, num_threads=1))

    return _Read(model, predict, f"lightgbm {lightgbm.__version__}")


def _sklearn(file: Path) -> _Read:
    import sklearn
    import skops.io
    import treelite

    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise Rejected(f"{file.name} unpacks to more than {MAX_BYTES} bytes.")
    unknown = sorted(set(skops.io.get_untrusted_types(file=file)) - set(_TRUSTED))
    if unknown:
        raise Rejected(f"{file.name} holds {', '.join(unknown[:5])}, which is no part of a scikit-learn ensemble.")
    estimator = skops.io.load(file, trusted=list(_TRUSTED))
    model = treelite.sklearn.import_model(estimator)
    finish, alpha, predict = None, None, estimator.predict
    if hasattr(estimator, "predict_proba"):
        predict = estimator.predict_proba
        if str(model.get_header_accessor().get_field("postprocessor")) == "sigmoid":
            finish = "both_classes"
            # AdaBoost's loss, whose scores are half of what a sigmoid takes.
            alpha = 2.0 if getattr(estimator, "loss", None) == "exponential" else None
    elif hasattr(estimator, "score_samples"):

        def predict(inputs: NDArray[np.float32]) -> NDArray[Any]:
            return np.asarray(-estimator.score_samples(inputs))  # as treelite has it: more is stranger

    return _Read(model, predict, f"scikit-learn {sklearn.__version__}", finish, alpha)


def _gtil(model: Any, finish: str | None) -> Predict:
    """Treelite's own reference, for where the library that wrote the model is not installed."""
    import treelite

    def predict(inputs: NDArray[np.float32]) -> NDArray[Any]:
        found = np.asarray(treelite.gtil.predict(model, inputs.astype(model.input_type), nthread=1))
        found = found.reshape(len(inputs), -1)
        return found.argmax(axis=1) if finish == "max_index" else found

    return predict


def _answers(forest: Forest, predict: Predict) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return trial inputs, [cases, features], and what the library answers, [cases, outputs]."""
    inputs = trial_inputs(forest)
    try:
        found = predict(inputs)
    except ValueError:  # a model of scikit-learn that was not trained with missing values
        inputs = np.nan_to_num(inputs, nan=0)
        found = predict(inputs)
    return inputs, np.asarray(found).astype(np.float32).reshape(len(inputs), forest.outputs)


def trial_inputs(forest: Forest) -> NDArray[np.float32]:
    """Return the same inputs every time: zeros, and numbers at, just above and around the thresholds; some missing."""
    random = np.random.default_rng(20)
    count = 64 if forest.features <= 1 << 12 else 16
    inputs = random.normal(size=(count, forest.features)).astype(np.float32)
    split = (forest.child > 0) & np.isfinite(forest.threshold)
    feature, threshold = forest.feature[split] & ~DEFAULT_LEFT, forest.threshold[split]
    order = np.argsort(feature, kind="stable")
    used, starts = np.unique(feature[order], return_index=True)
    for index, values in zip(used, np.split(threshold[order], starts[1:]), strict=True):
        chosen = random.choice(values, count)
        around = chosen + random.normal(size=count).astype(np.float32) * values.std()
        kind = random.integers(0, 3, count)
        inputs[:, index] = np.select([kind == 0, kind == 1], [chosen, np.nextafter(chosen, np.float32(np.inf))], around)
    inputs[0] = 0
    inputs[3 * count // 4 :][random.random((count // 4, forest.features)) < 0.3] = np.nan
    return inputs


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def main(arguments: list[str]) -> int:
    """Read a file and print the report as JSON."""
    with contextlib.suppress(ValueError, OSError):  # macOS does not bound address space
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        report = _read(Path(arguments[0]), arguments[1], Path(arguments[2]))
    except LisiereError as error:
        report = Report(refusal=str(error))
    except ModuleNotFoundError as error:
        report = Report(missing=str(error.name))
    except MemoryError:
        report = Report(refusal=f"{Path(arguments[0]).name} needs more memory than a model of trees should.")
    sys.stdout.write("\n" + msgspec.json.encode(report).decode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
