"""The runtime: wires a configuration into pipelines, spool and drain, runs them, and stops them cleanly."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from lisiere.brokers import Negotiation
from lisiere.clock import Clock
from lisiere.config import Config, PipelineConfig
from lisiere.errors import ConfigError, LisiereError, Permanent, Rejected
from lisiere.health import State, worth_logging
from lisiere.pipeline import Pipeline, open_pipeline
from lisiere.reports import Loaded, Reports, spool_figures
from lisiere.settings.links import GreengrassConfig, LinkConfig
from lisiere.spool import Spool, SpoolReader
from lisiere.supervisor import StopOrHurry, Unit
from lisiere.sync.commands import Answers, Commands
from lisiere.sync.drain import Drain
from lisiere.sync.envelope import InferAnswer, InferCommand
from lisiere.sync.local import LocalFan, LocalPublish
from lisiere.sync.topics import Topics
from lisiere.sync.transports import Transport
from lisiere.timeline import Timeline

log = logging.getLogger(__name__)

_JOIN_S = 6.0  # for a source that is inside a call of its library, and for the model to finish its queue
_END_S = 5.0  # for the drain to say goodbye


class Runtime:
    """Everything that one configuration asks for, in one process.

    Args:
        config: what to run.
        clock: where time comes from.
        open_transport: makes a transport for each connection; by default what the configuration names.
        ready: called once the first model is warm.
        publish_locally: hands a result to others on the same device.

    Raises:
        ConfigError: the configured transport cannot be made here.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        open_transport: Callable[[], Transport] | None = None,
        ready: Callable[[], None] = lambda: None,
        publish_locally: LocalPublish | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._topics = Topics(config.topic_prefix, config.device)
        self._open_transport = open_transport or _transport_of(config)
        self._ready = ready
        self._publish_locally = publish_locally
        self._local: LocalFan | None = None
        self._local_unit: Unit | None = None
        self.reports = Reports(config.device, [pipeline.name for pipeline in config.pipelines], clock)
        self.reports.delivery_failure = self._why_undelivered
        answers: Answers = {
            "ping": lambda _payload: self.reports.ping_answer(),
            "health": lambda _payload: self.reports.health_message(self._spool),
            "metrics": lambda _payload: self.reports.metrics_message(self._spool),
            "ack": self._acknowledge,
            "infer": self._infer,
        }
        self._commands = Commands(config.device, self._topics, clock, answers, lambda: self._wake.set())
        self.reports.commands = self._commands.counts
        self._delivery_failure: str | None = None
        self._stop_drain = StopOrHurry()
        self._wake = threading.Event()
        self._stopping = False
        self._drain_s = config.stop_drain_s
        self._farewell = True
        self._spool: Spool
        self._timeline: Timeline
        self._pipelines: list[Pipeline] = []
        self._readers: list[Unit] = []
        self._workers: list[Unit] = []
        self._drain: Drain | None = None
        self._drain_unit: Unit | None = None

    def stop(self, drain_s: float | None = None, farewell: bool = True) -> None:
        """Ask for a clean stop; may be called from a signal handler.

        Args:
            drain_s: how long to go on delivering, instead of what is configured.
            farewell: whether to tell that the device stops; not when another runtime follows at once.
        """
        if drain_s is not None:
            self._drain_s = drain_s
        self._farewell = farewell
        self._stopping = True
        self._wake.set()

    def renew(self) -> None:
        """Connect anew: what was refused may be allowed now."""
        if self._drain is not None:
            self._drain.renew()
        self.hurry()

    def hurry(self) -> None:
        """If connecting waits for another try, try at once."""
        self._stop_drain.hurry()

    def spool_figures(self) -> dict[str, int]:
        """Return what waits in the spool; nothing before it is open."""
        return spool_figures(self._spool) if hasattr(self, "_spool") else {}

    def run(self) -> None:
        """Run until every source has ended or `stop` is called; then deliver for a bounded time, and end.

        Raises:
            ConfigError: a source does not fit its model.
            Permanent: the spool cannot be used, or no pipeline could be started.
        """
        self._spool = Spool(self._config.spool, self._clock, self._committed)
        self._timeline = Timeline(self._clock, Path(self._config.spool.path))
        try:
            self._start()
            self._watch()
        finally:
            self._finish()
        healths = self.reports.health
        if all(health.snapshot()[0] == "failed" for health in healths.values()):
            reasons = " ".join(f"{name}: {health.snapshot()[1]}" for name, health in healths.items())
            raise Permanent(f"No pipeline could run. {reasons}")

    def _committed(self, seq: int) -> None:
        if self._drain is not None:
            self._drain.committed(seq)
        if self._local is not None:
            self._local.committed()

    def _start(self) -> None:
        if self._open_transport is not None:
            self._start_drain(self._open_transport)
        if self._publish_locally is not None:
            self._start_local(self._publish_locally)
        for index, config in enumerate(self._config.pipelines):
            if self._stopping:
                return
            try:
                self._start_pipeline(config, f"$.pipelines[{index}]")
            except ConfigError:
                raise
            except LisiereError as error:
                # One bad model does not keep the others from running.
                self.reports.health[config.name].state("failed", str(error))
            else:
                if len(self._pipelines) == 1:
                    self._ready()

    def _start_drain(self, open_transport: Callable[[], Transport]) -> None:
        config = self._config
        self._drain = Drain(
            config.device,
            self._topics,
            self._spool,
            self._open_reader,
            open_transport,
            self._clock,
            config.transport or LinkConfig(),
            {pipeline.name: pipeline.publish_topic for pipeline in config.pipelines if pipeline.output == "aws-dlr"},
            self._commands.received,
            self._timeline,
        )
        self._drain_unit = Unit(
            "drain", self._drain.run, self._stop_drain, self._clock, self._drain_report(), config.retry_max_s
        )
        self._drain_unit.start()

    def _start_local(self, publish: LocalPublish) -> None:
        self._local = LocalFan(self._config.device, self._topics, self._spool, self._open_reader, publish, self._clock)
        self.reports.local = self._local.counts
        stop = threading.Event()
        self._local_unit = Unit("local", self._local.run, stop, self._clock, lambda _state, _why: None)
        self._local_unit.start()

    def _open_reader(self) -> SpoolReader:
        spool = self._spool
        return SpoolReader(Path(self._config.spool.path), lambda seqs: spool.set_aside(seqs, "spool_damaged"))

    def _start_pipeline(self, config: PipelineConfig, path: str) -> None:
        reports = self.reports
        health = reports.health[config.name]
        pipeline = open_pipeline(config, path, self._spool, self._clock, self._timeline, health)
        reports.loaded[config.name] = Loaded(pipeline.model, lambda: pipeline.queued)

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
        metrics_due = clock.monotonic() + config.metrics_interval_s
        while not self._stopping and any(not worker.join(0) for worker in self._workers):
            self._wake.wait(max(0.0, min(health_due, metrics_due) - clock.monotonic()))
            self._wake.clear()
            self._commands.work(self._reply)
            now = clock.monotonic()
            if now >= health_due:
                self.reports.quality = self._timeline.quality()
                self.reports.clock_steps = self._timeline.steps
                self._publish_health()
                health_due = now + config.health_interval_s
            if now >= metrics_due:
                self._publish_metrics()
                metrics_due = now + config.metrics_interval_s

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
        if self._local is not None and self._local_unit is not None:
            self._local.stop()
            self._local_unit.join(_END_S)
        self._publish_health()
        if self._drain is not None and self._drain_unit is not None:
            self._drain.finish()
            if self._spool.waiting == 0 and not self._drain.connected:
                self._stop_drain.set()
            if not self._farewell or not self._drain_unit.join(self._drain_s):
                self._stop_drain.set()
                self._drain.stop(self._farewell)
                self._drain_unit.join(_END_S)
        self._spool.flush(_END_S)
        waiting = self._spool.waiting
        self._spool.close()
        log.info("Stopped; %s", f"{waiting} results wait on disk." if waiting else "nothing waits on disk.")

    def _publish_health(self) -> None:
        if self._drain is not None:
            self._drain.send(self._topics.health, msgspec.json.encode(self.reports.health_message(self._spool)))

    def _publish_metrics(self) -> None:
        if self._drain is not None:
            self._drain.send(self._topics.metrics, msgspec.json.encode(self.reports.metrics_message(self._spool)))

    def _acknowledge(self, payload: bytes) -> Struct:
        if self._drain is None:
            raise Rejected("Nothing is delivered here.")
        return self._drain.acknowledge(payload)

    def _infer(self, payload: bytes) -> Struct:
        try:
            command = msgspec.json.decode(payload, type=InferCommand)
        except msgspec.DecodeError as error:
            raise Rejected(f"This is no command `infer`: {error}") from error
        for pipeline in self._pipelines:
            if pipeline.name == command.pipeline:
                pipeline.ask(command.id)
                return InferAnswer(pipeline=pipeline.name)
        names = ", ".join(pipeline.name for pipeline in self._pipelines)
        raise Rejected(f"No pipeline {command.pipeline!r} runs here; there are {names}.")

    def _reply(self, topic: str, payload: bytes) -> None:
        if self._drain is not None:
            self._drain.send(topic, payload, qos=1)

    def _drain_report(self) -> Callable[[State, str], None]:
        """Make what keeps how the drain fares, and logs the 1st, 10th, 100th … failure to connect, and its end."""
        log_it = _drain_report()

        def report(state: State, why: str) -> None:
            self._delivery_failure = why if state in ("waiting", "failed") else None
            log_it(state, why)

        return report

    def _why_undelivered(self) -> str | None:
        if self._drain is None:
            return None
        return self._drain.denial if self._drain.connected else self._delivery_failure


def _transport_of(config: Config) -> Callable[[], Transport] | None:
    """Return what makes the configured transport; its library is imported with the first connection."""
    settings = config.transport
    if settings is None:
        return None
    if isinstance(settings, GreengrassConfig):
        raise ConfigError("The transport `greengrass` is for `lisiere run --greengrass`.", "$.transport")

    known: Negotiation | None = None

    def make() -> Transport:
        nonlocal known
        from lisiere.sync.transports.mqtt import MqttTransport

        known = known or Negotiation(settings.protocol)
        return MqttTransport(settings, config.device, known)

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
