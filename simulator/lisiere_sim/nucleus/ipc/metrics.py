"""PutComponentMetric: checked and counted; there is no telemetry to send it to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lisiere_sim.nucleus.call import Call, IpcError, Operation

_UNITS = ("BYTES", "BYTES_PER_SECOND", "COUNT", "COUNT_PER_SECOND", "MEGABYTES", "SECONDS")
_NAME_MAX = 32
_NAMES_MAX = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """The last value of one metric, and how many there were."""

    unit: str
    value: float
    count: int


class Metrics:
    """Keeps the last value of each component's metrics; of new names beyond `_NAMES_MAX` only the number is kept."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], Metric] = {}
        self.left_out: Counter[str] = Counter()

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"PutComponentMetric": self._put}

    async def _put(self, call: Call) -> dict[str, Any]:
        metrics = call.request.get("metrics")
        if not isinstance(metrics, list) or not metrics:
            raise IpcError("InvalidArgumentsError", "PutComponentMetric takes a list of metrics that is not empty.")
        for number, metric in enumerate(metrics):
            wrong = _fault(metric)
            if wrong:
                raise IpcError("InvalidArgumentsError", f"metrics[{number}]: {wrong}")
        for metric in metrics:
            key = (call.component, metric["name"])
            before = self.last.get(key)
            if before is None and len(self.last) >= _NAMES_MAX:
                self.left_out[call.component] += 1
                continue
            self.last[key] = Metric(metric["unit"], float(metric["value"]), (before.count if before else 0) + 1)
        return {}


def _fault(metric: Any) -> str:
    if not isinstance(metric, dict):
        return "It is not an object."
    name, unit, value = (metric.get(key) for key in ("name", "unit", "value"))
    if not isinstance(name, str) or not 1 <= len(name) <= _NAME_MAX:
        return f"Its name must have 1 to {_NAME_MAX} characters."
    if unit not in _UNITS:
        return f"Its unit must be one of {', '.join(_UNITS)}."
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        return "Its value must be a number that is not negative."
    return ""
