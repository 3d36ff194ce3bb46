"""Figures of anomaly runs: points, events, rates and ranks, against the stretches of time that were anomalous."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.clock import parse_ts
from lisiere.documents import read_text
from lisiere.errors import ConfigError, Rejected
from lisiere_sim.evaluate.kind import Figures, Kind, Record

Stretch = tuple[float, float]  # first and last second


def read_windows(file: Path) -> list[Stretch]:
    """Read the anomalous stretches of one run: JSON, `[[start, end], …]`, in time.

    Raises:
        ConfigError: the file is not of that form.
    """
    try:
        return stretches(msgspec.json.decode(read_text(file), type=list[tuple[str, str]]))
    except (Rejected, msgspec.DecodeError) as error:
        raise ConfigError(
            f'{file} is no list of windows such as [["2026-01-31T07:00:00Z", "2026-01-31T09:00:00Z"]]: {error}'
        ) from error


def stretches(windows: Sequence[tuple[str, str]]) -> list[Stretch]:
    """Return windows in seconds, in order.

    Raises:
        Rejected: one is no time, or ends before it starts.
    """
    found = sorted((parse_ts(start), parse_ts(end)) for start, end in windows)
    for start, end in found:
        if end < start:
            raise Rejected("A window ends before it starts.")
    return found


def figures(results: list[Record], windows: Sequence[Stretch]) -> Figures:
    """Compare results, whose state is `normal`, `anomalous` or `no_data`, with what was anomalous.

    A point is a result; those without data are counted and left out. An event is a stretch of labels, or a run of
    anomalous results: a labelled one is found when an anomalous result lies in it, and an alarm is false when none of
    its results does. What has no data breaks no run.
    """
    bodies = [result["result"] for result in results]
    known = np.array([body["state"] != "no_data" for body in bodies], np.bool_)
    times, ends = intervals(results)
    inside = labelled(times, ends, windows)
    alarm = np.array([body["state"] == "anomalous" for body in bodies], np.bool_)
    found: Figures = {"results": len(results), "no_data": int((~known).sum()), "windows": len(windows)}
    found["point"] = confusion(alarm[known], (inside >= 0)[known])
    found["event"] = events(alarm[known], times[known], ends[known], windows)
    scores = np.array([np.nan if body["score"] is None else body["score"] for body in bodies], np.float64)
    found["roc_auc"] = roc_auc(scores[known], (inside >= 0)[known])
    return found


def intervals(results: list[Record]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last second that each result speaks of: its window, or its own time."""
    spans: list[dict[str, Any]] = [result.get("window") or {} for result in results]
    starts = [parse_ts(span.get("start") or result["ts"]) for span, result in zip(spans, results, strict=True)]
    ends = [parse_ts(span.get("end") or result["ts"]) for span, result in zip(spans, results, strict=True)]
    return np.array(starts), np.array(ends)


def labelled(times: NDArray[np.float64], ends: NDArray[np.float64], windows: Sequence[Stretch]) -> NDArray[np.int64]:
    """The index of a stretch that each result touches, or -1."""
    inside = np.full(len(times), -1, np.int64)
    for at, (start, end) in enumerate(windows):
        inside[(ends >= start) & (times <= end)] = at
    return inside


def confusion(alarm: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Figures:
    """Precision, recall and F1, with the false and the missed alarm rate (FAR, MAR); None where nothing defines it."""
    true, false = int((alarm & truth).sum()), int((alarm & ~truth).sum())
    missed, clean = int((~alarm & truth).sum()), int((~alarm & ~truth).sum())
    return {
        "precision": ratio(true, true + false),
        "recall": ratio(true, true + missed),
        "f1": ratio(2 * true, 2 * true + false + missed),
        "far": ratio(false, false + clean),
        "mar": ratio(missed, true + missed),
    }


def events(
    alarm: NDArray[np.bool_],
    times: NDArray[np.float64],
    ends: NDArray[np.float64],
    windows: Sequence[Stretch],
) -> Figures:
    """The same by events; `delay_s` is the mean time from a stretch's start to the end of its first alarm's result."""
    found = [
        float(ends[hits[0]] - start)
        for start, end in windows
        if len(hits := np.flatnonzero(alarm & (ends >= start) & (times <= end)))
    ]
    inside = labelled(times, ends, windows) >= 0
    starts = np.flatnonzero(alarm & ~np.concatenate([[False], alarm[:-1]]))
    false = 0
    for start in starts:
        stop = start + int(np.argmin(np.append(alarm[start:], False)))
        false += not inside[start:stop].any()
    told = event_figures(len(starts), false, len(found), len(windows) - len(found))
    return told | {"delay_s": round(max(0.0, float(np.mean(found))), 3) if found else None}


def event_figures(alarms: int, false: int, found: int, missed: int) -> Figures:
    """Precision, recall and F1 of events."""
    return {
        "alarms": alarms,
        "false_alarms": false,
        "found": found,
        "missed": missed,
        "precision": ratio(found, found + false),
        "recall": ratio(found, found + missed),
        "f1": ratio(2 * found, 2 * found + false + missed),
    }


def roc_auc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float | None:
    """How often an anomalous point scores higher than a normal one; None without points of both.

    Source: Hanley and McNeil, 1982: it is the Mann-Whitney statistic.
    """
    normal, anomalous = np.sort(scores[~truth]), scores[truth]
    if not len(normal) or not len(anomalous):
        return None
    below = np.searchsorted(normal, anomalous, "left") + np.searchsorted(normal, anomalous, "right")
    return round(float(below.mean() / 2 / len(normal)), 4)


def ratio(part: float, whole: float) -> float | None:
    """A share, to four digits; None of nothing."""
    return round(part / whole, 4) if whole else None


def plot(results: list[Record], windows: Sequence[Stretch], file: Path) -> None:
    """Draw scores, threshold, alarms and what was labelled over time."""
    from lisiere_sim.evaluate import plots

    _, ends = intervals(results)
    bodies: list[dict[str, Any]] = [result["result"] for result in results]
    plots.anomaly(
        file,
        title=file.stem,
        times=ends,
        scores=np.array([np.nan if body["score"] is None else body["score"] for body in bodies], np.float64),
        threshold=float(bodies[0]["threshold"]) if bodies else None,
        alarm=np.array([body["state"] == "anomalous" for body in bodies], np.bool_),
        windows=windows,
    )


KIND = Kind(read_windows, figures, plot)
