"""Forecast residuals: what a model said would come, held against what came."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from lisiere.values import Window


class Residual:
    """Keeps forecasts until their rows have come; at most as many as they are long.

    Args:
        channels: of the window, all of which are forecast.
    """

    def __init__(self, channels: int) -> None:
        self._channels = channels
        self._waiting: deque[tuple[float, NDArray[np.float64]]] = deque()

    def __call__(self, window: Window, forecast: NDArray[np.float64]) -> float | None:
        """Return the mean squared error of the newest forecast whose rows have all come; None without one.

        Args:
            window: without holes.
            forecast: what the model makes of it: the rows that follow, flat, in the channels' units.
        """
        error = self._error(window)
        ahead = forecast.reshape(-1, self._channels)
        self._waiting.append((window.end, ahead))
        while len(self._waiting) > len(ahead) + 1:
            self._waiting.popleft()
        return error

    def _error(self, window: Window) -> float | None:
        slack = window.step_s / 2  # stamps are sums of steps
        due = [entry for entry in self._waiting if entry[0] + len(entry[1]) * window.step_s < window.end + slack]
        if not due:
            return None
        made, ahead = due[-1]
        while self._waiting and self._waiting[0][0] <= made:
            self._waiting.popleft()
        first = round((made - window.start) / window.step_s) + 1
        # Of a long stride or a gap, the first rows are in no window any more.
        ahead = ahead[max(0, -first) :]
        if not len(ahead):
            return None
        first = max(0, first)
        came = window.values[first : first + len(ahead)].astype(np.float64)
        return float(np.mean(np.square(came - ahead)))
