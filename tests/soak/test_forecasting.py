"""The slow forms of forecasting: the closed form against gradient descent, and intervals on real and on drifted series.

`-s` prints the figures that the pages have.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lisiere.cli import main
from lisiere.models import open_package
from lisiere_sim.evaluate.runs import read_runs
from lisiere_sim.training.linear import Linear, fit, moments
from support import REPOSITORY, require, seasons

pytestmark = pytest.mark.soak
LOOKBACK, SPLIT = 336, (8640, 11520, 14400)
SHARED = Path(os.environ.get("LISIERE_SHARED", REPOSITORY.parent / "shared")) / "data" / "timeseries"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def nlinear(z: NDArray[np.float64], horizon: int) -> Linear:
    """NLinear as its authors train it for ETTh1: Adam, rate 0.005 halved each epoch, batches of 32, patience 3.

    Source: Zeng et al., AAAI 2023, and the scripts that they published.
    """
    import torch

    first, second, _ = SPLIT
    torch.manual_seed(0)
    values = torch.tensor(z, dtype=torch.float32)
    train = values[:first].unfold(0, LOOKBACK + horizon, 1)
    check = values[first - LOOKBACK : second].unfold(0, LOOKBACK + horizon, 1)
    layer = torch.nn.Linear(LOOKBACK, horizon)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.005)

    def loss(part: Any) -> Any:
        x, y = part[..., :LOOKBACK], part[..., LOOKBACK:]
        last = x[..., -1:]
        return ((layer(x - last) + last - y) ** 2).mean()

    best, kept, worse = float("inf"), [one.detach().clone() for one in layer.parameters()], 0
    for epoch in range(10):
        for group in optimiser.param_groups:
            group["lr"] = 0.005 * 0.5**epoch
        order = torch.randperm(len(train))
        for start in range(0, len(train) - 31, 32):
            optimiser.zero_grad()
            loss(train[order[start : start + 32]]).backward()
            optimiser.step()
        with torch.no_grad():
            error = float(loss(check))
        worse = 0 if error < best else worse + 1
        if error < best:
            best, kept = error, [one.detach().clone() for one in layer.parameters()]
        if worse == 3:
            break
    weights, bias = (one.numpy().astype(np.float64) for one in kept)
    return Linear(weights.T, bias, 0.0)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
def test_the_closed_form_is_as_good_as_nlinear_by_gradient_descent(horizon: int, seed: int) -> None:
    require(importlib.util.find_spec("torch") is not None, "PyTorch")
    first, second, third = SPLIT
    values = seasons.seasons(third, 7, seed)
    z = (values - values[:first].mean(0)) / values[:first].std(0)
    real = np.ones(z.shape, np.bool_)
    train, check, held = (
        moments(z, real, LOOKBACK, horizon, *span) for span in ((LOOKBACK, first), (first, second), (second, third))
    )
    closed, descended = fit(train, check), nlinear(z, horizon)
    ours, theirs = held.error(closed.weights, closed.bias), held.error(descended.weights, descended.bias)
    say(f"series {seed}, horizon {horizon}: closed form {ours:.4f}, gradient descent {theirs:.4f}")
    assert ours <= 1.01 * theirs


def changed(how: str, rows: int, seed: int) -> NDArray[np.float64]:
    """A made-up series whose last fifth is not like what was before. No number was chosen by these seeds.

    `drift`: it drifts away, and its noise stops and then triples; `growth`: noise from nothing to much; `steps`: a
    step up, and noise that comes and goes every 250 rows.
    """
    values = seasons.seasons(rows, 2, seed)
    rng, cut = np.random.default_rng(seed + 1), rows * 4 // 5
    deviation, rest = values[:cut].std(0), rows - cut
    noise = rng.normal(0, 0.25, (rest, 2))
    if how == "drift":
        noise[: rest // 3] = 0
        noise[2 * rest // 3 :] *= 3
        noise += np.cumsum(0.15 * noise, axis=0) + np.linspace(0, 4, rest)[:, np.newaxis]
    elif how == "growth":
        noise *= np.linspace(0, 4, rest)[:, np.newaxis]
    else:
        noise *= 2 * (np.arange(rest) % 500 < 250)[:, np.newaxis]
        noise[rest // 2 :] += 2
    values[cut:] += deviation * noise
    return values


@pytest.mark.parametrize("horizon", [24, 96])
@pytest.mark.parametrize("name", ["ambient", "machine", "drift", "growth", "steps"])
def test_intervals_cover_what_they_say_on_held_out_data(name: str, horizon: int, tmp_path: Path) -> None:
    if name in ("drift", "growth", "steps"):
        file = seasons.write_csv(tmp_path / "series.csv", changed(name, 14_400, 40))
    else:
        file = SHARED / f"{name}_temperature_system_failure.csv"
        require(file.is_file(), "the shared series")
    options = [
        "--horizon",
        str(horizon),
        "--max-gap",
        "3",
        "--split",
        "0.6,0.2,0.2",
        "--output",
        str(tmp_path / "model"),
    ]
    assert main(["train", str(file), *options]) == 0
    pipeline = {"name": name, "model": "model", "backend": "onnx", "source": {"type": "csv", "path": "x"}}
    (tmp_path / "device.yaml").write_text(json.dumps({"device": "laptop", "pipelines": [pipeline]}))
    run, holdout = tmp_path / "run.jsonl", tmp_path / "model" / "holdout.csv"
    assert main(["replay", str(holdout), "--config", str(tmp_path / "device.yaml"), "--output", str(run)]) == 0
    (scored,) = read_runs(run, {"": tmp_path / "model"})
    found = scored.figures()
    channels = open_package(tmp_path / "model").manifest.task.names  # type: ignore[union-attr]
    raw = np.mean([found[channel]["between"] for channel in channels])
    covered = found["standardised"]["coverage"]
    say(f"{name}, horizon {horizon}: {found['scored']} forecasts, model's quantiles {raw:.3f}, interval {covered:.3f}")
    assert 0.88 <= covered <= 0.92
