"""Boxes: the vectorised suppression keeps what the plain one keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lisiere.tasks.boxes import overlaps, suppress

PLACE, SIZE = st.integers(0, 12), st.integers(1, 8)


def iou(a: Any, b: Any) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return float(common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common))


def plain(boxes: Any, scores: Any, classes: Any, threshold: float, top: int, by_class: bool) -> list[int]:
    """Greedy suppression, one pair after another."""
    kept: list[int] = []
    for at in sorted(range(len(boxes)), key=lambda at: (-scores[at], at)):
        rivals = [one for one in kept if not by_class or classes[one] == classes[at]]
        if all(iou(boxes[one], boxes[at]) <= threshold for one in rivals):
            kept.append(at)
    return kept[:top]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, st.integers(0, 4), st.integers(0, 2)),
        max_size=25,
    ),
    st.sampled_from([0.1, 0.3, 0.45, 0.5, 0.9]),
    st.integers(1, 10),
    st.booleans(),
)
def test_it_keeps_what_the_plain_one_keeps(rows: list[Any], threshold: float, top: int, by_class: bool) -> None:
    table = np.asarray(rows, np.float64).reshape(-1, 6)
    boxes = np.hstack([table[:, :2], table[:, :2] + table[:, 2:4]])
    scores, classes = table[:, 4] / 4, table[:, 5].astype(np.int64)
    found = suppress(boxes, scores, classes, threshold, top, by_class).tolist()
    assert found == plain(boxes, scores, classes, threshold, top, by_class)


def test_overlaps_by_hand() -> None:
    box = np.asarray([0.0, 0, 2, 2])
    others = np.asarray([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 1, 1], [5, 5, 6, 6]])
    assert overlaps(box, others) == pytest.approx([1, 1 / 7, 0, 1 / 4, 0])
    assert overlaps(np.zeros(4), np.zeros((1, 4))) == [0]
