"""Small ensembles of trees as their libraries save them, trained once a test run on data that scikit-learn brings."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import require

# Kind -> framework, as in a job.
KINDS = {
    "xgb-binary": "XGBOOST",
    "xgb-multi": "XGBOOST",
    "xgb-class": "XGBOOST",
    "xgb-regression": "XGBOOST",
    "lgb-binary": "LIGHTGBM",
    "lgb-multi": "LIGHTGBM",
    "lgb-regression": "LIGHTGBM",
    "forest-binary": "SKLEARN",
    "forest-multi": "SKLEARN",
    "forest-regression": "SKLEARN",
    "extra-trees": "SKLEARN",
    "boosting-binary": "SKLEARN",
    "boosting-multi": "SKLEARN",
    "boosting-exponential": "SKLEARN",
    "boosting-regression": "SKLEARN",
    "histogram-binary": "SKLEARN",
    "isolation": "SKLEARN",
}
_MODULES = {"XGBOOST": "xgboost", "LIGHTGBM": "lightgbm", "SKLEARN": "skops"}

# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="lisiere-ensembles-")


@functools.cache
def saved(kind: str) -> Path:
    """Return the file of one of KINDS, or skip where its library is not installed. Never written to."""
    for module in ("treelite", _MODULES[KINDS[kind]]):
        require(importlib.util.find_spec(module), module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _train(kind, Path(_FOLDER.name) / kind)


def data(kind: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return inputs and targets; two classes come with zeros and, except for scikit-learn, with missing values."""
    from sklearn import datasets

    if kind.endswith(("multi", "class", "trees")):
        inputs, targets = datasets.load_iris(return_X_y=True)
    elif kind.endswith("regression"):
        inputs, targets = datasets.load_diabetes(return_X_y=True)
    else:
        inputs, targets = datasets.load_breast_cancer(return_X_y=True)
    inputs = inputs.astype(np.float32)
    if kind in ("xgb-binary", "lgb-binary", "histogram-binary"):
        inputs[np.random.default_rng(3).random(inputs.shape) < 0.05] = np.nan
    return inputs, targets


def _train(kind: str, stem: Path) -> Path:
    inputs, targets = data(kind)
    if kind.startswith("xgb"):
        import xgboost

        objective = {"binary": "binary:logistic", "multi": "multi:softprob", "class": "multi:softmax"}
        parameters: dict[str, Any] = {
            "objective": objective.get(kind[4:], "reg:squarederror"),
            "nthread": 1,
            "max_depth": 4,
        }
        if kind in ("xgb-multi", "xgb-class"):
            parameters["num_class"] = 3
        booster = xgboost.train(parameters, xgboost.DMatrix(inputs, targets), 10)
        file = stem.with_suffix(".ubj" if kind == "xgb-multi" else ".json")
        booster.save_model(file)
        return file
    if kind.startswith("lgb"):
        import lightgbm

        parameters = {"objective": kind[4:], "num_threads": 1, "verbose": -1}
        if kind == "lgb-multi":
            parameters |= {"objective": "multiclass", "num_class": 3}
        file = stem.with_suffix(".txt")
        lightgbm.train(parameters, lightgbm.Dataset(inputs, targets), 10).save_model(file)
        return file
    import skops.io
    from sklearn import ensemble

    make = {
        "forest-binary": lambda: ensemble.RandomForestClassifier(10, random_state=0),
        "forest-multi": lambda: ensemble.RandomForestClassifier(10, random_state=0),
        "forest-regression": lambda: ensemble.RandomForestRegressor(10, random_state=0),
        "extra-trees": lambda: ensemble.ExtraTreesClassifier(10, random_state=0),
        "boosting-binary": lambda: ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0),
        "boosting-multi": lambda: ensemble.GradientBoostingClassifier(n_estimators=10, random_state=0),
        "boosting-exponential": lambda: ensemble.GradientBoostingClassifier(
            loss="exponential", n_estimators=10, random_state=0
        ),
        "boosting-regression": lambda: ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0),
        "histogram-binary": lambda: ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0),
        "isolation": lambda: ensemble.IsolationForest(n_estimators=10, random_state=0),
    }
    file = stem.with_suffix(".skops")
    skops.io.dump(make[kind]().fit(inputs, targets), file)
    return file
