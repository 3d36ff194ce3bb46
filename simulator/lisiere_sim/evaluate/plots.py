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
def figure(file: Path, rows: int = 1, height: float = 2.6, columns: int = 1) -> Iterator[list[Any]]:
    """Yield axes, and write them to `file` (PNG) at the end: `rows` above each other that share their x, or `columns`.

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
    axes = drawing.subplots(rows, columns, sharex=columns == 1, squeeze=False)
    yield list(axes.ravel())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without the date, so that the same figures give the same bytes.
        canvas.print_png(str(file), metadata={"Software": None})
    except OSError as error:
        raise Permanent(f"The picture {file} cannot be written: {error.strerror}.") from error


def _time_axis(axis: Any) -> None:
    """Write moments in as few characters as tell them apart; the day or year they share stands once, at the end."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=timezone.utc)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=timezone.utc))
    axis.set_xlabel("time (UTC)", fontsize="small")


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
            axes[-1].plot(moments(times[alarm]), scores[alarm], ".", markersize=4, color="tab:red", label="alarm")
        for number, axis in enumerate(axes):
            for at, (start, end) in enumerate(windows):
                first = number == len(axes) - 1 and at == 0
                axis.axvspan(
                    *moments(np.array([start, end])), alpha=0.2, color="tab:orange", label="labelled" if first else None
                )
        if axes[-1].get_legend_handles_labels()[0]:
            axes[-1].legend(loc="upper left", fontsize="small")
        _time_axis(axes[-1])


def classification(
    file: Path,
    *,
    title: str,
    names: Sequence[str],
    matrix: NDArray[np.int64],
    sure: NDArray[np.float64],
    right: NDArray[np.bool_],
) -> None:
    """Draw a confusion matrix, and beside it how often labels are right by how sure they are.

    Args:
        file: where to.
        title: above it.
        names: of the matrix's rows (what is true) and columns (what was said).
        matrix: how often.
        sure: [n], the scores of the best labels.
        right: [n], whether they are the true ones.
    """
    bins = np.clip(np.ceil(sure * 10).astype(int) - 1, 0, 9)
    counts = np.bincount(bins, minlength=10)
    shares = np.bincount(bins, weights=right, minlength=10) / np.maximum(counts, 1)
    with figure(file, height=5.0, columns=2) as (left, beside):
        left.set_title(title)
        parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        if names:
            left.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        left.set_xticks(range(len(names)), names, rotation=90 if len(names) > 10 else 0)
        left.set_yticks(range(len(names)), names)
        left.set_xlabel("said")
        left.set_ylabel("true")
        if len(names) <= 20:
            for row, column in zip(*np.nonzero(matrix), strict=True):
                colour = "white" if parts[row, column] > 0.5 else "black"
                left.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
        beside.plot([0, 1], [0, 1], linewidth=0.7, linestyle="--", color="tab:grey", label="as sure as right")
        beside.bar((np.arange(10) + 0.5) / 10, shares, width=0.09, color="tab:blue", label="share that is right")
        beside.set_xlabel("score of the best label")
        beside.set_xlim(0, 1)
        beside.set_ylim(0, 1)
        beside.legend(loc="upper left", fontsize="small")


def forecasts(
    file: Path,
    *,
    title: str,
    times: NDArray[np.float64],
    series: dict[str, NDArray[np.float64]],
    fans: dict[str, list[dict[str, NDArray[np.float64]]]],
) -> None:
    """Draw series, and what was forecast of them: a row a channel.

    Args:
        file: where to.
        title: above it.
        times: [rows], seconds since 1970.
        series: channel -> values [rows].
        fans: channel -> forecasts, each with `times`, `middle`, `low` and `high`, all [horizon].
    """
    every = max(1, -(-len(times) // _MOST))
    x = moments(times[::every])
    with figure(file, max(1, len(series))) as axes:
        axes[0].set_title(title)
        for axis, (name, values) in zip(axes, series.items(), strict=False):
            # Above the forecasts, so that one sees where it leaves their intervals.
            axis.plot(x, values[::every], linewidth=0.8, color="black", label="measured", zorder=3)
            axis.set_ylabel(name)
            for at, fan in enumerate(fans[name]):
                ahead = moments(fan["times"])
                axis.plot(ahead, fan["middle"], linewidth=0.9, color="tab:blue", label="" if at else "forecast")
                axis.fill_between(
                    ahead, fan["low"], fan["high"], alpha=0.25, color="tab:blue", label="" if at else "interval"
                )
            axis.legend(loc="upper left", fontsize="small")
        _time_axis(axes[-1])
