"""The built-in detector: streams that nothing was trained for, watched from their first day."""

from __future__ import annotations

from lisiere.detector.stream import DEFAULT_RATE, StreamDetector, threshold

__all__ = ["DEFAULT_RATE", "StreamDetector", "threshold"]
