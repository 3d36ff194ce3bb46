"""Converters from ONNX operators to Relax where TVM's own are missing, or hide what later passes must see."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lisiere_compile.frontends.recurrent import recurrent_converters


def own_converters() -> dict[str, Any]:
    """Return the converters by ONNX operator; each wins over TVM's of the same name."""
    import numpy as np
    from tvm import ir, relax
    from tvm.relax.frontend.onnx.onnx_frontend import OnnxOpConverter

    class Clip(OnnxOpConverter):  # type: ignore[misc]
        """As operators of Relax. TVM's makes kernels of them at once, which no layout pass sees through."""

        @classmethod
        def _impl_v1(cls, bb: Any, inputs: Any, attr: Any, _params: Any) -> Any:
            bounds = [attr.get("min"), attr.get("max")]
            return cls._clip(bb, inputs[0], [None if b is None else relax.const(b, inputs[0].ty.dtype) for b in bounds])

        @classmethod
        def _impl_v11(cls, bb: Any, inputs: Any, _attr: Any, _params: Any) -> Any:
            return cls._clip(
                bb, inputs[0], [inputs[1] if len(inputs) > 1 else None, inputs[2] if len(inputs) > 2 else None]
            )

        @classmethod
        def _clip(cls, bb: Any, x: Any, bounds: list[Any]) -> Any:
            for bound, operator in zip(bounds, (relax.op.maximum, relax.op.minimum), strict=True):
                # A bound that is no number is no bound.
                nothing = isinstance(bound, ir.GenericConst) and bool(np.isnan(bound.value.numpy()).any())
                if bound is not None and not nothing:
                    x = bb.emit(operator(x, bound))
            return x

    def folded(operator: Any) -> type:
        """Several inputs two by two. TVM's stacks them and reduces the stack, as large as all of them."""

        class Several(OnnxOpConverter):  # type: ignore[misc]
            @classmethod
            def _impl_v1(cls, bb: Any, inputs: Any, _attr: Any, _params: Any) -> Any:
                return functools.reduce(lambda one, other: bb.normalize(operator(one, other)), list(inputs))

        return Several

    return {
        "Clip": Clip,
        "Max": folded(relax.op.maximum),
        "Min": folded(relax.op.minimum),
        "Sum": folded(relax.op.add),
        **recurrent_converters(),
    }


@contextmanager
def extended() -> Iterator[None]:
    """Let TVM's importer use the converters here during the body."""
    from tvm.relax.frontend.onnx import onnx_frontend

    original = onnx_frontend._get_convert_map
    together = original() | own_converters()  # once: the importer asks for it at every node
    onnx_frontend._get_convert_map = lambda: together
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = original
