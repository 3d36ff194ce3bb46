"""Figures of forecasts: against sums by hand, with holes, and of what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.clock import rfc3339
from lisiere.errors import ConfigError
from lisiere_sim.evaluate.forecasting import KIND, Truth, compact, figures, plot, read_truth
from lisiere_sim.evaluate.runs import read_runs
from support import REPOSITORY, require

STEP = 3600.0


def result(row: int, quantiles: dict[str, list[float]], interval: tuple[list[float], list[float]] | None = None) -> Any:
    """A forecast made at a row; quantiles by level."""
    body: dict[str, Any] = {"horizon": [], "method": "model", "quantiles": quantiles, "interval": None}
    if interval is not None:
        body["interval"] = {"coverage": 0.9, "low": interval[0], "high": interval[1]}
    window = {"start": rfc3339(0), "end": rfc3339(row * STEP), "step_s": STEP}
    return {"pipeline": "tide", "task": "forecasting", "ts": rfc3339(row * STEP), "window": window, "result": body}


def truth(*values: float, **scale: float) -> Truth:
    return Truth(np.arange(len(values), dtype=np.float64) * STEP, {"level": np.array(values)}, scale)


def test_errors_are_those_by_hand() -> None:
    fan = {"0.1": [0.0, 0.0], "0.5": [1.0, 1.0], "0.9": [2.0, 2.0]}
    found = figures([result(1, fan, ([0.5, 0.5], [1.5, 4.0]))], truth(0, 2, 1, 4, level=2.0))
    assert (found["forecasts"], found["scored"], found["by_model"]) == (1, 1, 1)
    level = found["level"]
    # Came 1 and 4, said 1 and 1; before it 0 and 2.
    assert (level["n"], level["mae"], level["mse"]) == (2, 1.5, 4.5)
    by_hand = [
        max(at * (came - said), (at - 1) * (came - said))
        for came in (1, 4)
        for at, said in ((0.1, 0), (0.5, 1), (0.9, 2))
    ]
    assert level["crps"] == pytest.approx(2 * np.mean(by_hand), rel=1e-4)
    assert (level["between"], level["coverage"]) == (0.5, 1.0)
    assert level["mase"] == pytest.approx(1.5 / 2)
    assert found["standardised"] == {"mse": 4.5 / 4, "mae": 0.75, "coverage": 1.0}
    assert (found["step 1"]["mae"], found["step 2"]["mae"]) == (0, 3)


def test_forecasts_that_reach_beyond_the_truth_are_left_out() -> None:
    fan = {"0.5": [0.0, 0.0]}
    found = figures([result(row, fan) for row in range(5)], truth(0, 0, 0, 0, 0))
    assert (found["forecasts"], found["scored"]) == (5, 3)
    assert figures([result(9, fan)], truth(0, 0)) == {"forecasts": 1, "scored": 0}


def test_what_was_not_measured_is_not_scored() -> None:
    found = figures([result(0, {"0.5": [0.0, 0.0]})], truth(0, float("nan"), 3))
    assert (found["level"]["n"], found["level"]["mae"]) == (1, 3)
    assert found["level"]["coverage"] is None
    assert "standardised" not in found


def test_channels_add_up_only_where_they_are_standardised() -> None:
    one = result(0, {})
    one["result"]["channels"] = {
        "a": {"quantiles": {"0.5": [1.0]}, "interval": None},
        "b": {"quantiles": {"0.5": [10.0]}, "interval": None},
    }
    times, values = np.array([0.0, STEP]), {"a": np.zeros(2), "b": np.zeros(2)}
    assert figures([one], Truth(times, values, {}))["step 1"] == {"coverage": None}
    found = figures([one], Truth(times, values, {"a": 1.0, "b": 10.0}))
    assert found["standardised"] == {"mse": 1.0, "mae": 1.0, "coverage": None}
    assert (found["a"]["mae"], found["b"]["mae"]) == (1, 10)


def test_a_channel_that_the_truth_lacks_is_named() -> None:
    one = result(0, {"0.5": [1.0]})
    two = Truth(np.array([0.0, STEP]), {"a": np.zeros(2), "b": np.zeros(2)}, {})
    with pytest.raises(ConfigError, match="columns a, b; give the one"):
        figures([one], two)
    one["result"]["channels"] = {"c": {"quantiles": {"0.5": [1.0]}, "interval": None}}
    with pytest.raises(ConfigError, match="the forecast is of 'c'"):
        figures([one], two)


def test_a_file_and_a_models_folder_are_both_truth(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("time,level\n2026-01-02T00:00:00Z,2\n2026-01-01T00:00:00Z,1\n2026-01-03T00:00:00Z,\n")
    found = read_truth(file)
    assert np.diff(found.times).tolist() == [86_400, 86_400]
    assert found.values["level"].tolist()[:2] == [1, 2]
    assert np.isnan(found.values["level"][2])
    folder = read_truth(REPOSITORY / "models" / "co2")
    assert list(folder.values) == ["co2"]
    assert folder.scale == {}


@pytest.mark.parametrize(
    "text", ["", "time,x\n", "time\n1\n", "time,x\nyesterday,1\n", "time,x\n1,one\n", "time,x\n1,2\n3\n"]
)
def test_a_file_that_is_no_series_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(text)
    with pytest.raises(ConfigError):
        read_truth(file)


def test_runs_are_read_in_arrays_and_what_is_no_forecast_is_named(tmp_path: Path) -> None:
    file, labels = tmp_path / "run.jsonl", tmp_path / "x.csv"
    labels.write_text("time,level\n0,0\n3600,1\n")
    file.write_text(json.dumps(result(0, {"0.5": [1.0]})) + "\n")
    (run,) = read_runs(file, {"": labels})
    assert run.results == [compact(result(0, {"0.5": [1.0]}))]
    assert run.figures()["level"]["mae"] == 0
    wrong = result(0, {"0.5": [1.0]})
    del wrong["window"]
    file.write_text(json.dumps(wrong) + "\n")
    with pytest.raises(ConfigError, match="line 1 is no result of forecasting: KeyError"):
        read_runs(file, {"": labels})


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    import importlib.util

    require(importlib.util.find_spec("matplotlib") is not None, "matplotlib")
    fan = {"0.1": [0.0, 0.0], "0.5": [1.0, 1.0], "0.9": [2.0, 2.0]}
    plot([result(row, fan) for row in range(6)], truth(*range(9)), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert KIND.plot is plot


@pytest.mark.soak
def test_intervals_of_the_sample_model_cover_what_they_say() -> None:
    from lisiere_sim.evaluate.samples import co2

    (run,) = co2(REPOSITORY / "models" / "co2", lambda *_: None)
    found = run.figures()["co2"]
    assert 0.88 <= found["coverage"] <= 0.92
    assert found["between"] < 0.85  # of the model's own quantiles 0.1 and 0.9
