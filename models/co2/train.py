"""Train `co2`: the next half year of weekly carbon dioxide at Mauna Loa, with its uncertainty.

The windows come from the device's own window builder, so that gaps are filled in training as they are there. All
that is forecast in the held-out part, the last fifth of the record, lies after all that was trained on.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOME = Path(__file__).resolve().parent
sys.path.insert(0, str(HOME.parent))  # `models/` is no package; `training` lies in it

import training  # noqa: E402 - found by the line above

from lisiere.models import Manifest, Package, TensorSpec  # noqa: E402
from lisiere.models.manifest import Data, Forecasting, WindowInput  # noqa: E402
from lisiere.values import Readings  # noqa: E402
from lisiere.windows import WindowBuilder  # noqa: E402

SEED = 20_260_131
HELD_OUT = 0.2  # of the record, at its end
TOLERANCE = 0.005
LENGTH, HORIZON, YEAR = 104, 26, 52
QUANTILES = (0.1, 0.5, 0.9)
HIDDEN = 24
WEEK_S = 604_800.0

INPUT = WindowInput(channels=("co2",), length=LENGTH, step_s=WEEK_S, stride=1, max_gap=4)
MANIFEST = Manifest(
    schema="lisiere.model/1",
    name="co2",
    version="1.0.0",
    description="The next 26 weeks of carbon dioxide at Mauna Loa from the last 104, with quantiles.",
    licence="Apache-2.0",
    inputs=(TensorSpec(name="input", shape=(1, LENGTH, 1)),),
    outputs=(TensorSpec(name="quantiles", shape=(1, HORIZON, len(QUANTILES))),),
    input=INPUT,
    task=Forecasting(horizon=HORIZON, quantiles=QUANTILES, channel="co2", unit="ppmv"),
    files={},
    onnx="model.onnx",
    data=Data(
        name="Weekly atmospheric CO2 at Mauna Loa, 1958 to 2001 (as shipped with statsmodels)",
        licence="public domain",
        source="C. D. Keeling and T. P. Whorf, 2004, CDIAC; statsmodels.datasets.co2",
        note="A real record, with its gaps.",
    ),
)


@dataclass(frozen=True)
class Record:
    """The weekly record: seconds since the epoch, and ppmv with NaN where nothing was measured; both float64 [n]."""

    ts: NDArray[np.float64]
    co2: NDArray[np.float64]

    @property
    def cut(self) -> int:
        """Index of the first held-out week."""
        return round(len(self.co2) * (1 - HELD_OUT))


@dataclass(frozen=True)
class Examples:
    """Complete windows and what followed them.

    Attributes:
        x: float32, [n, 104]: the windows as the device builds them.
        y: float32, [n, 26]: the measured weeks after each, NaN where nothing was measured.
        last: int64, [n]: index in the record of each window's last week.
    """

    x: training.Array
    y: training.Array
    last: NDArray[np.int64]

    def where(self, chosen: NDArray[np.bool_]) -> Examples:
        """Return only the chosen rows."""
        return Examples(self.x[chosen], self.y[chosen], self.last[chosen])


def load() -> Record:
    """Return the whole record from statsmodels."""
    from statsmodels.datasets import co2

    series = co2.load().data["co2"]
    ts = [datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp() for day in series.index]
    return Record(np.array(ts), series.to_numpy(np.float64))


def examples(record: Record) -> Examples:
    """Build all windows of the record that the device would forecast from.

    Windows whose last week was not measured are left out: interpolation has looked past their end.
    """
    builder = WindowBuilder(INPUT, "co2")
    x, y, last = [], [], []
    padded = np.concatenate([record.co2, np.full(HORIZON, np.nan)]).astype(np.float32)
    for window in builder.add_block(Readings(record.ts, record.co2[:, None], "co2")):
        index = round((window.end - record.ts[0]) / WEEK_S)
        if window.complete and np.isfinite(record.co2[index]):
            x.append(window.values[:, 0])
            y.append(padded[index + 1 : index + 1 + HORIZON])
            last.append(index)
    return Examples(np.array(x), np.array(y), np.array(last))


def split(record: Record) -> tuple[Examples, Examples]:
    """Return what to train on and what to hold out: targets wholly before the cut, and wholly from it on."""
    whole = examples(record)
    known = np.isfinite(whole.y).any(1)
    train = known & (whole.last + HORIZON < record.cut)
    held = known & (whole.last >= record.cut - 1) & (whole.last + HORIZON < len(record.co2))
    return whole.where(train), whole.where(held)


def pinball(y: Any, quantiles: Any, np_: Any = np) -> Any:
    """Mean pinball loss over what was measured: `y` [n, h], `quantiles` [n, h, 3]; `np_` is numpy or its JAX twin.

    Source: Koenker and Bassett, Regression Quantiles, 1978.
    """
    known = np_.isfinite(y)
    error = np_.where(known, y, 0.0)[:, :, None] - np_.where(known[:, :, None], quantiles, 0.0)
    levels = np_.asarray(QUANTILES, np_.float32)
    return np_.maximum(levels * error, (levels - 1) * error).sum() / (known.sum() * len(QUANTILES))


def initial(rng: np.random.Generator) -> training.Params:
    """Draw the weights: a straight line from the window to the median, and a small network that bends it."""
    return {
        "line": np.zeros((LENGTH, HORIZON), np.float32),
        "hidden": training.dense(rng, LENGTH, HIDDEN),
        "hidden_bias": np.zeros(HIDDEN, np.float32),
        # Three groups of columns: what to add to the median, and how far below and above it the others lie.
        "head": training.dense(rng, HIDDEN, 3 * HORIZON) * np.float32(0.1),
        "head_bias": np.repeat(np.array([0, -2, -2], np.float32), HORIZON),
    }


def network(params: training.Params, x: Any) -> Any:
    """The same network as `export` writes, in JAX: windows [n, 104] to quantiles [n, 26, 3].

    The window is taken relative to the mean of its last year and to its own spread, so that level and unit do not
    matter. The outer quantiles are the median less and plus a positive number, so that they never cross.
    Source of the normalisation: Kim et al., Reversible Instance Normalization, 2022.
    """
    import jax

    level = x[:, LENGTH - YEAR :].mean(1, keepdims=True)
    spread = jax.numpy.sqrt(((x - level) ** 2).mean(1, keepdims=True) + 1e-6)
    z = (x - level) / spread
    hidden = jax.nn.relu(z @ params["hidden"] + params["hidden_bias"])
    head = hidden @ params["head"] + params["head_bias"]
    middle = z @ params["line"] + head[:, :HORIZON]
    below = middle - jax.nn.softplus(head[:, HORIZON : 2 * HORIZON])
    above = middle + jax.nn.softplus(head[:, 2 * HORIZON :])
    return jax.numpy.stack([below, middle, above], 2) * spread[:, :, None] + level[:, :, None]


def export(params: training.Params, file: Path) -> None:
    """Write the trained network as ONNX."""
    graph = training.OnnxGraph("co2", MANIFEST.inputs[0].shape)

    def part(x: str, axis: int, start: int, stop: int) -> str:
        return graph.add("Slice", x, np.array([start]), np.array([stop]), np.array([axis]))

    x = graph.add("Reshape", "input", np.array([1, LENGTH]))
    level = graph.add("ReduceMean", part(x, 1, LENGTH - YEAR, LENGTH), axes=[1], keepdims=1)
    centred = graph.add("Sub", x, level)
    power = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[1], keepdims=1)
    spread = graph.add("Sqrt", graph.add("Add", power, np.array([1e-6], np.float32)))
    z = graph.add("Div", centred, spread)
    hidden = graph.add("Relu", graph.add("Gemm", z, params["hidden"], params["hidden_bias"]))
    head = graph.add("Gemm", hidden, params["head"], params["head_bias"])
    middle = graph.add("Add", graph.add("MatMul", z, params["line"]), part(head, 1, 0, HORIZON))
    below = graph.add("Sub", middle, graph.add("Softplus", part(head, 1, HORIZON, 2 * HORIZON)))
    above = graph.add("Add", middle, graph.add("Softplus", part(head, 1, 2 * HORIZON, 3 * HORIZON)))
    columns = [graph.add("Reshape", column, np.array([1, HORIZON, 1])) for column in (below, middle, above)]
    scaled = graph.add("Mul", graph.add("Concat", *columns, axis=2), spread)
    graph.save(file, graph.add("Add", scaled, level), "quantiles", MANIFEST.outputs[0].shape)


def baselines(x: training.Array) -> dict[str, training.Array]:
    """Forecast windows [n, 104] by last year's value, and by that plus last year's growth: each [n, 26]."""
    naive = x[:, LENGTH - YEAR : LENGTH - YEAR + HORIZON]
    growth = x[:, -1:] - x[:, LENGTH - YEAR - 1 : LENGTH - YEAR]
    return {"seasonal_naive": naive, "seasonal_naive_with_drift": naive + growth}


def score(y: training.Array, quantiles: training.Array, point: training.Array) -> training.Figures:
    """Return the figures of forecasts in ppmv; `point` is what the mean absolute error is taken of."""
    known = np.isfinite(y)
    inside = (quantiles[:, :, 0] <= y) & (y <= quantiles[:, :, 2])
    return {
        "mae_ppmv": round(float(np.abs(y - point)[known].mean()), 4),
        "pinball_ppmv": round(float(pinball(y, quantiles)), 4),
        "coverage_80": round(float(inside[known].mean()), 4),
    }


def measure(folder: Path, _: Manifest) -> training.Figures:
    """Measure the folder's model, and the baselines, on the held-out part of the record.

    The baselines get quantiles too: their forecast plus the quantiles of their own errors on the training part, by
    week of the horizon.
    """
    train, held = split(load())
    predicted = training.predict(folder / "model.onnx", held.x[:, None, :, None])[:, 0]
    figures = {"model": score(held.y, predicted, predicted[:, :, 1])}
    before = baselines(train.x)
    for name, point in baselines(held.x).items():
        errors = np.nanquantile(train.y - before[name], QUANTILES, axis=0).T.astype(np.float32)
        figures[name] = score(held.y, point[:, :, None] + errors, point)
    return {"held_out": figures | {"windows": len(held.x)}}


def write_holdout(record: Record, file: Path) -> None:
    """Write the held-out weeks, and before them those of the first held-out window, as a CSV file for replay."""
    _, held = split(record)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["time", "co2"])
        for index in range(int(held.last[0]) - LENGTH + 1, len(record.co2)):
            day = datetime.fromtimestamp(record.ts[index], timezone.utc).date().isoformat()
            value = record.co2[index]
            writer.writerow([day, f"{value:.1f}" if np.isfinite(value) else ""])


def learn(examples: Examples, epochs: int) -> training.Params:
    """Fit the network to examples."""
    import jax

    def loss(params: training.Params, x: Any, y: Any) -> Any:
        spread = x.std(1, keepdims=True)
        quantiles = network(params, x) / spread[:, :, None]
        return pinball(y / spread, quantiles, jax.numpy)

    return training.fit(
        loss,
        initial(np.random.default_rng(SEED)),
        (examples.x, examples.y),
        epochs=epochs,
        batch=64,
        rate=3e-3,
        decay=1.0,
        seed=SEED,
    )


def train(folder: Path, quick: bool) -> Package:
    """Train, and write the package into `folder`."""
    record = load()
    chosen, held = split(record)
    export(learn(chosen, 2 if quick else 50), folder / "model.onnx")
    write_holdout(record, folder / "holdout.csv")
    golden = held.x[:: len(held.x) // 7][:8, None, :, None]
    # Levels are near 360 ppmv: a relative tolerance alone would let ppmv-sized errors pass.
    return training.seal(folder, MANIFEST, golden, measure, rtol=1e-6, atol=2e-3)


if __name__ == "__main__":
    sys.exit(training.main(__doc__ or "", HOME, train, measure, TOLERANCE))
