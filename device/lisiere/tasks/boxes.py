"""Boxes: overlap, and which of many overlapping ones are kept. A box is left, top, right, bottom."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def overlaps(box: Floats, others: Floats) -> Floats:
    """Return the intersection over union of one box [4] with each of others [n, 4]; 0 where neither has an area."""
    size = np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0)
    common = size[:, 0] * size[:, 1]
    union = (box[2] - box[0]) * (box[3] - box[1]) + (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union -= common
    found: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def suppress(boxes: Floats, scores: Floats, classes: Indices, threshold: float, top: int, by_class: bool) -> Indices:
    """Return the indices of the boxes that are kept, the best first: greedy non-maximum suppression.

    Args:
        boxes: [n, 4], all finite and with an area.
        scores: [n]; of equals, the first goes before.
        classes: [n].
        threshold: a box that overlaps a better one by more is left out.
        top: how many to keep at most, which bounds the work by `top * n`.
        by_class: whether boxes suppress those of their own class alone.
    """
    left = np.argsort(-scores, kind="stable")
    boxes, classes = boxes[left], classes[left]
    kept: list[int] = []
    while left.size and len(kept) < top:
        kept.append(int(left[0]))
        stays = overlaps(boxes[0], boxes[1:]) <= threshold
        if by_class:
            stays |= classes[1:] != classes[0]
        left, boxes, classes = left[1:], boxes[1:], classes[1:]
        if not stays.all():
            left, boxes, classes = left[stays], boxes[stays], classes[stays]
    return np.asarray(kept, np.int64)
