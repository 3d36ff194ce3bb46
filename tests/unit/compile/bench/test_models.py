from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bench import models
from bench.litert import to_tflite
from lisiere_compile.bench.peers import LiteRt, missing
from support import require

MAKERS = [
    (lambda to: models.mobilenet_v2(to, 64), (1, 3, 64, 64)),
    (lambda to: models.resnet18(to, 64), (1, 3, 64, 64)),
    (models.tcn, (1, 4, 192)),
    (models.lstm, (1, 96, 4)),
    (models.overhead, (1, 1)),
]


@pytest.mark.parametrize(("make", "shape"), MAKERS, ids=["mobilenet_v2", "resnet18", "tcn", "lstm", "overhead"])
def test_a_made_model_neither_vanishes_nor_explodes_and_litert_gives_the_same(
    make: Callable[[Path], Path], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = make(tmp_path / "m.onnx")
    feeds = {"input": np.random.default_rng(3).random(shape).astype(np.float32)}
    (wanted,) = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, feeds)
    assert 0.05 < np.abs(wanted).max() < 50
    require(not missing("litert"), "LiteRT")
    contestant = LiteRt(to_tflite(model, tmp_path / "m.tflite"), feeds, 1)
    contestant.call()
    np.testing.assert_allclose(contestant.outputs()[0], wanted, rtol=1e-4, atol=1e-5)
    contestant.close()


def test_the_same_model_is_made_every_time(tmp_path: Path) -> None:
    first, second = models.tcn(tmp_path / "tcn.onnx").read_bytes(), models.tcn(tmp_path / "tcn.onnx").read_bytes()
    assert first == second
