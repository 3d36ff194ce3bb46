from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lisiere_compile.kernels import transcendental


def evaluated(formula: Any, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What compiled code gives for a formula."""
    import tvm
    from tvm import te

    x = te.placeholder((len(values),), "float32")
    y = te.compute((len(values),), lambda i: formula(x[i]))
    library = tvm.compile(te.create_prim_func([x, y]), tvm.target.Target({"kind": "llvm"}))
    result = tvm.runtime.tensor(np.zeros_like(values))
    library["main"](tvm.runtime.tensor(values), result)
    return np.asarray(result.numpy())


VALUES = np.concatenate([np.linspace(-87, 88, 4001), [-1e-7, 0.0, 1e-7]]).astype(np.float32)


def test_the_exponential_is_right_to_its_last_digits() -> None:
    found = evaluated(transcendental.exp, VALUES)
    np.testing.assert_allclose(found, np.exp(VALUES.astype(np.float64)), rtol=2e-7)


@pytest.mark.parametrize("extreme", [np.inf, 1e30, 100.0])
def test_the_exponential_neither_overflows_nor_turns_round(extreme: float) -> None:
    high, low = evaluated(transcendental.exp, np.asarray([extreme, -extreme], np.float32))
    assert high > 1e38
    assert 0 <= low < 1e-37


def test_sigmoid_and_tanh_are_right_to_the_seventh_digit() -> None:
    wide = VALUES.astype(np.float64)
    np.testing.assert_allclose(evaluated(transcendental.sigmoid, VALUES), 1 / (1 + np.exp(-wide)), atol=3e-7)
    np.testing.assert_allclose(evaluated(transcendental.tanh, VALUES), np.tanh(wide), atol=3e-7)


def test_erf_is_right_to_the_sixth_digit() -> None:
    values = np.linspace(-5, 5, 2001).astype(np.float32)
    wanted = np.asarray([math.erf(float(value)) for value in values])
    np.testing.assert_allclose(evaluated(transcendental.erf, values), wanted, atol=6e-7)


def test_a_kernel_calls_no_library_for_them() -> None:
    import tvm
    from tvm import te

    x = te.placeholder((16,), "float32")
    y = te.compute((16,), lambda i: tvm.tirx.tanh(x[i]) + tvm.tirx.sigmoid(x[i]) * tvm.tirx.exp(tvm.tirx.erf(x[i])))
    function = te.create_prim_func([x, y])
    assert "tanh" in function.script()
    script = transcendental.polynomial(function).script()
    assert not any(f"T.{name}(" in script for name in ("tanh", "sigmoid", "exp", "erf"))
