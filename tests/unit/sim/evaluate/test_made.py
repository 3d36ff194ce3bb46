"""Synthetic series and recordings: the same each time, and of the form that they say."""

from __future__ import annotations

import numpy as np

from lisiere_sim.evaluate.gaussian import windowed_gaussian
from lisiere_sim.evaluate.made import made
from lisiere_sim.plant import CHANNELS, record


def test_a_seed_is_a_corpus() -> None:
    one, again, other = ([*made(seed)] for seed in (1, 1, 2))
    assert len(one) == 58
    assert all((a.values == b.values).all() and a.windows == b.windows for a, b in zip(one, again, strict=True))
    assert not (one[-1].values == other[-1].values).all()
    assert len({series.name for series in one}) == 58


def test_windows_lie_in_their_series_one_behind_the_other() -> None:
    for series in made(3):
        assert np.isfinite(series.values).all()
        assert (np.diff(series.times) > 0).all()
        ends = [series.times[0] - 1]
        for start, end in series.windows:
            assert start > ends[-1]
            assert end <= series.times[-1]
            ends.append(end)
    assert not next(made(3)).windows


def test_a_recording_is_healthy_before_its_fault() -> None:
    one, again = record(5), record(5)
    assert (one.values == again.values).all()
    assert one.values.shape[1] == len(CHANNELS)
    assert 400 < one.first < one.last < len(one.values) - 50


def test_the_windowed_gaussian_is_that_of_the_benchmark() -> None:
    """Against its definition, value by value: mean and deviation of the window, and the tail beyond the value."""
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 6800)
    values[100] = np.nan
    scores = windowed_gaussian(values)
    assert (scores[0], scores[100]) == (0, 0)
    clean = np.delete(values, 100)
    found = np.delete(scores, 100)
    for at, window in ((50, clean[:50]), (6399, clean[:6399]), (6650, clean[200:6600])):
        away = abs(clean[at] - window.mean()) / window.std()
        normal = rng.normal(size=400_000)
        assert abs(found[at] - (normal < away).mean()) < 0.005
