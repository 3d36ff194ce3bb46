"""What a package says beside its tensors, by its artifact: heads with their priors, temperature and calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lisiere.backends import BACKENDS, open_model
from lisiere.backends.dlr import find_library
from lisiere.calibration.calibrate import calibrate
from lisiere.cli import main
from lisiere.clock import ManualClock
from lisiere.models import open_package
from lisiere.models.manifest import Classification, Detection, SsdHead, SsdRawHead, YoloHead
from lisiere.settings.decision import DecisionConfig
from lisiere.tasks import open_task
from lisiere.values import Frame
from support import require, tiny
from support.detectors import detector

IMAGE = np.random.default_rng(3).integers(0, 256, (60, 120, 3)).astype(np.uint8)


def floats(*values: Any) -> Any:
    return np.asarray([values], np.float32)


HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ssd": (
        SsdHead(boxes="boxes", classes="classes", scores="scores"),
        {"boxes": floats([0.25, 0, 0.75, 0.5], [0, 0, 1, 1]), "classes": floats(1, 0), "scores": floats(0.9, 0.1)},
    ),
    "ssd_raw": (
        SsdRawHead(boxes="boxes", scores="scores", priors="anchors.txt"),
        {"boxes": floats([0, 0, 0, 0]), "scores": floats([0, 0, 3, 0])},
    ),
    "yolo": (
        YoloHead(output="rows", layout="rows", objectness=True),
        {"rows": floats([8, 16, 16, 16, 0.9, 0.0, 1.0, 0.0], [8, 16, 15, 16, 0.9, 0.0, 0.9, 0.0])},
    ),
}


def compiled(folder: Path) -> Path:
    """The artifact of a package, without its ONNX file."""
    out = folder.parent / "out"
    assert main(["compile", str(folder), "--target", "native", "--output", str(out), "--no-onnx"]) == 0
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    return folder


def answer(folder: Path, backend: Any, decision: DecisionConfig | None = None) -> Any:
    package = open_package(folder)
    opened = open_model(package, backend)
    result = open_task(package, opened.model, ManualClock(), decision)(Frame(IMAGE, 0.0, "camera", 0))
    opened.model.close()
    assert result is not None
    return result.body


@pytest.mark.soak
@pytest.mark.parametrize("head", HEADS)
def test_a_compiled_detector_finds_what_the_package_finds(tmp_path: Path, head: str) -> None:
    require(find_library(), "libdlr")
    how, outputs = HEADS[head]
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "anchors.txt").write_text("0.25,0.5,0.5,0.5\n")
    package = detector(tmp_path / "package", how, outputs)
    artifact = compiled(package)
    task = open_package(artifact).manifest.task
    assert isinstance(task, Detection)
    wanted = answer(package, "onnx")
    assert [(one.label, one.box) for one in wanted.objects] == [("dog", (0, 0, 60, 60))]
    for backend in BACKENDS[:2]:
        found = answer(artifact, backend)
        assert [(one.label, one.box) for one in found.objects] == [(one.label, one.box) for one in wanted.objects]
        assert found.objects[0].score == pytest.approx(wanted.objects[0].score, abs=1e-5)


def test_a_calibration_survives_compilation(tmp_path: Path) -> None:
    require(find_library(), "libdlr")
    package = tiny.classifier(tmp_path / "tiny")
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (200, 3))
    labels = np.where(rng.random(200) < 0.8, logits.argmax(1), rng.integers(0, 3, 200))
    task = calibrate(package, logits, labels).manifest.task
    assert isinstance(task, Classification)
    artifact = compiled(package)
    kept = open_package(artifact).manifest
    assert isinstance(kept.task, Classification)
    assert (kept.task.temperature, kept.figures) == (task.temperature, open_package(package).manifest.figures)
    decision = DecisionConfig(coverage=0.95, top=3)
    wanted = answer(package, "onnx", decision)
    assert wanted.set
    for backend in BACKENDS[:2]:
        found = answer(artifact, backend, decision)
        assert (found.label, found.set) == (wanted.label, wanted.set)
        assert found.score == pytest.approx(wanted.score, abs=1e-4)
