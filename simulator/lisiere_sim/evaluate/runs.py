"""Runs: results as `lisiere replay` writes them, taken apart by pipeline and scored by the kind of their task."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisiere.errors import ConfigError, Rejected
from lisiere_sim.evaluate import anomaly, classification, forecasting
from lisiere_sim.evaluate.kind import Figures, Kind, Record

RESULT = "lisiere.result/"
# By what `task` says in a result.
KINDS: Mapping[str, Kind] = {
    "anomaly": anomaly.KIND,
    "classification": classification.KIND,
    "forecasting": forecasting.KIND,
}


@dataclass(frozen=True)
class Run:
    """The results of one pipeline, in their order, and what is true.

    Attributes:
        labels: what the kind's `read_labels` gives.
    """

    name: str
    task: str
    results: list[Record]
    labels: Any

    def figures(self) -> Figures:
        """Score the run by its kind."""
        return {"task": self.task, **KINDS[self.task].figures(self.results, self.labels)}

    def plot(self, folder: Path) -> None:
        """Draw the run into `folder`."""
        KINDS[self.task].plot(self.results, self.labels, folder / f"{self.name}.png")


def read_runs(file: Path, labels: Mapping[str, Path]) -> list[Run]:
    """Read what a replay wrote, one run a pipeline.

    Lines of other schemas (events, scores, gaps) are left out; a line without a schema is a result.

    Args:
        file: JSON lines.
        labels: pipeline -> its file of labels; `""` stands for every pipeline without one of its own.

    Raises:
        ConfigError: the file is no such thing, or a pipeline has no labels or a task that cannot be scored.
    """
    found: dict[str, list[Record]] = {}
    tasks: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    record = _record(line, f"{file}, line {number}")
                    if str(record.get("schema", RESULT)).startswith(RESULT):
                        task = tasks.setdefault(record["pipeline"], record["task"])
                        found.setdefault(record["pipeline"], []).append(_kept(record, task, f"{file}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from error
    if not found:
        raise ConfigError(f"{file} holds no results.")
    unknown = sorted(set(labels) - set(found) - {""})
    if unknown:
        raise ConfigError(f"{file} has results of {', '.join(sorted(found))}, and none of {', '.join(unknown)}.")
    runs = []
    for name, results in found.items():
        task = tasks[name]
        if task not in KINDS:
            raise ConfigError(f"Results of {name} are of the task {task!r}; what can be scored is {', '.join(KINDS)}.")
        given = labels.get(name, labels.get(""))
        if given is None:
            raise ConfigError(f"{name} has no labels: give --labels {name}=FILE.")
        runs.append(Run(name, task, results, KINDS[task].read_labels(given)))
    return runs


def _kept(record: Record, task: str, where: str) -> Record:
    compact = KINDS[task].compact if task in KINDS else None
    try:
        return compact(record) if compact else record
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, Rejected) as error:
        raise ConfigError(f"{where} is no result of {task}: {error!r}.") from error


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}.") from error
    if not isinstance(record, dict) or not isinstance(record.get("pipeline"), str):
        raise ConfigError(f"{where} is no result: it names no pipeline.")
    if str(record.get("schema", RESULT)).startswith(RESULT) and not {"task", "ts", "result"} <= set(record):
        raise ConfigError(f"{where} is no result: it has no `task`, `ts` and `result`.")
    return record
