"""Figures of classification runs: how often a label is right, how sure it is, and what comes of not deciding."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lisiere.calibration.temperature import calibration_error
from lisiere.clock import parse_ts
from lisiere.errors import ConfigError, Rejected
from lisiere_sim.evaluate.anomaly import ratio, roc_auc
from lisiere_sim.evaluate.kind import Figures, Kind, Record

# What is true: a label a result, in their order; or labels from a time on, seconds and label, in order of time.
Truth = list[str] | list[tuple[float, str]]

_MOST_DRAWN = 40  # labels of a confusion matrix; more cannot be read


def read_labels(file: Path) -> Truth:
    """Read what is true: CSV, a column `label` with a row a result, or `ts` and `label` from that time on.

    Raises:
        ConfigError: the file is not of that form.
    """
    form = f"{file} is no table of labels (`label`, or `ts` and `label`)"
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            columns = set(rows.fieldnames or ())
            found = [(row.get("ts") or "", (row.get("label") or "").strip()) for row in rows]
        timed = [(parse_ts(ts), label) for ts, label in found] if "ts" in columns else []
    except (OSError, UnicodeDecodeError, csv.Error, Rejected) as error:
        raise ConfigError(f"{form}: {error}.") from error
    if "label" not in columns:
        raise ConfigError(f"{form}: its columns are {', '.join(sorted(columns)) or 'none'}.")
    if "ts" not in columns:
        return [label for _, label in found]
    if timed != sorted(timed, key=lambda one: one[0]):
        raise ConfigError(f"{form}: its times go back.")
    return timed


def truth_of(results: list[Record], truth: Truth) -> list[str]:
    """Return the true label of each result; an empty one where nothing is known.

    Raises:
        ConfigError: there is a label a result, and not as many of them as results.
    """
    if truth and isinstance(truth[0], tuple):
        starts = np.array([start for start, _ in truth])
        at = np.searchsorted(starts, [parse_ts(result["ts"]) for result in results], "right") - 1
        return [str(truth[index][1]) if index >= 0 else "" for index in at]
    if len(truth) != len(results):
        raise ConfigError(
            f"There are {len(results)} results and {len(truth)} labels. Where frames are left out, give labels with "
            "times, as `ts` and `label`."
        )
    return [str(label) for label in truth]


def figures(results: list[Record], truth: Truth) -> Figures:
    """Compare results with what is true; those of which nothing is known, an empty label, are left out.

    ROC AUC is the mean over labels of one against the rest, by the scores in `top`; a label that is not listed there
    counts as zero, so it is exact where a result lists all of them.
    """
    known = [(one["result"], label) for one, label in zip(results, truth_of(results, truth), strict=True) if label]
    bodies, true = [body for body, _ in known], np.array([label for _, label in known], np.str_)
    said = np.array([body["label"] for body in bodies], np.str_)
    sure = np.array([body["score"] for body in bodies], np.float64)
    decided = np.array([body.get("decided", True) for body in bodies], np.bool_)
    right = said == true
    found: Figures = {
        "results": len(results),
        "unknown": len(results) - len(known),
        "accuracy": ratio(int(right.sum()), len(right)),
        "macro_f1": macro_f1(true, said),
        "roc_auc": one_against_rest(bodies, true),
        "ece": round(calibration_error(sure, right), 4) if len(right) else None,
    }
    if not decided.all():
        found["abstained"] = ratio(int((~decided).sum()), len(decided))
        found["accuracy_of_the_rest"] = ratio(int((right & decided).sum()), int(decided.sum()))
    sets = [(body["set"], label) for body, label in zip(bodies, true.tolist(), strict=True) if "set" in body]
    if sets:
        found["set"] = {
            "coverage": ratio(sum(label in one for one, label in sets), len(sets)),
            "mean_size": ratio(sum(len(one) for one, _ in sets), len(sets)),
        }
    return found


def macro_f1(true: NDArray[np.str_], said: NDArray[np.str_]) -> float | None:
    """The mean F1 over all labels that are true or said somewhere; None without results."""
    names, matrix = confusion(true, said)
    if not names:
        return None
    hits = np.diag(matrix)
    return round(float((2 * hits / (matrix.sum(0) + matrix.sum(1))).mean()), 4)


def confusion(true: NDArray[np.str_], said: NDArray[np.str_]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the labels, sorted, and how often each (row) was called each (column)."""
    names, at = np.unique(np.concatenate([true, said]), return_inverse=True)
    matrix = np.zeros((len(names), len(names)), np.int64)
    np.add.at(matrix, (at[: len(true)], at[len(true) :]), 1)
    return names.tolist(), matrix


def one_against_rest(bodies: Sequence[Record], true: NDArray[np.str_]) -> float | None:
    """The mean ROC AUC over the labels that are true somewhere, and not everywhere; None without one."""
    listed = [{one["label"]: one["score"] for one in body["top"]} for body in bodies]
    areas = [
        roc_auc(np.array([scores.get(name, 0.0) for scores in listed], np.float64), true == name)
        for name in np.unique(true).tolist()
    ]
    defined = [area for area in areas if area is not None]
    return round(float(np.mean(defined)), 4) if defined else None


def plot(results: list[Record], truth: Truth, file: Path) -> None:
    """Draw the confusion matrix, and how often labels are right by how sure they are."""
    from lisiere_sim.evaluate import plots

    known = [(one["result"], label) for one, label in zip(results, truth_of(results, truth), strict=True) if label]
    true = np.array([label for _, label in known], np.str_)
    said = np.array([body["label"] for body, _ in known], np.str_)
    names, matrix = confusion(true, said)
    most = np.sort(np.argsort(-matrix.sum(1), kind="stable")[:_MOST_DRAWN])
    plots.classification(
        file,
        title=file.stem,
        names=[names[at] for at in most],
        matrix=matrix[np.ix_(most, most)],
        sure=np.array([body["score"] for body, _ in known], np.float64),
        right=true == said,
    )


KIND = Kind(read_labels, figures, plot)
