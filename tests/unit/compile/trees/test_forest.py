"""What a forest is made from is not trusted: indices, sizes and kinds are checked. Thresholds keep their meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lisiere.errors import Rejected
from lisiere_compile.trees.forest import DEFAULT_LEFT, MAX_FEATURES, _round_down, from_treelite


class Fields:
    """A part of a treelite model, as its accessors give it."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def get_field(self, name: str) -> Any:
        return self.values[name]


class Model:
    """As a treelite.Model: by default one tree that splits feature 1 at 0.5 and goes left when that is missing."""

    def __init__(self, tree: dict[str, Any] | None = None, **header: Any) -> None:
        self.num_tree = 1
        self._tree = Fields(
            **{
                "cleft": [1, -1, -1],
                "cright": [2, -1, -1],
                "node_type": [1, 0, 0],
                "split_index": [1, -1, -1],
                "cmp": [3, 0, 0],
                "threshold": [0.5, 0, 0],
                "default_left": [1, 0, 0],
                "leaf_value": [0.0, -1.0, 2.0],
                "leaf_vector": [],
                "leaf_vector_begin": [0, 0, 0],
                "leaf_vector_end": [0, 0, 0],
                **(tree or {}),
            }
        )
        self._header = Fields(
            **{
                "num_feature": [3],
                "num_target": [1],
                "num_class": [1],
                "leaf_vector_shape": [1, 1],
                "target_id": [0],
                "class_id": [0],
                "postprocessor": "identity",
                "base_scores": [0.25],
                "average_tree_output": [0],
                "sigmoid_alpha": [1.0],
                "ratio_c": [1.0],
                **header,
            }
        )

    def get_header_accessor(self) -> Fields:
        return self._header

    def get_tree_accessor(self, index: int) -> Fields:
        assert index == 0
        return self._tree


def test_a_tree_is_laid_out_with_siblings_side_by_side() -> None:
    forest = from_treelite(Model())
    assert forest.child.tolist() == [1, 0, 0]
    assert forest.feature.tolist() == [1 | int(DEFAULT_LEFT), 0, 1]
    assert forest.leaves.tolist() == [[-1.0], [2.0]]
    assert forest.base.tolist() == [0.25]
    assert (forest.features, forest.groups, forest.outputs) == (3, 1, 1)


@pytest.mark.parametrize(
    ("tree", "header", "message"),
    [
        ({"cleft": [0, -1, -1]}, {}, "reached in two ways"),
        ({"cleft": [2, -1, -1], "cright": [2, -1, -1], "node_type": [1, 0, 1]}, {}, "child does not exist"),
        ({"cleft": [1, -1, 0], "cright": [2, -1, 1], "node_type": [1, 0, 1]}, {}, "reached in two ways"),
        ({"cleft": [7, -1, -1]}, {}, "child does not exist"),
        ({"cleft": [-5, -1, -1]}, {}, "child does not exist"),
        ({"cleft": [], "cright": [], "node_type": []}, {}, "child does not exist"),
        ({"split_index": [3, -1, -1]}, {}, "beyond its 3"),
        ({"split_index": [-1, -1, -1]}, {}, "beyond its 3"),
        ({"node_type": [2, 0, 0]}, {}, "categories, in feature 1"),
        ({"cmp": [4, 0, 0]}, {}, "another way"),
        ({}, {"num_feature": [MAX_FEATURES + 1]}, "features; from 1"),
        ({}, {"num_feature": [0]}, "0 features"),
        ({}, {"num_class": [5000]}, "5000 outputs"),
        ({}, {"num_target": [2], "num_class": [2, 2]}, "several targets"),
        ({}, {"target_id": [1]}, "belong to none"),
        ({}, {"target_id": [-1]}, "belong to none"),
        ({}, {"postprocessor": "mystery"}, "'mystery'"),
        ({}, {"num_class": [3], "leaf_vector_shape": [1, 2]}, "other than 3"),
        ({}, {"num_class": [3], "leaf_vector_shape": [1, 3]}, "other than 3"),
        (
            {"leaf_vector_begin": [0, 0, 90], "leaf_vector_end": [0, 3, 93]},
            {"num_class": [3], "leaf_vector_shape": [1, 3]},
            "other than 3",
        ),
    ],
)
def test_what_does_not_make_a_forest_is_refused(tree: dict[str, Any], header: dict[str, Any], message: str) -> None:
    with pytest.raises(Rejected, match=message):
        from_treelite(Model(tree, **header))


FLOATS = st.one_of(st.floats(width=64), st.floats(width=32))


@example(threshold=float(np.finfo(np.float32).min), value=0.0, strict=False, near=-1)
@given(threshold=FLOATS, value=st.floats(width=32), strict=st.booleans(), near=st.integers(-2, 2))
def test_a_rounded_threshold_divides_float32_as_the_wide_one(
    threshold: float, value: float, strict: bool, near: int
) -> None:
    with np.errstate(over="ignore"):
        close = np.float32(threshold)  # where it matters
        for _ in range(abs(near)):
            close = np.nextafter(close, np.float32(np.inf if near > 0 else -np.inf))
    rounded = _round_down(np.array([threshold]), np.array([strict]))[0]
    assert rounded.dtype == np.float32
    for number in (np.float32(value), close):
        wide = np.float64(number)
        assert bool(number <= rounded) == bool(wide < threshold if strict else wide <= threshold)
