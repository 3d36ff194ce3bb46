"""Calibrating a package: what is written, what it promises, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from lisiere.calibration.calibrate import FEWEST, calibrate, fit, run
from lisiere.calibration.temperature import calibration_error, tempered
from lisiere.cli import main
from lisiere.errors import Rejected
from lisiere.models import open_package
from lisiere.models.manifest import Classification
from lisiere.tasks.classification import class_shares, sets_of
from lisiere.tasks.conformal import read_scores
from lisiere_sim.digits import render
from support import REPOSITORY, tiny


def images(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def labelled(folder: Path, count: int = 60, seed: int = 0) -> tuple[Any, Any]:
    """Images, and labels drawn from eight times what the tiny model says of them, so that it is not sure enough."""
    shown = images(count, seed)
    logits = 8 * run(open_package(folder), shown)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    return shown, (shares.cumsum(1) < np.random.default_rng(seed + 1).random((count, 1))).sum(1).clip(0, 2)


def task_of(folder: Path) -> Classification:
    task = open_package(folder).manifest.task
    assert isinstance(task, Classification)
    return task


def test_a_calibrated_package_is_whole_and_says_what_changed(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "tiny", figures={"kept": 1})
    before = open_package(folder)
    shown, labels = labelled(folder, 400)
    package = calibrate(folder, run(before, shown), labels)
    assert package == open_package(folder)
    assert package.digest != before.digest
    task = task_of(folder)
    assert task.temperature == pytest.approx(1 / 8, rel=0.5)
    assert task.calibration is not None
    assert task.calibration in package.manifest.files
    assert len(read_scores(package.file(task.calibration)).scores) == 200
    figures = package.manifest.figures
    assert figures["kept"] == 1
    assert figures["calibration"]["images"] == 400
    assert figures["calibration"]["log_loss_after"] < figures["calibration"]["log_loss_before"]
    again = calibrate(folder, run(package, shown), labels)
    assert again.digest == package.digest


def test_the_second_half_s_shares_are_scored_as_the_device_has_them() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (200, 3)).astype(np.float32)
    labels = np.where(rng.random(200) < 0.8, logits.argmax(1), rng.integers(0, 3, 200))
    for outputs, scores in (
        (logits, "softmax"),
        (np.exp(logits) / np.exp(logits).sum(1, keepdims=True), "probabilities"),
    ):
        found = fit(outputs, labels, scores, "lac")  # type: ignore[arg-type]
        shares = [class_shares(output, scores, found.temperature) for output in outputs]  # type: ignore[arg-type]
        possible = {round(1 - share[label], 12) for share, label in zip(shares, labels, strict=True)}
        assert {round(score, 12) for score in found.scores.tolist()} <= possible
        assert len(found.scores) == 100


def test_shares_are_calibrated_like_the_logits_behind_them() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (400, 3))
    labels = np.where(rng.random(400) < 0.8, logits.argmax(1), rng.integers(0, 3, 400))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    warm = fit(logits, labels, "softmax", "aps")
    same = fit(shares, labels, "probabilities", "aps")
    coarse = fit(np.rint(shares * 255).astype(np.uint8), labels, "uint8", "aps")
    assert same.temperature == pytest.approx(warm.temperature, abs=1e-3)
    assert same.scores == pytest.approx(warm.scores, abs=1e-3)
    assert coarse.temperature == pytest.approx(warm.temperature, rel=0.3)


@pytest.mark.parametrize(
    ("outputs", "labels", "why"),
    [
        (np.zeros((FEWEST - 1, 3)), np.zeros(FEWEST - 1, np.int64), "takes 20 to"),
        (np.zeros((40, 3)), np.full(40, 3), "from 0 to 2"),
        (np.zeros((40, 3)), np.full(40, -1), "from 0 to 2"),
        (np.full((40, 3), np.nan), np.zeros(40, np.int64), "not numbers"),
    ],
)
def test_what_cannot_calibrate_is_rejected_and_changes_nothing(
    tmp_path: Path, outputs: Any, labels: Any, why: str
) -> None:
    folder = tiny.classifier(tmp_path / "tiny")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(Rejected, match=why):
        calibrate(folder, outputs, labels)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_only_classifiers_are_calibrated(tmp_path: Path) -> None:
    folder = tiny.forecaster(tmp_path / "tide")
    with pytest.raises(Rejected, match="no classifier"):
        calibrate(folder, np.zeros((40, 3)), np.zeros(40, np.int64))


def test_by_the_command_line_from_a_folder_and_from_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny.classifier(tmp_path / "tiny")
    shown, labels = labelled(folder)
    (tmp_path / "images").mkdir()
    lines = ["file,label"]
    for index, (image, label) in enumerate(zip(shown, labels, strict=True)):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), image)
        lines.append(f"{index}.png,{tiny.LABELS[label]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    arguments = ["models", "calibrate", str(folder), "--json"]
    assert main([*arguments, "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels.csv")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["temperature"] == task_of(folder).temperature
    assert first["digest"] == open_package(folder).digest
    for name, told in (("indices", labels), ("names", np.asarray(tiny.LABELS)[labels])):
        np.savez(tmp_path / f"{name}.npz", images=shown, labels=told)
        assert main([*arguments, "--images", str(tmp_path / f"{name}.npz")]) == 0
        assert json.loads(capsys.readouterr().out) == first
    assert main([*arguments[:-1], "--images", str(tmp_path / "names.npz"), "--method", "aps"]) == 0
    assert f"temperature {first['temperature']:g}, by 60 images" in capsys.readouterr().out
    assert read_scores(folder / "calibration.scores").method == "aps"
    assert main(["models", "verify", str(folder)]) == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,label\n", "must have the columns"),
        ("file,label\n0.png,larch\n", "line 2: 'larch' is none of the model's labels"),
        ("file,label\n0.png\n", "line 2: '' is none"),
        ("file,label\nabsent.png,oak\n", "absent.png"),
        (None, "cannot be read"),
    ],
)
def test_a_table_of_labels_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, why: str
) -> None:
    folder = tiny.classifier(tmp_path / "tiny")
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    arguments = ["models", "calibrate", str(folder), "--images", str(tmp_path)]
    assert main([*arguments, "--labels", str(tmp_path / "labels.csv")]) == 1
    assert why in capsys.readouterr().err
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"images": images(30)}, "is no .npz"),
        ({"images": images(30).astype(np.float32), "labels": np.zeros(30, int)}, "is uint8"),
        ({"images": images(30), "labels": np.zeros(29, int)}, "is uint8"),
        ({"images": images(30), "labels": np.full(30, "larch")}, "'larch' is none"),
        ({"images": np.asarray([{}]), "labels": np.zeros(1, int)}, "is no .npz"),
    ],
)
def test_arrays_that_cannot_be_used_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any], why: str
) -> None:
    folder = tiny.classifier(tmp_path / "tiny")
    np.savez(tmp_path / "set.npz", **arrays)
    assert main(["models", "calibrate", str(folder), "--images", str(tmp_path / "set.npz")]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, -40), (4, None), (100, None)])
def test_arrays_that_are_damaged_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], start: int, end: int | None
) -> None:
    folder = tiny.classifier(tmp_path / "tiny")
    np.savez_compressed(tmp_path / "set.npz", images=images(30), labels=np.zeros(30, int))
    (tmp_path / "set.npz").write_bytes((tmp_path / "set.npz").read_bytes()[start:end])
    assert main(["models", "calibrate", str(folder), "--images", str(tmp_path / "set.npz")]) == 1
    assert "is no .npz with `images` and `labels`" in capsys.readouterr().err


def test_the_sample_model_s_sets_hold_digits_that_it_was_not_calibrated_with() -> None:
    package = open_package(REPOSITORY / "models" / "digits")
    with np.load(package.path / "heldout.npz") as held:
        glyphs, labels = held["glyphs"][1::2], held["labels"][1::2]
    rng = np.random.default_rng(9)
    outputs = run(package, (render(glyph, rng) for glyph in glyphs))
    task = task_of(package.path)
    shares = np.asarray([class_shares(output, task.scores, task.temperature) for output in outputs])
    right = shares.argmax(1) == labels
    assert calibration_error(shares.max(1), right) < calibration_error(tempered(outputs, 1.0).max(1), right)
    for coverage in (0.9, 0.95, 0.99):
        sets = sets_of(package, coverage)
        held_in = [label in sets(share) for share, label in zip(shares, labels, strict=True)]
        # Three standard deviations of what 225 digits, and 113 of the calibration, leave open.
        assert np.mean(held_in) > coverage - 3 * (coverage * (1 - coverage) * (1 / 225 + 1 / 113)) ** 0.5


def test_the_sample_model_is_calibrated() -> None:
    package = open_package(REPOSITORY / "models" / "digits")
    task = task_of(package.path)
    assert task.calibration is not None
    scores = read_scores(package.file(task.calibration))
    assert len(scores.scores) == 113
    scores.sets(0.99)
    assert package.manifest.figures["calibration"]["ece_after"] < package.manifest.figures["calibration"]["ece_before"]
    assert msgspec.json.encode(package.manifest)
