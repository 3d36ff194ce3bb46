"""Figures of classification: by hand, and by scikit-learn where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.errors import ConfigError
from lisiere_sim.evaluate.classification import (
    confusion,
    figures,
    macro_f1,
    one_against_rest,
    plot,
    read_labels,
    truth_of,
)
from lisiere_sim.evaluate.samples import digits, find_samples
from support import REPOSITORY, require

NAMES = ("ash", "beech", "oak")


def record(at: int, shares: Any, **more: Any) -> dict[str, Any]:
    """A result of three labels at so many seconds."""
    order = np.argsort(-np.asarray(shares), kind="stable")
    top = [{"label": NAMES[index], "score": float(shares[index])} for index in order]
    return {"pipeline": "p", "ts": f"1970-01-01T00:00:{at:02}Z", "result": {**top[0], "top": top, **more}}


def run(seed: int, count: int) -> tuple[list[Any], list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    # Coarse, so that there are ties.
    shares = np.round(rng.dirichlet(np.ones(3), count) * 4) / 4
    return [record(at % 60, share) for at, share in enumerate(shares)], [NAMES[at] for at in truth]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60))
def test_it_agrees_with_scikit_learn(seed: int, count: int) -> None:
    require(importlib.util.find_spec("sklearn"), "scikit-learn")
    from sklearn import metrics

    results, truth = run(seed, count)
    found = figures(results, truth)
    said = [one["result"]["label"] for one in results]
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, said), abs=1e-4)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, said, average="macro"), abs=1e-4)
    names, matrix = confusion(np.asarray(truth), np.asarray(said))
    if len(names) > 1:  # of a single one it warns
        assert (matrix == metrics.confusion_matrix(truth, said, labels=names)).all()
    areas = []
    for name in set(truth):
        hit = np.asarray(truth) == name
        scores = [next(top["score"] for top in one["result"]["top"] if top["label"] == name) for one in results]
        if hit.any() and not hit.all():
            areas.append(metrics.roc_auc_score(hit, scores))
    if areas:
        assert found["roc_auc"] == pytest.approx(np.mean(areas), abs=1e-4)
    else:
        assert found["roc_auc"] is None


def test_by_hand() -> None:
    results = [
        record(0, [0.9, 0.1, 0.0], decided=True, set=["ash"]),
        record(1, [0.6, 0.4, 0.0], decided=False, set=["ash", "beech"]),
        record(2, [0.0, 0.1, 0.9], decided=True, set=["oak"]),
        record(3, [0.5, 0.3, 0.2], decided=False, set=["ash", "beech", "oak"]),
    ]
    found = figures(results, ["ash", "beech", "ash", ""])
    assert found == {
        "results": 4,
        "unknown": 1,
        "accuracy": 0.3333,
        "macro_f1": pytest.approx((2 / 4 + 0 + 0) / 3, abs=1e-4),
        "roc_auc": 0.75,
        "ece": pytest.approx((abs((1 - 0.9) + (0 - 0.9)) + 0.6) / 3, abs=1e-4),
        "abstained": 0.3333,
        "accuracy_of_the_rest": 0.5,
        "set": {"coverage": 0.6667, "mean_size": 1.3333},
    }


def test_without_thresholds_and_sets_there_is_nothing_of_them() -> None:
    assert set(figures([record(0, [1, 0, 0])], ["ash"])) == {
        "results", "unknown", "accuracy", "macro_f1", "roc_auc", "ece",
    }  # fmt: skip


def test_nothing_known_is_nothing_scored() -> None:
    found = figures([record(0, [1, 0, 0])], [""])
    assert (found["unknown"], found["accuracy"], found["macro_f1"], found["ece"]) == (1, None, None, None)
    assert macro_f1(np.asarray([], np.str_), np.asarray([], np.str_)) is None
    assert one_against_rest([], np.asarray([], np.str_)) is None


def test_labels_hold_from_a_time_on(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("ts,label\n1970-01-01T00:00:01Z,ash\n1970-01-01T00:00:03Z,\n")
    results = [record(at, [1, 0, 0]) for at in range(5)]
    assert truth_of(results, read_labels(tmp_path / "labels.csv")) == ["", "ash", "ash", "", ""]


def test_labels_are_one_a_result(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,label\na.png,ash\nb.png, oak \n")
    assert read_labels(tmp_path / "labels.csv") == ["ash", "oak"]
    with pytest.raises(ConfigError, match="1 results and 2 labels"):
        figures([record(0, [1, 0, 0])], ["ash", "oak"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "its columns are none"),
        ("file\n", "its columns are file"),
        ("ts,label\nyesterday,ash\n", "yesterday"),
        ("ts,label\n1970-01-01T00:00:03Z,ash\n1970-01-01T00:00:01Z,oak\n", "go back"),
        (None, "No such file"),
    ],
)
def test_what_are_no_labels_is_refused(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("count", [0, 40])
def test_a_run_is_drawn(tmp_path: Path, count: int) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib")
    plot(*run(1, count), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.soak
def test_the_sample_reproduces_the_figures_of_its_pages() -> None:
    every, unseen = (one.figures() for one in digits(find_samples(REPOSITORY / "models") / "digits", lambda *_: None))
    assert every["accuracy"] == pytest.approx(0.9778, abs=0.002)
    assert unseen["ece"] == pytest.approx(0.011, abs=0.005)
    assert unseen["abstained"] == pytest.approx(0.05, abs=0.005)
    assert unseen["accuracy_of_the_rest"] == pytest.approx(0.99, abs=0.003)
    assert unseen["set"]["coverage"] >= 0.99
    assert unseen["set"]["mean_size"] == pytest.approx(1.8, abs=0.05)
