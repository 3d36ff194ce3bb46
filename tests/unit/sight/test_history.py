"""Quantiles of a bounded history."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lisiere.sight.history import History


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=700))
def test_quantiles_are_those_of_the_last_300_samples(samples: list[float]) -> None:
    history = History()
    for sample in samples:
        history.add(sample)
    kept = sorted(samples[-300:])
    assert history.known == (len(samples) >= 10)
    for share, found in ((0.05, history.low), (0.5, history.median), (0.95, history.high)):
        assert found == kept[int(share * len(kept))]


def test_nothing_is_known_of_nothing() -> None:
    history = History()
    assert not history.known
    assert history.low == history.median == history.high == 0


def test_what_is_rare_does_not_move_what_is_usual() -> None:
    history, rng = History(), np.random.default_rng(1)
    for number in range(300):
        history.add(1000.0 if number % 50 == 0 else float(rng.normal(10, 1)))
    assert 8 < history.low < history.median < history.high < 13
