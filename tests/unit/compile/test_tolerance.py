from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lisiere_compile.tolerance import FLOAT, HALF, STEPS, Tolerance, largest_of, output_tolerances

from .conftest import make_model

Array = np.ndarray[Any, Any]


def scales(**named: float) -> dict[str, Array]:
    return {
        **{name: np.array(value, np.float32) for name, value in named.items()},
        "zero": np.array(-128, np.int8),
    }


def tolerance(model: onnx.ModelProto) -> Tolerance:
    return output_tolerances(model)["y"]


def quantise(source: str, scale: str, result: str) -> Any:
    return helper.make_node("QuantizeLinear", [source, scale, "zero"], [result])


def dequantise(source: str, scale: str, result: str) -> Any:
    return helper.make_node("DequantizeLinear", [source, scale, "zero"], [result])


def chain(nodes: list[Any], weights: dict[str, Array], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    return make_model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, weights, {"y": dtype})


def test_float_sums_may_come_in_another_order() -> None:
    plain = tolerance(chain([helper.make_node("Exp", ["x"], ["y"])], {}))
    assert plain == Tolerance(relative=FLOAT)
    assert not plain.rounds
    np.testing.assert_allclose(plain.allowed(np.ones((1, 4), np.float32), 50.0), 50 * FLOAT)


def test_small_outputs_are_held_to_their_own_size() -> None:
    tiny = np.array([1e-4, 2e-4], np.float32)
    assert tolerance(chain([helper.make_node("Exp", ["x"], ["y"])], {})).allowed(tiny, 2e-4).max() < 1e-7


def test_half_precision_allows_more() -> None:
    model = chain(
        [helper.make_node("Cast", ["h"], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"])],
        {"h": np.ones((1, 4), np.float16)},
    )
    assert tolerance(model).relative == HALF


def test_weights_that_are_stored_quantised_leave_nothing_open() -> None:
    model = chain(
        [dequantise("w", "s", "f"), helper.make_node("Add", ["x", "f"], ["y"])],
        {"w": np.ones((1, 4), np.int8), **scales(s=0.5)},
    )
    assert tolerance(model) == Tolerance(relative=FLOAT)


def test_a_dequantised_output_may_be_steps_off() -> None:
    found = tolerance(chain([quantise("x", "s", "q"), dequantise("q", "s", "y")], scales(s=0.5)))
    assert found.absolute == STEPS * 0.5
    assert found.rounds


def test_integers_may_be_steps_off() -> None:
    found = tolerance(chain([quantise("x", "s", "y")], scales(s=0.5), TensorProto.INT8))
    assert found.allowed(np.zeros((1, 4), np.int8), 127.0).max() == STEPS


def test_positions_are_right_or_wrong() -> None:
    model = chain([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)], {}, TensorProto.INT64)
    assert not tolerance(model).allowed(np.ones((1, 4), np.int64), 9.0).any()


@pytest.mark.parametrize("integers", [False, True])
def test_shares_may_move_as_far_as_their_scores_move_them(integers: bool) -> None:
    """Every way of moving quantised scores by the allowed steps stays within what is allowed of the shares."""
    nodes = [quantise("x", "s", "q"), dequantise("q", "s", "d"), helper.make_node("Softmax", ["d"], ["p"])]
    last = quantise("p", "t", "y") if integers else helper.make_node("Identity", ["p"], ["y"])
    found = tolerance(
        chain([*nodes, last], scales(s=0.2, t=1 / 256), TensorProto.INT8 if integers else TensorProto.FLOAT)
    )
    assert found.scores == pytest.approx(STEPS * 0.2)

    def shares(scores: Array) -> Array:
        powers = np.exp(scores)
        whole: Array = powers / powers.sum()
        return np.clip(np.round(whole * 256) - 128, -128, 127).astype(np.int8) if integers else whole

    random = np.random.default_rng(3)
    tightest = np.inf
    for _ in range(300):
        scores = random.normal(0, 3, 4)
        wanted = shares(scores)
        allowed = found.allowed(wanted, 1.0)
        moved = shares(scores + random.choice([-1, 1], 4) * STEPS * 0.2)
        assert (np.abs(moved.astype(float) - wanted) <= allowed + 1e-9).all()
        tightest = min(tightest, float(allowed.min()))
    # Not everything is allowed: what is nearly certain stays so.
    assert tightest < (3 if integers else 0.01)


def test_what_is_computed_in_float_after_the_last_step_gets_a_share_of_the_largest() -> None:
    found = tolerance(
        chain(
            [quantise("x", "s", "q"), dequantise("q", "s", "d"), helper.make_node("Exp", ["d"], ["y"])], scales(s=0.5)
        )
    )
    assert found.rounds
    assert found.relative == pytest.approx(2 / 127)


def test_the_largest_number_is_a_finite_one() -> None:
    assert largest_of([np.array([1.0, -3.0, np.inf]), np.array([np.nan, 2.0])]) == 3.0
    assert largest_of([]) == 0.0
