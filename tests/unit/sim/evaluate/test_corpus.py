"""A corpus in NAB's form: found, read, watched and scored."""

from __future__ import annotations

import importlib.util
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from lisiere.errors import ConfigError
from lisiere_sim.evaluate import corpus
from support import require, shared_data

START = datetime(2014, 4, 1, tzinfo=timezone.utc)


def stamp(row: int) -> str:
    return (START + timedelta(minutes=5 * row)).strftime("%Y-%m-%d %H:%M:%S")


def write(folder: Path, name: str, fault: int | None) -> None:
    """Two weeks of a day's sine with noise, and a spike in row `fault`."""
    rng = np.random.default_rng(len(name))
    values = 50 + 10 * np.sin(2 * np.pi * np.arange(4032) / 288) + rng.normal(0, 1, 4032)
    if fault is not None:
        values[fault] += 60
    file = folder / "data" / "kind" / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{stamp(row)},{value:.6g}" for row, value in enumerate(values)]
    file.write_text("\n".join(["timestamp,value", *lines]) + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "spike", 2000)
    write(tmp_path, "calm", None)
    windows = {"kind/spike.csv": [[stamp(1900) + ".000000", stamp(2100) + ".000000"]], "kind/calm.csv": []}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "combined_windows.json").write_text(json.dumps(windows))
    (tmp_path / "labels" / "raw_windows.json").write_text("{}")
    return tmp_path


def test_a_corpus_is_scored(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    found = corpus.figures(corpus.watch_all(folder, lambda done, total: told.append((done, total))))
    assert (found["series"], found["points"], found["windows"]) == (2, 8064, 1)
    standard = found["nab"]["standard"]
    # The spike lies in the middle of its window: (0.84828 / 0.98661 + 1) / 2 of 100.
    assert standard["score"] == pytest.approx(93, abs=1)
    assert (standard["detected"], standard["false_alarms"]) == (1, 0)
    assert found["nab_own_threshold"]["standard"]["detected"] == 1
    assert found["event"]["found"] == 1
    assert found["point"]["far"] < 0.05
    assert told[-1] == (8064, 8064)


def test_each_series_is_told(folder: Path) -> None:
    found = corpus.each(corpus.watch_all(folder, lambda _done, _total: None))
    assert list(found) == ["calm", "spike"]
    assert found["spike"]["detected"] == 1


def test_cells_without_a_number_are_missing(folder: Path) -> None:
    file = folder / "data" / "kind" / "calm.csv"
    lines = file.read_text().splitlines()
    lines[500:503] = [
        line.rpartition(",")[0] + "," + cell for line, cell in zip(lines[500:503], ("", "x", "nan"), strict=True)
    ]
    file.write_text("\n".join(lines))
    calm = corpus.watch_all(folder, lambda _done, _total: None)[0]
    assert np.flatnonzero(np.isnan(calm.scores)).tolist() == [499, 500, 501]


def test_a_flat_folder_is_a_corpus_too(folder: Path) -> None:
    for file in list((folder / "data" / "kind").iterdir()):
        file.rename(folder / file.name)
    assert [file.name for file in corpus.find_corpus(folder)] == ["calm.csv", "spike.csv"]


def test_what_is_no_corpus_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has 0 files of windows"):
        corpus.find_corpus(tmp_path / "empty")
    (folder / "data" / "kind" / "calm.csv").unlink()
    with pytest.raises(ConfigError, match=r"names kind/calm\.csv, of which .* has 0"):
        corpus.find_corpus(folder)
    (folder / "labels" / "combined_windows.json").write_text("[]")
    with pytest.raises(ConfigError, match="does not map"):
        corpus.find_corpus(folder)
    for text in ("when,value\n1,2\n", "timestamp,value\nnever,2\n"):
        (folder / "bad.csv").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.csv"):
            corpus.read_series(folder / "bad.csv")


def test_one_alarm_is_one_row() -> None:
    scores = np.zeros(400)
    scores[[50, 51, 52, 60, 200, 300]] = (2.0, 2.3, 3.0, 3.1, 1.5, 1.0)
    kept = corpus.held_back(scores)
    assert np.flatnonzero(kept).tolist() == [50, 52, 200]


def test_a_series_is_drawn(folder: Path, tmp_path: Path) -> None:
    require(importlib.util.find_spec("matplotlib"), "matplotlib")
    one = corpus.watch_all(folder, lambda _done, _total: None)[1]
    assert corpus.plot(one, tmp_path / "pictures").stat().st_size > 10_000


def test_real_series_are_watched() -> None:
    """Two samples of the benchmark: that they are read and scored whole. What is scored there decides nothing here."""
    found = corpus.figures(corpus.watch_all(shared_data() / "timeseries", lambda _done, _total: None))
    assert (found["series"], found["points"], found["windows"]) == (2, 29_962, 6)
    assert found["nab"]["standard"]["score"] > 50
