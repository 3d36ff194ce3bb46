"""Reports: what a device says of itself, as health and metrics messages, as replies, and as a thing's shadow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lisiere import __version__
from lisiere.clock import Clock, rfc3339
from lisiere.health import PipelineHealth, resident_mb
from lisiere.spool import Spool
from lisiere.sync import envelope


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline whose model is loaded."""

    model: envelope.ModelInfo
    queued: Callable[[], int]


class Reports:
    """Gathers from the parts of a runtime what is told of them. One thread asks; `overview` may be asked by any.

    Args:
        device: the device's name.
        names: of the pipelines.
        clock: where time comes from.

    Attributes:
        health: by pipeline.
        loaded: by pipeline, once its model is.
        quality: whether stamps can be trusted now.
        clock_steps: how often wall time was set since the start.
        delivery_failure: asked why nothing can be delivered at present; None where something can.
        configuration_failure: why a newer configuration was refused, or None.
        commands: asked what became of the commands.
        local: asked what became of the results for other components of the device.
    """

    def __init__(self, device: str, names: Iterable[str], clock: Clock) -> None:
        self._device = device
        self._clock = clock
        self._started = clock.monotonic()
        self._last_metrics = self._started
        self._last_results: dict[str, int] = {}
        self.health = {name: PipelineHealth(name) for name in names}
        self.loaded: dict[str, Loaded] = {}
        self.quality = clock.quality()
        self.clock_steps = 0
        self.delivery_failure: Callable[[], str | None] = lambda: None
        self.configuration_failure: str | None = None
        self.commands: Callable[[], dict[str, int]] = dict
        self.local: Callable[[], dict[str, int]] = dict

    def ping_answer(self) -> envelope.PingAnswer:
        """Return what answers a ping."""
        return envelope.PingAnswer(version=__version__, uptime_s=self._uptime())

    def health_message(self, spool: Spool) -> envelope.HealthMessage:
        """Return the health message of now."""
        pipelines = {}
        for name, health in self.health.items():
            state, why, counters = health.snapshot()
            pipelines[name] = envelope.PipelineHealth(state=state, why=why, backend=health.backend, counters=counters)
        good = all(part.state in ("running", "ended", "starting") for part in pipelines.values())
        delivery = self.delivery_failure()
        trouble = spool.failure or spool.damage
        failures = (trouble, delivery, self.configuration_failure)
        return envelope.HealthMessage(
            device=self._device,
            ts=rfc3339(self._clock.now()),
            ts_quality=self.quality,
            clock_steps=self.clock_steps,
            state="ok" if good and failures == (None, None, None) else "degraded",
            uptime_s=self._uptime(),
            pipelines=pipelines,
            spool=spool_figures(spool),
            spool_failure=trouble,
            delivery_failure=delivery,
            configuration_failure=self.configuration_failure,
            commands=self.commands(),
            local=self.local(),
        )

    def metrics_message(self, spool: Spool) -> envelope.MetricsMessage:
        """Return the metrics since this was asked last; the next ones start here."""
        now = self._clock.monotonic()
        interval = max(now - self._last_metrics, 1e-3)
        self._last_metrics = now
        pipelines = {}
        for name, loaded in self.loaded.items():
            health = self.health[name]
            results = health.snapshot()[2].get("results", 0)
            quantiles = health.take_latencies()
            pipelines[name] = envelope.PipelineMetrics(
                results_per_s=round((results - self._last_results.get(name, 0)) / interval, 3),
                latency_ms=envelope.LatencyQuantiles(
                    **{key: round(value, 3) for key, value in zip(("p50", "p95", "p99"), quantiles, strict=True)}
                )
                if quantiles
                else None,
                queue=loaded.queued(),
            )
            self._last_results[name] = results
        return envelope.MetricsMessage(
            device=self._device,
            ts=rfc3339(self._clock.now()),
            interval_s=round(interval, 3),
            rss_mb=resident_mb(),
            pipelines=pipelines,
            spool=spool_figures(spool),
        )

    def overview(self) -> dict[str, dict[str, Any]]:
        """Return what runs: model, backend and state by pipeline."""
        told = {}
        for name, health in list(self.health.items()):
            state, why, _ = health.snapshot()
            loaded = self.loaded.get(name)
            told[name] = {
                "model": loaded.model.name if loaded else None,
                "version": loaded.model.version if loaded else None,
                "digest": loaded.model.digest if loaded else None,
                "backend": loaded.model.backend if loaded else None,
                "state": state,
                "why": why,
            }
        return told

    def _uptime(self) -> float:
        return round(self._clock.monotonic() - self._started, 3)


def spool_figures(spool: Spool) -> dict[str, int]:
    """Return what waits in a spool."""
    return {"rows": spool.waiting, "bytes": spool.bytes_waiting, "highest_seq": spool.committed}
