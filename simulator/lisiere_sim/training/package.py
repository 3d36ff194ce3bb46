"""From a series to a sealed model package: split, fit, quantiles, graph, golden vectors, figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.errors import ConfigError, Permanent
from lisiere.models import Manifest, Package, TensorSpec, open_package, write_manifest
from lisiere.models.encoding import Normalise
from lisiere.models.manifest import Data, Forecasting, Golden, WindowInput
from lisiere_sim.training.linear import Array, Linear, Moments, examples, fit, moments
from lisiere_sim.training.onnx_graph import OnnxGraph, predict
from lisiere_sim.training.series import Series, write_series

GOLDEN = 8


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        length, horizon: rows of a window, and steps ahead.
        split: rows of the training, validation and held-out parts, one after the other from the start; what is left
            over is not used.
        quantiles: levels, rising.
        max_gap, stride: of the windows on the device.
    """

    length: int
    horizon: int
    split: tuple[int, int, int]
    quantiles: tuple[float, ...]
    max_gap: int = 0
    stride: int = 1


def train(series: Series, plan: Plan, folder: Path, name: str, data: Data) -> Package:
    """Train on the first part, choose by the second, measure on the third, and write the package into `folder`.

    The windows of a part may begin in the one before; what is forecast in a part lies in it.

    Raises:
        ConfigError: the series is too short, or a part has no window without a hole.
        Permanent: a library is missing, or the folder cannot be written.
    """
    first, second, third = np.cumsum(plan.split).tolist()
    if third > len(series.values):
        raise ConfigError(f"The split takes {third} rows, but the series has {len(series.values)}.")
    part = series.values[:first]
    if not np.isfinite(part).any(axis=0).all():
        raise ConfigError("A channel has no value in the training part.")
    mean, deviation = np.nanmean(part, axis=0), np.nanstd(part, axis=0)
    still = [channel for channel, one in zip(series.channels, deviation, strict=True) if not one > 0]
    if still:
        raise ConfigError(f"{', '.join(still)} does not change in the training part, so there is nothing to learn.")
    z = (series.values - mean) / deviation
    rows = {"training": (plan.length, first), "validation": (first, second), "held-out": (second, third)}
    parts = {key: _moments(z, series, plan, key, *span) for key, span in rows.items()}
    model = fit(parts["training"], parts["validation"])
    offsets = _offsets(model, z, series, plan, first, second)
    manifest = _manifest(series, plan, name, data, deviation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _export(model, offsets, manifest, folder / "model.onnx")
        write_series(series, second - plan.length, third, folder / "holdout.csv")
        manifest = msgspec.structs.replace(
            manifest,
            golden=_golden(manifest, z, plan, second, third, folder),
            figures=_figures(model, parts, z, series, plan, second, third),
        )
        write_manifest(manifest, folder / "model.yaml")
    except OSError as error:
        raise Permanent(f"{folder} cannot be written: {error.strerror}.") from error
    except ModuleNotFoundError as error:
        raise Permanent(f"This needs {error.name}. Install it with: pip install 'lisiere[train]'") from error
    return open_package(folder)


def _moments(z: Array, series: Series, plan: Plan, part: str, first: int, stop: int) -> Moments:
    try:
        return moments(z, series.real, plan.length, plan.horizon, first, stop)
    except ValueError as error:
        raise ConfigError(
            f"The {part} part has {stop - first} rows, and {error}: a window takes {plan.length} rows, and "
            f"{plan.horizon} follow it."
        ) from error


def _offsets(model: Linear, z: Array, series: Series, plan: Plan, first: int, stop: int) -> NDArray[np.float64]:
    """How far each quantile lies from the forecast: [horizon, channels, quantiles], by the validation part's errors.

    The median is the forecast itself, which is what the squared error asks for; the others lie on their side of it.
    """
    found = np.zeros((plan.horizon, z.shape[1], len(plan.quantiles)))
    side = np.sign(np.asarray(plan.quantiles) - 0.5)
    for channel, windows, after in examples(z, series.real, plan.length, plan.horizon, first, stop):
        told = np.quantile(after - model.predict(windows), plan.quantiles, axis=0).T
        found[:, channel] = np.where(side < 0, np.minimum(told, 0), np.where(side > 0, np.maximum(told, 0), 0))
    return found


def _manifest(series: Series, plan: Plan, name: str, data: Data, deviation: NDArray[np.float64]) -> Manifest:
    count = len(series.channels)
    return Manifest(
        schema="lisiere.model/1",
        name=name,
        version="1.0.0",
        description=f"The next {plan.horizon} steps of {count} channel{'s' * (count > 1)} from the last {plan.length}.",
        inputs=(TensorSpec(name="input", shape=(1, plan.length, count)),),
        outputs=(TensorSpec(name="quantiles", shape=(1, plan.horizon, count, len(plan.quantiles))),),
        input=WindowInput(
            channels=series.channels,
            length=plan.length,
            step_s=series.step_s,
            stride=plan.stride,
            max_gap=plan.max_gap,
            normalise=Normalise(level="last", scale=tuple(float(one) for one in deviation)),
        ),
        task=Forecasting(horizon=plan.horizon, quantiles=plan.quantiles, channels=series.channels),
        files={},
        onnx="model.onnx",
        data=data,
    )


def _export(model: Linear, offsets: NDArray[np.float64], manifest: Manifest, file: Path) -> None:
    """Write the graph: windows relative to their last value in, the same in every quantile out."""
    spec, (_, horizon, channels, _) = manifest.inputs[0], manifest.outputs[0].shape
    graph = OnnxGraph(manifest.name, spec.shape)
    rows = graph.add("Reshape", "input", np.array(spec.shape[1:]))
    columns = (
        graph.add("Transpose", rows, perm=[1, 0])
        if channels > 1
        else graph.add("Reshape", "input", np.array([1, spec.shape[1]]))
    )
    steps = graph.add("Gemm", columns, model.weights, model.bias)
    back = graph.add("Transpose", steps, perm=[1, 0]) if channels > 1 else steps
    wide = graph.add("Reshape", back, np.array([1, horizon, channels, 1]))
    graph.save(file, graph.add("Add", wide, offsets[np.newaxis]), manifest.outputs[0].name, manifest.outputs[0].shape)


def _golden(manifest: Manifest, z: Array, plan: Plan, first: int, stop: int, folder: Path) -> Golden:
    """Write what the graph makes of some held-out windows, or of drawn ones where too few are whole."""
    spec, result = manifest.inputs[0], manifest.outputs[0]
    ends = np.linspace(first, stop - 1, 4 * GOLDEN).astype(int)
    windows = [z[end - plan.length : end] for end in ends if np.isfinite(z[end - plan.length : end]).all()][:GOLDEN]
    drawn = np.random.default_rng(0).normal(0, 1, (GOLDEN - len(windows), plan.length, z.shape[1])).cumsum(axis=1)
    cases = np.stack([*windows, *drawn]).reshape(GOLDEN, *spec.shape)
    cases = (cases - cases[:, :, -1:]).astype(np.float32)
    vectors: dict[str, Any] = {
        f"inputs/{spec.name}": cases,
        f"outputs/{result.name}": predict(folder / "model.onnx", cases),
    }
    np.savez_compressed(folder / "golden.npz", **vectors)
    return Golden(file="golden.npz", rtol=1e-4, atol=1e-4)


def _figures(
    model: Linear, parts: dict[str, Moments], z: Array, series: Series, plan: Plan, first: int, stop: int
) -> dict[str, Any]:
    """Errors in standardised values, as published tables have them, over all windows of the held-out part."""
    absolute, count = 0.0, 0
    for _, windows, after in examples(z, series.real, plan.length, plan.horizon, first, stop):
        absolute += float(np.abs(after - model.predict(windows)).sum())
        count += after.size
    held, weights, bias = parts["held-out"], model.weights, model.bias
    return {
        "rows": dict(zip(("training", "validation", "held_out"), plan.split, strict=True)),
        "ridge": float(f"{model.strength:.4g}"),
        "validation": {"mse": round(parts["validation"].error(weights, bias), 4)},
        "held_out": {
            "mse": round(held.error(weights, bias), 4),
            "mae": round(absolute / count, 4),
            "last_value_mse": round(held.error(np.zeros_like(weights), np.zeros_like(bias)), 4),
            "windows": held.count // len(series.channels),
        },
    }
