"""Sets of labels: they hold the true label as often as promised, whatever the model's scores are."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lisiere.errors import Rejected
from lisiere.tasks.conformal import (
    MAX_BYTES,
    ConformalSets,
    Method,
    fewest_points,
    label_set,
    limit_of,
    nonconformity,
    read_scores,
    write_scores,
)

METHODS: tuple[Method, ...] = ("lac", "aps")


def test_lac_is_what_a_share_lacks() -> None:
    assert nonconformity(np.asarray([0.7, 0.1, 0.2]), "lac") == pytest.approx([0.3, 0.9, 0.8])


def test_aps_adds_up_what_comes_before() -> None:
    shares = np.asarray([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]])
    assert nonconformity(shares, "aps") == pytest.approx(np.asarray([[1.0, 0.7, 0.9], [0.5, 0.75, 1.0]]))


@pytest.mark.parametrize(("coverage", "fewest"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_the_fewest_points_are_those_of_the_formula(coverage: float, fewest: int) -> None:
    assert fewest_points(coverage) == fewest
    limit_of(np.linspace(0, 1, fewest), coverage)
    with pytest.raises(Rejected, match=f"takes at least {fewest} calibration images, and the model has {fewest - 1}"):
        limit_of(np.linspace(0, 1, fewest - 1), coverage)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 999))
@example(99, 70)  # 100 * 0.07 is a little more than 7
def test_the_limit_is_the_quantile_corrected_for_a_finite_set(points: int, thousandths: int) -> None:
    rank = math.ceil((points + 1) * Fraction(thousandths, 1000))
    scores = np.arange(1, points + 1, dtype=np.float64)
    if rank > points:
        with pytest.raises(Rejected):
            limit_of(scores, thousandths / 1000)
    else:
        assert limit_of(scores, thousandths / 1000) == rank


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(METHODS), st.integers(9, 40), st.sampled_from([0.5, 0.75, 0.9]))
def test_one_more_of_the_same_kind_is_covered_as_often_as_promised(
    seed: int, method: Method, points: int, coverage: float
) -> None:
    """Exactly what is promised: of n + 1 exchangeable points, each being the new one as often as any other."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(5, 0.4), points + 1)  # and the labels have nothing to do with them
    truth = rng.integers(0, 5, points + 1)
    scores = nonconformity(shares, method)[np.arange(points + 1), truth]
    covered = 0
    for new in range(points + 1):
        limit = limit_of(np.sort(np.delete(scores, new)), coverage)
        covered += int(truth[new]) in label_set(shares[new], limit, method)
    assert covered >= coverage * (points + 1) - 1e-9


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(METHODS), st.floats(0, 1))
def test_a_set_holds_the_best_label_and_is_in_order(seed: int, method: Method, limit: float) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(6))
    found = label_set(shares, limit, method)
    assert found[0] == shares.argmax()
    assert [shares[at] for at in found] == sorted((shares[at] for at in found), reverse=True)
    assert set(found) <= set(label_set(shares, limit + 0.1, method))
    assert set(found) - {found[0]} == set(np.flatnonzero(nonconformity(shares, method) <= limit)) - {found[0]}


def test_sets_cover_what_was_not_calibrated_with(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 10, 4000)
    logits = rng.normal(0, 1, (4000, 10))
    logits[np.arange(4000), truth] += 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for method in METHODS:
        scores = nonconformity(shares[:2000], method)[np.arange(2000), truth[:2000]]
        write_scores(tmp_path / "scores", scores, method)
        sets = read_scores(tmp_path / "scores").sets(0.9)
        held = np.mean([int(label) in sets(share) for share, label in zip(shares[2000:], truth[2000:], strict=True)])
        assert 0.88 < held < 0.95


def test_scores_come_back_as_they_were_sorted(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores", np.asarray([0.5, 1 / 3, 1e-17, 1.0]), "aps")
    found = read_scores(tmp_path / "scores")
    assert (found.method, found.scores) == ("aps", [1e-17, 1 / 3, 0.5, 1.0])
    assert found.sets(0.5) == ConformalSets("aps", 0.5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "holds no calibration scores"),
        (b"[" * 100_000, "holds no calibration scores"),
        (b'{"method":"lac"}', "scores"),
        (b'{"method":"raps","scores":[0.1]}', "raps"),
        (b'{"method":"lac","scores":[]}', "length"),
        (b'{"method":"lac","scores":[NaN]}', "holds no calibration scores"),
        (b'{"method":"lac","scores":[1e999]}', "holds no calibration scores"),
        (b'{"method":"lac","scores":[-0.1]}', ">= 0"),
        (b'{"method":"lac","scores":[1.1]}', "<= 1"),
        (b'{"method":"lac","scores":[0.2,0.1]}', "do not rise"),
        (b'{"method":"lac","scores":[0.2],"more":1}', "more"),
        (b" " * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_is_none_is_rejected(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "scores").write_bytes(text)
    with pytest.raises(Rejected, match=why):
        read_scores(tmp_path / "scores")


def test_a_file_that_is_not_there_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="holds no calibration scores"):
        read_scores(tmp_path / "scores")
