"""The interface that every backend implements, and the check of what goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Rejected
from lisiere.models import TensorSpec

Tensor = NDArray[Any]


class Model(Protocol):
    """A loaded model. One thread uses it at a time; a pipeline's worker owns its own."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes: name, shape and dtype of each input."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` gives."""

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Infer once.

        Args:
            feeds: input name -> array of exactly the declared shape and dtype.

        Returns:
            Output name -> a new array that the caller may keep.

        Raises:
            Rejected: a name, shape or dtype is not the declared one.
            Permanent: the runtime itself failed.
        """

    def close(self) -> None:
        """Free what the model holds. Calling it twice does no harm."""


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the feeds in the order of `specs`, each C-contiguous.

    The native runtimes read as many bytes as the shape says, so nothing else may reach them.

    Raises:
        Rejected: a name, shape or dtype is not the declared one.
    """
    arrays = []
    for spec in specs:
        array = feeds.get(spec.name)
        if array is None or len(feeds) != len(specs):
            names = ", ".join(spec.name for spec in specs)
            raise Rejected(f"The model takes the inputs {names}, but was given {', '.join(feeds) or 'none'}.")
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):  # byte order as well
            raise Rejected(
                f"The input {spec.name!r} is {spec.dtype} {list(spec.shape)}, "
                f"but was given {array.dtype.name if array.dtype.isnative else array.dtype.str} "
                f"{list(array.shape)}."
            )
        arrays.append(np.ascontiguousarray(array))
    return arrays
