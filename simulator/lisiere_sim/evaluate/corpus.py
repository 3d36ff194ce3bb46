"""A corpus in NAB's form: series as CSV files, windows of anomalies in JSON, and the built-in detector over it."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lisiere.clock import parse_ts
from lisiere.detector import DEFAULT_RATE, StreamDetector, threshold
from lisiere.documents import read_text
from lisiere.errors import ConfigError, Rejected
from lisiere.settings.anomaly import AlarmConfig
from lisiere.tasks.alarm import Alarm
from lisiere_sim.evaluate import anomaly, nab
from lisiere_sim.evaluate.gaussian import windowed_gaussian
from lisiere_sim.evaluate.kind import Figures
from lisiere_sim.evaluate.made import made

COOL_DOWN = 100  # rows, as the built-in detector's
_LEAST, _HIGHER = 1.2, 1.2  # scores below are never alarms; so much higher one breaks through the cool-down


@dataclass(frozen=True)
class Watched:
    """One series with what the detector made of it.

    Attributes:
        times: seconds, [n], in the order of the file.
        values: [n], NaN where a cell holds no number.
        windows: first and last second of each anomaly.
        scores: [n], NaN where there was no value.
        alarm: [n], the state.
        raised: [n], rows in which an alarm is told: its beginning, and where it becomes worth telling again.
    """

    name: str
    times: nab.Floats
    values: nab.Floats
    windows: list[anomaly.Stretch]
    scores: nab.Floats
    alarm: NDArray[np.bool_]
    raised: NDArray[np.bool_]


def find_corpus(folder: Path) -> dict[Path, list[anomaly.Stretch]]:
    """Return the series of a folder, in the order of their names, with their windows.

    The windows stand in the only JSON file whose name holds `windows`, or in `combined_windows.json`, at any depth:
    `{"realTweets/x.csv": [[start, end], …]}`. A series is found by that path at any depth, or by its file's name.

    Raises:
        ConfigError: there are no windows, or a series that they name is not there.
    """
    files = sorted(folder.rglob("*windows*.json"))
    files = [file for file in files if file.name == "combined_windows.json"] or files
    if len(files) != 1:
        raise ConfigError(f"{folder} has {len(files)} files of windows (*windows*.json), and must have one.")
    try:
        named = msgspec.json.decode(read_text(files[0]), type=dict[str, list[tuple[str, str]]])
        windows = {name: anomaly.stretches(given) for name, given in named.items()}
    except (Rejected, msgspec.DecodeError) as error:
        raise ConfigError(f"{files[0]} does not map series to windows: {error}") from error
    found = {}
    every = sorted(folder.rglob("*.csv"))
    for name in sorted(windows):
        parts = Path(name).parts
        matches = [file for file in every if file.parts[-len(parts) :] == parts]
        matches = matches or [file for file in every if file.name == parts[-1]]
        if len(matches) != 1:
            raise ConfigError(f"{files[0]} names {name}, of which {folder} has {len(matches)}.")
        found[matches[0]] = windows[name]
    return found


def read_series(file: Path) -> tuple[nab.Floats, nab.Floats]:
    """Read `timestamp,value`: times in seconds and values, NaN where a cell is no number; both [n].

    Raises:
        ConfigError: the file has no such columns, or a line without a time.
    """
    times, values = [], []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            for row in csv.DictReader(stream):
                times.append(parse_ts(row["timestamp"] or ""))
                values.append(_number(row["value"]))
    except KeyError as error:
        raise ConfigError(f"{file} has no column {error}.") from error
    except (OSError, UnicodeDecodeError, csv.Error, Rejected) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return np.array(times), np.array(values)


def watch(name: str, times: nab.Floats, values: nab.Floats, windows: list[anomaly.Stretch]) -> Watched:
    """Run the detector over one series, with its one setting; the cool-down counts rows."""
    detector, limit = StreamDetector(1), threshold(DEFAULT_RATE)
    alarm = Alarm(AlarmConfig(), COOL_DOWN)
    scores = np.full(len(times), np.nan)
    state = np.zeros(len(times), np.bool_)
    raised = np.zeros(len(times), np.bool_)
    for at, (ts, value) in enumerate(zip(times.tolist(), values.tolist(), strict=True)):
        score = detector(ts, (value,))
        if score is not None:
            scores[at] = score
        found, events = alarm(float(at), score, limit)
        state[at] = found == "anomalous"
        raised[at] = any(event.phase != "end" for event in events)
    return Watched(name, times, values, windows, scores, state, raised)


def held_back(scores: nab.Floats) -> nab.Floats:
    """Scores as far as they could raise an alarm: within the cool-down of another only what is higher by a fifth.

    NAB counts each row above its threshold as an alarm, so what belongs to one alarm must stand in one row, whatever
    the threshold will be.
    """
    kept = np.zeros(len(scores))
    lead, cooling = 0.0, 0
    for at, score in enumerate(np.nan_to_num(scores).tolist()):
        if (cooling == 0 and score > _LEAST) or (cooling > 0 and score > _HIGHER * lead):
            kept[at] = lead = score
            cooling = COOL_DOWN
        else:
            cooling = max(0, cooling - 1)
    return kept


def figures(watched: list[Watched]) -> Figures:
    """NAB's scores by profile, with the threshold that is best for the corpus and with the detector's own; and F1.

    Beside them stands what a plain baseline scores, which says how hard the corpus is.
    """
    free = [nab.Series(one.times, held_back(one.scores), one.windows) for one in watched]
    own = [nab.Series(one.times, one.raised.astype(np.float64), one.windows) for one in watched]
    plain = [nab.Series(one.times, windowed_gaussian(one.values), one.windows) for one in watched]
    found: Figures = {
        "series": len(watched),
        "points": sum(len(one.times) for one in watched),
        "windows": sum(len(one.windows) for one in watched),
        "nab": {name: _told(nab.score(free, profile)) for name, profile in nab.PROFILES.items()},
        "nab_own_threshold": {
            name: _told(nab.score(own, profile, 1.0)) | {"threshold": threshold(DEFAULT_RATE)}
            for name, profile in nab.PROFILES.items()
        },
    }
    found["nab_windowed_gaussian"] = {"standard": _told(nab.score(plain, nab.PROFILES["standard"]))}
    alarm = np.concatenate([one.alarm for one in watched])
    truth = np.concatenate([anomaly.labelled(one.times, one.times, one.windows) >= 0 for one in watched])
    found["point"] = anomaly.confusion(alarm, truth)
    events = [anomaly.events(one.alarm, one.times, one.times, one.windows) for one in watched]
    found["event"] = anomaly.event_figures(
        *(sum(part[key] for part in events) for key in ("alarms", "false_alarms", "found", "missed"))
    )
    return found


def each(watched: list[Watched]) -> Figures:
    """The same with the detector's own threshold, series by series, in short."""
    found = {}
    for one in watched:
        rows = nab.Series(one.times, one.raised.astype(np.float64), one.windows)
        told = _told(nab.score([rows], nab.PROFILES["standard"], 1.0))
        found[one.name] = {key: told[key] for key in ("score", "detected", "windows", "false_alarms")}
    return found


