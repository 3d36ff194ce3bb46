"""The runtime: wires a configuration into pipelines, spool and drain, runs them, and stops them cleanly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from lisiere.clock import Clock, rfc3339
from lisiere.config import Config, MqttConfig, PipelineConfig
from lisiere.errors import ConfigError, LisiereError, Permanent
from lisiere.health import PipelineHealth, State, resident_mb, worth_logging
from lisiere.pipeline import Pipeline, open_pipeline
from lisiere.spool import Spool, SpoolReader
from lisiere.supervisor import Unit
from lisiere.sync import envelope
from lisiere.sync.drain import Drain
from lisiere.sync.topics import Topics
from lisiere.sync.transports import Transport

log = logging.getLogger(__name__)

_JOIN_S = 6.0  # for a source that is inside a call of its library, and for the model to finish its queue
_END_S = 5.0  # for the drain to say goodbye


class Runtime:
    """Everything that one configuration asks for, in one process.

    Args:
        config: what to run.
        clock: where time comes from.
        open_transport: makes a transport for each connection; by default what the configuration names.
    """

    def __init__(self, config: Config, clock: Clock, open_transport: Callable[[], Transport] | None = None) -> None:
        self._config = config
        self._clock = clock
        self._topics = Topics(config.topic_prefix, config.device)
        self._open_transport = open_transport or _transport_of(config)
        self._quality = clock.quality()
        self._started = clock.monotonic()
        self._stop_drain = threading.Event()
        self._wake = threading.Event()
        self._stopping = False
        self._health = {pipeline.name: PipelineHealth(pipeline.name) for pipeline in config.pipelines}
        self._pipelines: list[Pipeline] = []
        self._readers: list[Unit] = []
        self._workers: list[Unit] = []
        self._drain: Drain | None = None
        self._drain_unit: Unit | None = None
        self._last_results: dict[str, int] = {}

    def stop(self) -> None:
        """Ask for a clean stop; may be called from a signal handler."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Run until every source has ended or `stop` is called; then deliver for a bounded time, and end.

        Raises:
            ConfigError: a source does not fit its model.
            Permanent: the spool cannot be used, or no pipeline could be started.
        """
        self._spool = Spool(self._config.spool, self._clock, self._committed)
        try:
            self._start()
            self._watch()
        finally:
            self._finish()
        if all(health.snapshot()[0] == "failed" for health in self._health.values()):
            reasons = " ".join(f"{name}: {health.snapshot()[1]}" for name, health in self._health.items())
            raise Permanent(f"No pipeline could run. {reasons}")

    def _committed(self, seq: int) -> None:
        if self._drain is not None:
            self._drain.committed(seq)

    def _start(self) -> None:
        if self._open_transport is not None:
            self._start_drain(self._open_transport)
        for index, config in enumerate(self._config.pipelines):
            try:
                self._start_pipeline(config, f"$.pipelines[{index}]")
            except ConfigError:
                raise
            except LisiereError as error:
                # One bad model does not keep the others from running.
                self._health[config.name].state("failed", str(error))

    def _start_drain(self, open_transport: Callable[[], Transport]) -> None:
        config = self._config
        settings = config.transport or MqttConfig(host="-")
        self._drain = Drain(
            config.device,
            self._topics,
            self._spool,
            lambda: SpoolReader(Path(config.spool.path)),
            open_transport,
            self._clock,
            settings.window,
            settings.ack_timeout_s,
        )
        self._drain_unit = Unit(
            "drain", self._drain.run, self._stop_drain, self._clock, _drain_report(), config.retry_max_s
        )
        self._drain_unit.start()

    def _start_pipeline(self, config: PipelineConfig, path: str) -> None:
        health = self._health[config.name]
        pipeline = open_pipeline(config, path, self._spool, self._clock, lambda: self._quality, health)

        def report_reader(state: State, why: str) -> None:
            if state in ("waiting", "failed"):
                health.state(state, why)
                health.count("source_unavailable")
            if state in ("ended", "failed"):
                pipeline.end()

        def report_worker(state: State, why: str) -> None:
            if health.snapshot()[0] != "failed":
                health.state(state, why)
            pipeline.end()  # a model that failed must not leave its source waiting
            self._wake.set()

        stop = pipeline.stop_reading
        reader = Unit(
            f"{config.name}-source", pipeline.read, stop, self._clock, report_reader, self._config.retry_max_s
        )
        worker = Unit(f"{config.name}-model", pipeline.work, threading.Event(), self._clock, report_worker)
        self._pipelines.append(pipeline)
        self._readers.append(reader)
        self._workers.append(worker)
        worker.start()
        reader.start()

    def _watch(self) -> None:
        """Publish health and metrics until there is nothing left to run."""
        config, clock = self._config, self._clock
        health_due = clock.monotonic() + min(1.0, config.health_interval_s)
        metrics_due = last_metrics = clock.monotonic()
        metrics_due += config.metrics_interval_s
        while not self._stopping and any(not worker.join(0) for worker in self._workers):
            self._wake.wait(max(0.0, min(health_due, metrics_due) - clock.monotonic()))
            self._wake.clear()
            now = clock.monotonic()
            if now >= health_due:
                self._quality = clock.quality()
                self._publish_health()
                health_due = now + config.health_interval_s
            if now >= metrics_due:
                self._publish_metrics(now - last_metrics)
                last_metrics, metrics_due = now, now + config.metrics_interval_s

    def _finish(self) -> None:
        """Stop in the order in which data flows, so that nothing accepted is left in memory."""
        for pipeline in self._pipelines:
            pipeline.stop_reading.set()
        for pipeline, reader in zip(self._pipelines, self._readers, strict=True):
            if not reader.join(_JOIN_S):
                log.warning("The source of %s does not end; it is left behind.", pipeline.name)
            pipeline.end()
        for pipeline, worker in zip(self._pipelines, self._workers, strict=True):
            if worker.join(_JOIN_S):
                pipeline.close()
            else:
                log.warning("The model of %s does not end; it is left behind.", pipeline.name)
        if not self._spool.flush(_JOIN_S):
            log.error("Results could not be written to disk: %s.", self._spool.failure or "the disk is too slow")
        self._publish_health()
        if self._drain is not None and self._drain_unit is not None:
            self._drain.finish()
            if self._spool.waiting == 0 and not self._drain.connected:
                self._stop_drain.set()
            if not self._drain_unit.join(self._config.stop_drain_s):
                self._stop_drain.set()
                self._drain.stop()
                self._drain_unit.join(_END_S)
        self._spool.flush(_END_S)
        waiting = self._spool.waiting
        self._spool.close()
        log.info("Stopped; %s", f"{waiting} results wait on disk." if waiting else "nothing waits on disk.")

    def _publish_health(self) -> None:
        if self._drain is None:
            return
        pipelines = {}
        for name, health in self._health.items():
            state, why, counters = health.snapshot()
            pipelines[name] = envelope.PipelineHealth(state=state, why=why, backend=health.backend, counters=counters)
        good = all(part.state in ("running", "ended", "starting") for part in pipelines.values())
        message = envelope.HealthMessage(
            device=self._config.device,
            ts=rfc3339(self._clock.now()),
            ts_quality=self._quality,
            state="ok" if good and self._spool.failure is None else "degraded",
            uptime_s=round(self._clock.monotonic() - self._started, 3),
            pipelines=pipelines,
            spool=self._spool_figures(),
            spool_failure=self._spool.failure,
        )
        self._drain.send(self._topics.health, msgspec.json.encode(message))

    def _publish_metrics(self, interval: float) -> None:
        if self._drain is None:
            return
        pipelines = {}
        for pipeline in self._pipelines:
            health = self._health[pipeline.name]
            results = health.snapshot()[2].get("results", 0)
            quantiles = health.take_latencies()
            pipelines[pipeline.name] = envelope.PipelineMetrics(
                results_per_s=round((results - self._last_results.get(pipeline.name, 0)) / interval, 3),
                latency_ms=envelope.LatencyQuantiles(
                    **{key: round(value, 3) for key, value in zip(("p50", "p95", "p99"), quantiles, strict=True)}
                )
                if quantiles
                else None,
                queue=pipeline.queued,
            )
            self._last_results[pipeline.name] = results
        message = envelope.MetricsMessage(
            device=self._config.device,
            ts=rfc3339(self._clock.now()),
            interval_s=round(interval, 3),
            rss_mb=resident_mb(),
            pipelines=pipelines,
            spool=self._spool_figures(),
        )
        self._drain.send(self._topics.metrics, msgspec.json.encode(message))

    def _spool_figures(self) -> dict[str, int]:
        return {"rows": self._spool.waiting, "bytes": self._spool.bytes_waiting, "highest_seq": self._spool.committed}


def _transport_of(config: Config) -> Callable[[], Transport] | None:
    """Return what makes the configured transport; its library is imported with the first connection."""
    settings = config.transport
    if settings is None:
        return None

    def make() -> Transport:
        from lisiere.sync.transports.mqtt import MqttTransport

        return MqttTransport(settings, config.device)

    return make


def _drain_report() -> Callable[[State, str], None]:
    """Make what logs how the drain fares: the 1st, 10th, 100th … failure to connect, and its end."""
    failures = 0

    def report(state: State, why: str) -> None:
        nonlocal failures
        if state == "waiting":
            failures += 1
            if worth_logging(failures):
                log.warning("%s (failure %d)", why, failures)
        elif state == "failed":
            log.error("Nothing more is delivered; results stay in the spool. %s", why)

    return report
