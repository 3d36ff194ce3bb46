"""A tree ensemble as flat arrays, ready to be walked: what every source format becomes, and all that `emit` needs.

A threshold is the largest float32 that goes left. Inputs are float32, so this says the same as the float64 threshold
of the source, whether it compares by `<` or by `<=`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected

MAX_FEATURES, MAX_OUTPUTS, MAX_TREES, MAX_NODES = 1 << 16, 1 << 10, 1 << 17, 1 << 24
DEFAULT_LEFT = np.uint32(1 << 31)  # in `feature`: a missing value goes left
# What may happen to the sums at the end. Source: the table of postprocessors in treelite's model specification.
# `max_index` and `both_classes` are this compiler's: XGBoost's multi:softmax, scikit-learn's two columns.
FINISHES = (
    "identity", "identity_multiclass", "signed_square", "hinge", "sigmoid", "exponential", "exponential_standard_ratio",
    "logarithm_one_plus_exp", "softmax", "multiclass_ova", "max_index", "both_classes",
)  # fmt: skip
_LEAF, _NUMERICAL = 0, 1  # treelite's node types
_LESS, _LESS_EQUAL = 2, 3  # treelite's comparisons


@dataclass(frozen=True)
class Forest:
    """The ensemble. Children lie behind their parent, so that every walk ends.

    Attributes:
        threshold, feature, child: a node each. `child` is the left child's index, and the right one's is the next; it
            is 0 for a leaf, whose number then stands in `feature`.
        roots: index of each tree's root.
        group: the sum that each tree adds to; empty when leaves are vectors over all sums.
        leaves: [leaves, 1 or sums], float32 where the library sums in float32.
        base: what each sum starts from.
        average: divide by the number of trees.
        finish: what becomes of the sums; one of FINISHES.
        alpha, ratio: numbers that some of these take.
        features: how many numbers go in.
    """

    threshold: NDArray[np.float32]
    feature: NDArray[np.uint32]
    child: NDArray[np.uint32]
    roots: NDArray[np.uint32]
    group: NDArray[np.uint32]
    leaves: NDArray[Any]
    base: NDArray[np.float64]
    average: bool
    finish: str
    alpha: float
    ratio: float
    features: int

    @property
    def groups(self) -> int:
        """How many numbers DLR makes room for."""
        return 2 if self.finish == "both_classes" else len(self.base)

    @property
    def outputs(self) -> int:
        """How many numbers come out."""
        return 1 if self.finish == "max_index" else self.groups


def from_treelite(model: Any, finish: str | None = None, alpha: float | None = None) -> Forest:
    """Return the forest of a treelite model.

    Args:
        model: a treelite.Model, not trusted to be sound.
        finish: in place of the model's own postprocessor.
        alpha: in place of that one's number.

    Raises:
        Rejected: it is too large, its indices do not make trees, or it has splits or a postprocessor not known here.
    """
    header = model.get_header_accessor()

    def number(name: str) -> Any:
        return np.asarray(header.get_field(name)).reshape(-1)[0]

    features, trees = int(number("num_feature")), int(model.num_tree)
    targets, classes = int(number("num_target")), int(np.max(header.get_field("num_class"), initial=1))
    sums = targets * classes
    for count, most, what in (
        (features, MAX_FEATURES, "features"), (trees, MAX_TREES, "trees"), (sums, MAX_OUTPUTS, "outputs"),
    ):  # fmt: skip
        if not 1 <= count <= most:
            raise Rejected(f"The model has {count} {what}; from 1 to {most} can be compiled.")
    finish = finish or str(header.get_field("postprocessor"))
    if finish not in FINISHES:
        raise Rejected(f"The model ends in {finish!r}, which is not one of {', '.join(FINISHES)}.")
    if targets > 1 and classes > 1:
        raise Rejected("The model has several targets of several classes each; give one model a target.")
    vectors = int(np.prod(header.get_field("leaf_vector_shape"))) > 1
    if vectors and int(np.prod(header.get_field("leaf_vector_shape"))) != sums:
        raise Rejected(f"The model's leaves hold other than {sums} numbers, one for each output.")
    parts = [_Tree(model.get_tree_accessor(index), features, sums if vectors else 1) for index in range(trees)]
    if sum(len(part.child) for part in parts) > MAX_NODES:
        raise Rejected(f"The model has more than {MAX_NODES} nodes.")
    nodes = leaves = 0
    roots = np.zeros(trees, np.uint32)
    for index, part in enumerate(parts):
        part.child[part.child > 0] += nodes
        part.feature[part.child == 0] += leaves
        roots[index] = nodes
        nodes, leaves = nodes + len(part.child), leaves + len(part.leaves)
    group = np.asarray(header.get_field("target_id"), np.int64) * classes + np.asarray(header.get_field("class_id"))
    if not vectors and (len(group) != trees or group.min() < 0 or group.max() >= sums):
        raise Rejected("The model has trees that belong to none of its outputs.")
    base = np.asarray(header.get_field("base_scores"), np.float64).reshape(-1)
    return Forest(
        threshold=np.concatenate([part.threshold for part in parts]),
        feature=np.concatenate([part.feature for part in parts]),
        child=np.concatenate([part.child for part in parts]),
        roots=roots,
        group=np.zeros(0, np.uint32) if vectors else group.astype(np.uint32),
        leaves=np.concatenate([part.leaves for part in parts]),
        base=np.resize(base, sums) if len(base) else np.zeros(sums),
        average=bool(number("average_tree_output")),
        finish=finish,
        alpha=float(number("sigmoid_alpha")) if alpha is None else alpha,
        ratio=float(number("ratio_c")),
        features=features,
    )


class _Tree:
    """One tree, laid out level by level: siblings side by side, the root first."""

    def __init__(self, tree: Any, features: int, width: int) -> None:
        left, right = (np.asarray(tree.get_field(name), np.int64) for name in ("cleft", "cright"))
        kind = np.asarray(tree.get_field("node_type"))
        order, child = _levels(left, right, kind == _LEAF)
        split, kind = child > 0, kind[order]
        used = np.asarray(tree.get_field("split_index"), np.int64)[order]
        if np.any(kind[split] != _NUMERICAL):
            named = sorted({int(index) for index in used[split & (kind != _NUMERICAL)]})
            raise Rejected(
                f"The model splits on categories, in feature {', '.join(map(str, named[:10]))}, which cannot be "
                "compiled. Encode these as numbers, such as one-hot, and train again."
            )
        if np.any((used[split] < 0) | (used[split] >= features)):
            raise Rejected(f"The model splits on a feature beyond its {features}.")
        comparison = np.asarray(tree.get_field("cmp"))[order]
        if not set(comparison[split].tolist()) <= {_LESS, _LESS_EQUAL}:
            raise Rejected("The model compares in another way than by < or <=.")
        wide = np.where(split, np.asarray(tree.get_field("threshold"))[order], 0)
        self.threshold = _round_down(wide, comparison == _LESS)
        self.threshold[~split] = 0
        self.child = child
        default = np.asarray(tree.get_field("default_left"))[order] != 0
        self.feature = np.where(split, used, np.cumsum(~split) - 1).astype(np.uint32)
        self.feature[split & default] |= DEFAULT_LEFT
        at = order[~split]
        if width == 1:
            self.leaves = np.asarray(tree.get_field("leaf_value"))[at].reshape(-1, 1)
            return
        vector = np.asarray(tree.get_field("leaf_vector"))
        begin, end = (np.asarray(tree.get_field(f"leaf_vector_{name}"), np.int64)[at] for name in ("begin", "end"))
        if np.any(end - begin != width) or np.any(begin < 0) or np.any(end > len(vector)):
            raise Rejected(f"The model has leaves with other than {width} numbers.")
        self.leaves = vector[begin[:, None] + np.arange(width)]


def _levels(
    left: NDArray[np.int64], right: NDArray[np.int64], leaf: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return the nodes in order of their levels, and for each the place of its left child, 0 for a leaf.

    Raises:
        Rejected: a child is outside, or is reached twice.
    """
    count = len(left)
    inner = ~leaf
    if count == 0 or np.any((left[inner] < 0) | (left[inner] >= count) | (right[inner] < 0) | (right[inner] >= count)):
        raise Rejected("The model has a node whose child does not exist.")
    levels, places, placed = [np.zeros(1, np.int64)], [], 1
    while levels[-1].size:
        level = levels[-1]
        split = inner[level]
        place = np.zeros(len(level), np.uint32)
        place[split] = placed + 2 * np.arange(np.count_nonzero(split))
        places.append(place)
        levels.append(np.column_stack([left[level[split]], right[level[split]]]).reshape(-1))
        placed += len(levels[-1])
        if placed > count:
            raise Rejected("The model has a node that is reached in two ways.")
    return np.concatenate(levels), np.concatenate(places)


def _round_down(threshold: NDArray[Any], strict: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the largest float32 that passes `x <= threshold`, or `x < threshold` where strict; NaN if none does."""
    with np.errstate(over="ignore"):
        near = threshold.astype(np.float32)
        below = np.nextafter(near, np.float32(-np.inf))
    found = np.where((near > threshold) | (strict & (near == threshold)), below, near)
    return np.where(strict & (threshold == -np.inf), np.float32(np.nan), found).astype(np.float32)
