"""The slow form of the sample models' tests: a whole training gives a model as good as the one that is shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import REPOSITORY

pytestmark = pytest.mark.soak


def trained(name: str, folder: Path) -> dict[str, Any]:
    """Train one model from scratch and return its figures on held-out data."""
    script = REPOSITORY / "models" / name / "train.py"
    done = subprocess.run([sys.executable, str(script), "--output", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)["held_out"]
    return figures


def test_digits_is_right_at_least_97_times_in_a_hundred(tmp_path: Path) -> None:
    assert trained("digits", tmp_path)["accuracy"] >= 0.97


def test_co2_beats_both_baselines(tmp_path: Path) -> None:
    figures = trained("co2", tmp_path)
    for baseline in ("seasonal_naive", "seasonal_naive_with_drift"):
        assert figures["model"]["mae_ppmv"] < figures[baseline]["mae_ppmv"]
        assert figures["model"]["pinball_ppmv"] < figures[baseline]["pinball_ppmv"]


def test_pump_tells_severe_faults_from_health(tmp_path: Path) -> None:
    figures = trained("pump", tmp_path)
    for fault in ("bearing", "imbalance", "cavitation"):
        assert figures[fault]["roc_auc"]["1.0"] > 0.95
    assert figures["false_alarm_rate"] < 0.005
