"""The built-in detector on all that is made for it: what docs/evaluation.md says of it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lisiere_sim.evaluate import corpus
from lisiere_sim.evaluate.cli import MADE_SEED
from lisiere_sim.evaluate.samples import plant

pytestmark = pytest.mark.soak


def test_made_series_score_as_the_page_says() -> None:
    found = corpus.figures(corpus.watch_made(MADE_SEED, lambda _done, _total: None))
    assert found["nab"]["standard"]["score"] > 43
    assert found["nab_own_threshold"]["standard"]["score"] > 43
    assert found["nab_windowed_gaussian"]["standard"]["score"] == pytest.approx(20.1, abs=0.2)


def test_recordings_score_as_the_page_says() -> None:
    (run,) = plant(Path(), lambda _done, _total: None)
    found = run.figures()
    assert found["point"]["f1"] > 0.68
    assert found["event"]["found"] >= 30
