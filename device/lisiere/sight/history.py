"""What is usual of one measure: its quantiles over the last minutes, in bounded memory."""

from __future__ import annotations

import bisect
from collections import deque

_KEPT = 300
_ENOUGH = 10


class History:
    """The last 300 samples of one measure. Quantiles are robust: what is rare does not move them."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, sample: float) -> None:
        """Learn one sample."""
        self._samples.append(sample)
        bisect.insort(self._sorted, sample)
        if len(self._samples) > _KEPT:
            del self._sorted[bisect.bisect_left(self._sorted, self._samples.popleft())]

    @property
    def known(self) -> bool:
        """Whether there are enough samples to say what is usual."""
        return len(self._samples) >= _ENOUGH

    @property
    def low(self) -> float:
        """The quantile 0.05."""
        return self._quantile(0.05)

    @property
    def median(self) -> float:
        """The quantile 0.5."""
        return self._quantile(0.5)

    @property
    def high(self) -> float:
        """The quantile 0.95."""
        return self._quantile(0.95)

    def _quantile(self, share: float) -> float:
        return self._sorted[int(share * len(self._sorted))] if self._sorted else 0.0
