"""Figures of anomaly runs, against cases counted by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from lisiere.clock import rfc3339
from lisiere.errors import ConfigError
from lisiere_sim.evaluate.anomaly import KIND, figures, intervals, read_windows, roc_auc
from lisiere_sim.evaluate.kind import Record
from support import require


def record(at: float, state: str, score: float | None = 0.0) -> Record:
    result = {"state": state, "score": score, "threshold": 1.0}
    return {"pipeline": "p", "task": "anomaly", "ts": rfc3339(at), "result": result}


def run(states: str) -> list[Record]:
    """One result a second: n(ormal), a(nomalous) or a hole."""
    names = {"n": ("normal", 0.1), "a": ("anomalous", 2.0), "_": ("no_data", None)}
    return [record(float(at), *names[letter]) for at, letter in enumerate(states)]


def test_points_are_counted() -> None:
    found = figures(run("nnaanaan_n"), [(2.0, 4.0)])
    # In 2 … 4: a a n. Outside: n n a a n n, and the hole does not count.
    assert found["point"] == {"precision": 0.5, "recall": 0.6667, "f1": 0.5714, "far": 0.3333, "mar": 0.3333}
    assert (found["results"], found["no_data"], found["windows"]) == (10, 1, 1)


def test_events_are_found_once_and_false_alarms_are_runs() -> None:
    found = figures(run("aannnaanannnnnn"), [(4.0, 8.0), (12.0, 14.0)])["event"]
    assert found == {
        "alarms": 3,
        "false_alarms": 1,
        "found": 1,
        "missed": 1,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "delay_s": 1.0,
    }


def test_an_alarm_that_runs_into_a_window_is_not_false() -> None:
    found = figures(run("nnaaaannn"), [(4.0, 8.0)])["event"]
    assert (found["alarms"], found["false_alarms"], found["found"]) == (1, 0, 1)


def test_a_hole_in_an_alarm_makes_no_two_of_it() -> None:
    assert figures(run("na_a_ann"), [])["event"]["alarms"] == 1


def test_an_alarm_that_reaches_the_end_is_counted_whole() -> None:
    assert figures(run("nnaa"), [])["event"]["false_alarms"] == 1


def test_figures_that_nothing_defines_are_none() -> None:
    found = figures(run("nnn"), [])
    assert found["point"]["recall"] is None
    assert found["event"]["f1"] is None
    assert found["roc_auc"] is None
    assert figures([], [])["point"]["f1"] is None


def test_a_result_speaks_of_its_window() -> None:
    one = record(9.0, "anomalous") | {"window": {"start": rfc3339(2.0), "end": rfc3339(5.0)}}
    times, ends = intervals([one])
    assert (times.tolist(), ends.tolist()) == ([2.0], [5.0])
    assert figures([one], [(5.0, 7.0)])["event"]["found"] == 1


def test_roc_auc_counts_ties_as_half() -> None:
    truth = np.array([False, False, True, True])
    assert roc_auc(np.array([0.0, 1.0, 1.0, 2.0]), truth) == 0.875


def test_labels_are_windows_in_order(tmp_path: Path) -> None:
    file = tmp_path / "windows.json"
    file.write_text(
        '[["1970-01-01T00:01:00Z", "1970-01-01T00:02:00Z"], ["1970-01-01 00:00:05", "1970-01-01 00:00:06"]]'
    )
    assert read_windows(file) == [(5.0, 6.0), (60.0, 120.0)]


@pytest.mark.parametrize("text", ["{}", "[[1, 2]]", '[["now", "then"]]', '[["1970-01-02", "1970-01-01"]]', "["])
def test_what_is_no_list_of_windows_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "windows.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="no list of windows"):
        read_windows(file)


def test_a_picture_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib")
    for name in ("one", "two"):
        KIND.plot(run("nnaan"), [(2.0, 3.0)], tmp_path / name / "p.png")
    first = (tmp_path / "one" / "p.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "two" / "p.png").read_bytes()
