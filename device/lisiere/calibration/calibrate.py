"""Calibrating a model package: its temperature, its calibration scores, and the figures that say what they changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.backends import open_model
from lisiere.calibration.temperature import Floats, Labels, calibration_error, fit_temperature, log_loss, tempered
from lisiere.errors import Rejected
from lisiere.models import Package, open_package, write_manifest
from lisiere.models.manifest import Classification, ImageInput
from lisiere.models.package import find_manifest
from lisiere.tasks.classification import LEAST_SHARE, Scores, class_shares
from lisiere.tasks.conformal import MAX_POINTS, Method, nonconformity, write_scores
from lisiere.tasks.preprocess import ImagePreprocess

FILE = "calibration.scores"  # no `.json`: libdlr takes those for its own
FEWEST = 20  # images; both halves need some
_SEED = 20_170_806


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration found.

    Attributes:
        temperature: for the manifest.
        scores: of the true labels of the second half, in any order.
        figures: of the second half, without and with the temperature: log loss, expected calibration error.
    """

    temperature: float
    scores: Floats
    figures: dict[str, Any]


def fit(outputs: NDArray[Any], labels: Labels, scores: Scores, method: Method) -> Calibrated:
    """Find what calibrates a model from its outputs.

    One half of the images, drawn by a fixed seed, gives the temperature. The other half gives the figures and the
    calibration scores, so that the figures are of images that the temperature has not seen, and the sets of labels
    keep their promise exactly: it needs scores that were fixed before.

    Args:
        outputs: [n, classes], as the model gives them.
        labels: [n], the true classes.
        scores: what the outputs are; see `Classification.scores`.
        method: of the calibration scores.

    Raises:
        Rejected: too few images, outputs that are no numbers, labels without a class, or no temperature fits.
    """
    if not FEWEST <= len(labels) <= MAX_POINTS:
        raise Rejected(f"A calibration takes {FEWEST} to {MAX_POINTS} labelled images, not {len(labels)}.")
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise Rejected(f"The labels are indices from 0 to {outputs.shape[1] - 1}; there is another one.")
    if not np.isfinite(outputs).all():
        raise Rejected("The model's scores are not numbers.")
    logits = outputs.astype(np.float64)
    if scores != "softmax":
        logits = np.log(np.maximum(logits / 255 if scores == "uint8" else logits, LEAST_SHARE))
    order = np.random.default_rng(_SEED).permutation(len(labels))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    temperature = round(fit_temperature(logits[first], labels[first]), 4)
    before, after = tempered(logits[second], 1.0), tempered(logits[second], temperature)
    told = labels[second]
    right = logits[second].argmax(1) == told
    # As the device will have them.
    shares = np.asarray([class_shares(output, scores, temperature) for output in outputs[second]])
    figures = {
        "images": len(labels),
        "log_loss_before": round(log_loss(before, told), 4),
        "log_loss_after": round(log_loss(after, told), 4),
        "ece_before": round(calibration_error(before.max(1), right), 4),
        "ece_after": round(calibration_error(after.max(1), right), 4),
    }
    return Calibrated(temperature, nonconformity(shares, method)[np.arange(len(told)), told], figures)


def run(package: Package, images: Iterable[NDArray[np.uint8]]) -> NDArray[Any]:
    """Return a classifier's outputs for images, [n, classes], by the first backend that can run it here.

    Raises:
        Rejected: an image cannot be used, or the model is no classifier of images.
        Permanent: no backend can run it.
    """
    manifest = _classifier(package)
    assert isinstance(manifest.input, ImageInput)  # noqa: S101 - open_package looked
    preprocess = ImagePreprocess(manifest.input, manifest.inputs[0])
    opened = open_model(package, "auto")
    given, made = manifest.inputs[0].name, manifest.outputs[0].name
    try:
        outputs = [opened.model.run({given: preprocess(image)})[made].reshape(-1).copy() for image in images]
    finally:
        opened.model.close()
    return np.stack(outputs) if outputs else np.empty((0, manifest.outputs[0].size))


def calibrate(folder: Path, outputs: NDArray[Any], labels: Labels, method: Method = "lac") -> Package:
    """Calibrate the package in a folder by the outputs that its model gave for labelled images; return it opened.

    Its manifest gets `task.temperature`, `task.calibration` and `figures.calibration`, and so another digest.

    Raises:
        Rejected: as `open_package` and `fit` do; the package is left as it was.
    """
    package = open_package(folder)
    manifest = _classifier(package)
    assert isinstance(manifest.task, Classification)  # noqa: S101 - _classifier looked
    found = fit(outputs, labels, manifest.task.scores, method)
    write_scores(folder / FILE, found.scores, method)
    task = msgspec.structs.replace(manifest.task, temperature=found.temperature, calibration=FILE)
    figures = {**manifest.figures, "calibration": found.figures}
    write_manifest(msgspec.structs.replace(manifest, task=task, figures=figures), find_manifest(folder))
    return open_package(folder)


def _classifier(package: Package) -> Any:
    if not isinstance(package.manifest.task, Classification):
        raise Rejected(f"{package.path} is no classifier, so there is nothing to calibrate.")
    return package.manifest