def watch_all(folder: Path, say: Callable[[int, int], None]) -> list[Watched]:
    """Run the detector over a corpus; `say` is told how many of how many points are done.

    Raises:
        ConfigError: the folder is no corpus.
    """
    series = [(file, *read_series(file), windows) for file, windows in find_corpus(folder).items()]
    total, done = sum(len(times) for _, times, _, _ in series), 0
    watched = []
    for file, times, values, windows in series:
        watched.append(watch(file.stem, times, values, windows))
        done += len(times)
        say(done, total)
    return watched


def watch_made(seed: int, say: Callable[[int, int], None]) -> list[Watched]:
    """Run the detector over the made corpus of a seed; see `watch_all`."""
    series = list(made(seed))
    watched = []
    for number, one in enumerate(series, start=1):
        watched.append(watch(one.name, one.times, one.values, one.windows))
        say(number, len(series))
    return watched


def plot(one: Watched, folder: Path) -> Path:
    """Draw a series with its scores, alarms and windows into `folder`, and return the file."""
    from lisiere_sim.evaluate import plots

    file = folder / f"{one.name}.png"
    plots.anomaly(
        file,
        title=one.name,
        times=one.times,
        values=one.values,
        scores=one.scores,
        threshold=threshold(DEFAULT_RATE),
        alarm=one.raised,
        windows=one.windows,
    )
    return file


def _told(score: nab.Score) -> Figures:
    return {
        "score": round(score.normalised, 2),
        "threshold": round(score.threshold, 4),
        "detected": score.detected,
        "windows": score.windows,
        "false_alarms": score.false_alarms,
    }


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan
