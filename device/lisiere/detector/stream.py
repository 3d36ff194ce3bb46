"""A stream of rows: each channel by itself, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lisiere.detector.channel import ChannelDetector
from lisiere.detector.joint import JointDetector

_LARGEST = 1e150  # beyond it squares are infinite
# Fitted to alarms on noises of seven kinds: so much more score for a tenth of them, and the score for one a row.
_DECADE, _ONE = 1.43, -0.93
DEFAULT_RATE = 0.0015


def threshold(rate: float) -> float:
    """Return the score whose alarms come at about this rate a row on normal data; docs/series.md says how nearly."""
    return round(-_DECADE * math.log10(rate) + _ONE, 3)


class StreamDetector:
    """Scores one row of readings after another; needs no training, and has no setting.

    Scores start at 0 and grow with rarity: `threshold` says which score comes how often. Whatever comes, a score is a
    number, and memory stays bounded. The first 150 values of a channel teach what is usual and score 0.
    """

    def __init__(self, channels: int) -> None:
        self._channels = [ChannelDetector() for _ in range(channels)]
        self._joint = JointDetector(channels) if channels > 1 else None
        # Of many channels one is unusual more often than one alone.
        self._discount = 2 * _DECADE * math.log10(channels)

    def __call__(self, ts: float, values: Sequence[float]) -> float | None:
        """Return the score of a row at its time (seconds since 1970); None when it holds no number at all.

        Args:
            ts: event time.
            values: one a channel; NaN, infinite or absurdly large ones are missing.
        """
        if self._joint is None:
            value = values[0]
            return self._channels[0](ts, value) if abs(value) < _LARGEST else None
        best, known = 0.0, False
        row = np.full(len(self._channels), np.nan)
        for at, (channel, value) in enumerate(zip(self._channels, values, strict=True)):
            if abs(value) < _LARGEST:
                known = True
                row[at] = value
                best = max(best, channel(ts, value) - self._discount)
        return max(best, self._joint(row)) if known else None

    def resume(self) -> None:
        """There was a gap: what comes next is no jump against what was before it."""
        for channel in self._channels:
            channel.resume()
