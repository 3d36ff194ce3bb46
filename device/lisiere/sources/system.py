"""This machine itself as a sensor: how busy, how full and how warm it is, by psutil."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sensors import Measure, SystemSource
from lisiere.sources.base import FaultReport
from lisiere.sources.pace import polled
from lisiere.values import Reading

_MB = 1e6


def _psutil() -> Any:
    try:
        import psutil
    except ImportError as error:
        raise Permanent("psutil is not installed: `pip install lisiere[sensors]` brings it.") from error
    return psutil


class System:
    """Reads measures of the machine at regular times. One that fails is NaN and counted; the others go on.

    Args:
        channels: what the model's window wants, in order.
    """

    def __init__(
        self, config: SystemSource, name: str, channels: tuple[str, ...], clock: Clock, fault: FaultReport
    ) -> None:
        self._config = config
        self._channels = channels
        self._name = name
        self._clock = clock
        self._fault = fault

    def items(self, stop: threading.Event) -> Iterator[Reading]:
        """Yield until stopped, the first after one interval, over which the CPU is watched; see `Source.items`."""
        ways = _ways(_psutil(), self._config.disk)
        asked = []
        for channel in self._channels:
            measure = self._config.values.get(channel, channel)
            if measure not in ways:
                raise Permanent(f"{channel!r} is not a measure of this machine; `values` says which one it is.")
            asked.append((channel, ways[measure]))
        for channel, way in asked:
            try:
                way()
            except OSError as error:
                raise Retryable(f"{channel} cannot be told: {error}.") from error
        if stop.wait(self._config.interval_s):
            return
        yield from polled(
            lambda: [self._ask(channel, way) for channel, way in asked],
            self._config.interval_s,
            self._name,
            self._clock,
            self._fault,
            stop,
        )

    def _ask(self, channel: str, way: Callable[[], float]) -> float:
        try:
            return float(way())
        except (OSError, Permanent) as error:  # a sensor or a file system that has gone
            self._fault("system_unreadable", f"{channel} cannot be told: {error}")
            return math.nan


def _ways(psutil: Any, disk: str) -> dict[str, Callable[[], float]]:
    """How each measure is asked for."""
    ways: dict[Measure, Callable[[], float]] = {
        "cpu_percent": psutil.cpu_percent,
        "memory_percent": lambda: psutil.virtual_memory().percent,
        "memory_available_mb": lambda: psutil.virtual_memory().available / _MB,
        "disk_percent": lambda: psutil.disk_usage(disk).percent,
        "disk_free_mb": lambda: psutil.disk_usage(disk).free / _MB,
        "load_1": lambda: psutil.getloadavg()[0],
        "load_5": lambda: psutil.getloadavg()[1],
        "load_15": lambda: psutil.getloadavg()[2],
        "temperature": lambda: _hottest(psutil),
    }
    return {str(measure): way for measure, way in ways.items()}


def _hottest(psutil: Any) -> float:
    """The highest temperature that a sensor of the machine tells, in °C.

    Raises:
        Permanent: there is no such sensor.
    """
    groups = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    known = [entry.current for group in groups.values() for entry in group if entry.current is not None]
    if not known:
        raise Permanent("This machine has no sensor of temperature that psutil knows.")
    return float(max(known))
