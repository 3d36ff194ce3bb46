"""Manifests of series models: channels, quantiles, normalisation and covariates agree with the tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere.errors import Rejected
from lisiere.models import Manifest, TensorSpec, open_package, write_manifest
from lisiere.models.encoding import Calendar, Covariates, Normalise
from lisiere.models.manifest import Anomaly, Forecasting, WindowInput

WEEK = Covariates(calendar=(Calendar(part="hour_of_day"), Calendar(part="day_of_week", encoding="one_hot")))


def forecaster(
    shape: tuple[int, ...] = (1, 3, 2, 2), inputs: tuple[tuple[int, ...], ...] = ((1, 6, 2),), **changes: Any
) -> Manifest:
    """A model of two channels, three steps and two quantiles; `changes` go into its input and its task."""
    how = WindowInput(channels=("level", "wind"), length=6, step_s=60.0)
    task = Forecasting(horizon=3, quantiles=(0.1, 0.9), channels=("wind", "level"))
    of_task = {key: value for key, value in changes.items() if key in Forecasting.__struct_fields__}
    of_input = {key: value for key, value in changes.items() if key in WindowInput.__struct_fields__}
    if "channels" in of_task:
        of_input.pop("channels")
    return Manifest(
        schema="lisiere.model/1",
        name="tide",
        version="1.0.0",
        inputs=tuple(TensorSpec(name=f"in{at}", shape=one) for at, one in enumerate(inputs)),
        outputs=(TensorSpec(name="quantiles", shape=shape),),
        input=msgspec.structs.replace(how, **of_input),
        task=msgspec.structs.replace(task, **of_task),
        files={},
        onnx="model.onnx",
    )


def seal(folder: Path, manifest: Manifest) -> Path:
    (folder / "model.onnx").write_bytes(b"x")
    write_manifest(manifest, folder / "model.yaml")
    return folder


@pytest.mark.parametrize(
    "manifest",
    [
        forecaster(),
        forecaster((1, 3, 2), quantiles=(0.5,)),
        forecaster((1, 3, 2, 1), quantiles=(0.5,)),
        forecaster((1, 3, 2), channels=("wind",)),
        forecaster((1, 3, 2), channels=(), channel="wind"),
        forecaster(normalise=Normalise(level=(1.0, 2.0), scale=(3.0,))),
        forecaster(normalise=Normalise(level="mean", scale="std")),
        forecaster(inputs=((1, 6, 2), (1, 9, 9)), covariates=WEEK),
    ],
)
def test_what_agrees_is_taken_and_comes_back(tmp_path: Path, manifest: Manifest) -> None:
    found = open_package(seal(tmp_path, manifest)).manifest
    assert (found.input, found.task) == (manifest.input, manifest.task)


def test_the_covariates_of_a_detector_are_those_of_its_window(tmp_path: Path) -> None:
    manifest = forecaster(inputs=((1, 6, 2), (1, 6, 9)), covariates=WEEK)
    detector = msgspec.structs.replace(
        manifest, task=Anomaly(threshold=1.0), outputs=(TensorSpec(name="score", shape=(1,)),)
    )
    open_package(seal(tmp_path, detector))


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        (forecaster((1, 3, 2, 3)), "3 steps of 2 channels of 2 quantiles do not fill"),
        (forecaster((1, 2, 3, 2)), r"axes are \[1, horizon, channels, quantiles\]"),
        (forecaster((1, 2, 2, 3)), "axes are"),
        (forecaster(channel="wind"), "either a `task.channel` or `task.channels`"),
        (forecaster((1, 3, 2), channels=()), "either a `task.channel` or `task.channels`"),
        (forecaster(channels=("wind", "rain")), r"`task\.channels` 'rain' is none"),
        (forecaster(channels=("wind", "wind")), "names one twice"),
        (forecaster(quantiles=(0.9, 0.1)), "must rise"),
        (forecaster(normalise=Normalise(level=(1.0, 2.0, 3.0))), r"normalise\.level` must hold 1 or 2 numbers"),
        (forecaster(normalise=Normalise(scale=(1.0, 0.0))), "must be above zero"),
        (forecaster(normalise=Normalise(scale=(float("nan"),))), r"normalise\.scale` must hold"),
        (forecaster(covariates=WEEK), "declares 1 inputs"),
        (forecaster(inputs=((1, 6, 2), (1, 9, 9))), "declares 2 inputs"),
        (forecaster(inputs=((1, 6, 2), (1, 3, 9)), covariates=WEEK), r"shape \[1, 9, 9\]"),
        (
            forecaster(
                inputs=((1, 6, 2), (1, 9, 1)),
                covariates=Covariates(calendar=(Calendar(part="time_of_day", encoding="one_hot"),)),
            ),
            "`time_of_day` has no classes",
        ),
    ],
)
def test_what_does_not_agree_is_refused(tmp_path: Path, manifest: Manifest, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        seal(tmp_path, manifest)
