"""Windows: from readings to what a series model takes, in event time.

`builder` puts readings on a grid and says when a row is complete, `cells` adds up what falls into one, `gaps` fills
between rows, and `history` cuts windows out of them. Live, replay and training use the same.
"""

from __future__ import annotations

from lisiere.windows.builder import FAULTS, Fault, WindowBuilder
from lisiere.windows.history import imputed_rows
from lisiere.windows.matching import OPEN_ROWS_MAX, idle_seconds, window_input

__all__ = ["FAULTS", "OPEN_ROWS_MAX", "Fault", "WindowBuilder", "idle_seconds", "imputed_rows", "window_input"]
