"""Exponentials as polynomials, which vectorise; the C library computes one number at a time.

Sources: the range reduction and the coefficients of expf in Cephes (S. Moshier); formula 7.1.26 of Abramowitz and
Stegun for erf. The relative error of the exponential is below 2e-7, the absolute error of the others below 6e-7.
"""

from __future__ import annotations

from typing import Any

_LOWEST, _HIGHEST = -87.33654, 88.37626  # beyond, the result is no normal number
_LOG2E = 1.44269504088896341
_LN2 = (0.693359375, -2.12194440e-4)  # in two parts, the first of which multiplies exactly
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_STEP = 0.3275911
_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def polynomial(function: Any) -> Any:
    """Replace exp, sigmoid, tanh and erf of float32 in a PrimFunc by polynomials."""
    import tvm
    import tvm_ffi

    known = {"exp": exp, "sigmoid": sigmoid, "tanh": tanh, "erf": erf}

    def visit(call: Any) -> Any:
        formula = known.get(str(getattr(call.op, "name", "")).rpartition(".")[2])
        if formula is None or str(call.ty.dtype) != "float32":
            return call
        return formula(call.args[0])

    return tvm_ffi.structural_map(function, [(tvm.ir.Call, visit)])


def exp(value: Any) -> Any:
    """Return e to the power of a float32 expression."""
    from tvm import tirx

    x, n, r = (tirx.Var(name, "float32") for name in ("x", "n", "r"))
    p: Any = _number(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = p * r + _number(coefficient)
    power = tirx.reinterpret("float32", (n.astype("int32") + tirx.const(127, "int32")) * tirx.const(1 << 23, "int32"))
    result = (p * r * r + r + _number(1.0)) * power
    reduced = x - n * _number(_LN2[0]) - n * _number(_LN2[1])
    inside = tirx.Let(n, tirx.floor(x * _number(_LOG2E) + _number(0.5)), tirx.Let(r, reduced, result))
    return tirx.Let(x, tirx.max(tirx.min(value, _number(_HIGHEST)), _number(_LOWEST)), inside)


def sigmoid(value: Any) -> Any:
    """Return the logistic function of a float32 expression."""
    return _number(1.0) / (_number(1.0) + exp(_number(0.0) - value))


def tanh(value: Any) -> Any:
    """Return the hyperbolic tangent of a float32 expression."""
    return _number(2.0) * sigmoid(_number(2.0) * value) - _number(1.0)


def erf(value: Any) -> Any:
    """Return the error function of a float32 expression."""
    from tvm import tirx

    x, t, y = (tirx.Var(name, "float32") for name in ("x", "t", "y"))
    size = tirx.max(x, _number(0.0) - x)
    p: Any = _number(_ERF[0])
    for coefficient in _ERF[1:]:
        p = p * t + _number(coefficient)
    magnitude = _number(1.0) - p * t * exp(_number(0.0) - x * x)
    signed = tirx.Let(y, magnitude, tirx.Select(x < _number(0.0), _number(0.0) - y, y))
    step = _number(1.0) / (_number(1.0) + _number(_ERF_STEP) * size)
    return tirx.Let(x, value, tirx.Let(t, step, signed))


def _number(value: float) -> Any:
    from tvm import tirx

    return tirx.const(value, "float32")
