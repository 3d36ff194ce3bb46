"""Pictures of what was evaluated, by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lisiere.errors import Permanent

_MOST = 200_000  # points of a line; more are no longer seen


@contextmanager
def figure(file: Path, rows: int = 1, height: float = 2.6) -> Iterator[list[Any]]:
    """Yield `rows` axes above each other that share their x, and write them to `file` (PNG) at the end.

    Raises:
        Permanent: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Permanent("matplotlib is not installed: `pip install lisiere[evaluate]` brings it.") from error
    drawing = Figure(figsize=(11, height * rows), layout="constrained")
    canvas = FigureCanvasAgg(drawing)
    axes = drawing.subplots(rows, 1, sharex=True, squeeze=False)
    yield [row[0] for row in axes]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without the date, so that the same figures give the same bytes.
        canvas.print_png(str(file), metadata={"Software": None})
    except OSError as error:
        raise Permanent(f"The picture {file} cannot be written: {error.strerror}.") from error


def moments(seconds: NDArray[np.float64]) -> list[datetime]:
    """Seconds since 1970 as matplotlib wants them."""
    return [datetime.fromtimestamp(float(second), timezone.utc) for second in seconds]


def anomaly(
    file: Path,
    *,
    title: str,
    times: NDArray[np.float64],
    scores: NDArray[np.float64],
    threshold: float | None,
    alarm: NDArray[np.bool_],
    windows: Sequence[tuple[float, float]],
    values: NDArray[np.float64] | None = None,
) -> None:
    """Draw a series (where given), its scores, threshold and alarms, with the labelled stretches shaded.

    Args:
        file: where to.
        title: above it.
        times: [n], seconds since 1970.
        scores: [n], NaN where there is none.
        threshold: a line, where there is one.
        alarm: [n].
        windows: first and last second of each labelled stretch.
        values: [n], the series itself.
    """
    every = max(1, -(-len(times) // _MOST))
    x = moments(times[::every])
    with figure(file, 1 if values is None else 2) as axes:
        axes[0].set_title(title)
        if values is not None:
            axes[0].plot(x, values[::every], linewidth=0.7)
            axes[0].set_ylabel("value")
        axes[-1].plot(x, scores[::every], linewidth=0.7, color="tab:grey")
        axes[-1].set_ylabel("score")
        if threshold is not None:
            axes[-1].axhline(threshold, linewidth=0.7, linestyle="--", color="tab:red", label="threshold")
        if alarm.any():
            axes[-1].plot(moments(times[alarm]), scores[alarm], ".", color="tab:red", label="alarm")
        for number, axis in enumerate(axes):
            for at, (start, end) in enumerate(windows):
                first = number == len(axes) - 1 and at == 0
                axis.axvspan(
                    *moments(np.array([start, end])), alpha=0.2, color="tab:orange", label="labelled" if first else None
                )
        if axes[-1].get_legend_handles_labels()[0]:
            axes[-1].legend(loc="upper left", fontsize="small")
