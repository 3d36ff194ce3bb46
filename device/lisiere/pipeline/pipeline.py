"""A pipeline: source -> queue -> task -> spool, bounded, with every drop counted.

The source runs in one thread and the model in another; between them is a queue that either keeps the latest
items or makes the source wait.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from lisiere.channels import Channels
from lisiere.clock import rfc3339
from lisiere.config import Importance, PipelineConfig
from lisiere.errors import Rejected, Retryable
from lisiere.health import PipelineHealth
from lisiere.models.manifest import WindowInput
from lisiere.pipeline.handover import BoundedQueue
from lisiere.settings.sources import ImagesSource
from lisiere.settings.window import WindowConfig
from lisiere.sight import Gate
from lisiere.sources import Source, is_live, is_recorded, source_name
from lisiere.sync.envelope import EventMessage, Latency, ModelInfo, ResultBody, ScoreMessage, TaskKind, WindowInfo
from lisiere.tasks import Task
from lisiere.timeline import Timeline
from lisiere.values import AnomalyBody, EventBody, Frame, InputInfo, MessageKind, Reading, Result, Window
from lisiere.view import View
from lisiere.windows import FAULTS, WindowBuilder, idle_seconds, imputed_rows, window_input

_SPOOL_WAIT_S = 5.0  # how long a result waits for a disk that does not take it
_LOOK_S = 0.25  # how often the clock is asked, at most, whether a sensor is silent
_BLOCK = 1024  # readings


class Sink(Protocol):
    """Where results go: the spool, or whatever takes its place in a replay."""

    def append(
        self,
        pipeline: str,
        body: bytes,
        timeout: float | None = None,
        importance: Importance = "result",
        ttl_s: float | None = None,
        kind: MessageKind = "result",
    ) -> None:
        """Take one message; see `Spool.append`."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What infers, and what results say of it.

    Attributes:
        window: how readings become what the task takes; None for frames.
        close: frees what it holds.
    """

    task: Task
    kind: TaskKind
    model: ModelInfo
    window: WindowInput | None
    close: Callable[[], None]


class Pipeline:
    """One configured pipeline. `read` and `work` are its two units, for two threads.

    In a replay `run` takes the place of both.

    Args:
        config: what to run.
        source: where items come from.
        engine: what infers.
        spool: where results go.
    """

    def __init__(
        self,
        config: PipelineConfig,
        source: Source,
        engine: Engine,
        spool: Sink,
        timeline: Timeline,
        health: PipelineHealth,
    ) -> None:
        self.name = config.name
        self.health = health
        self.model = engine.model
        self._source = source
        self._engine = engine
        self._spool = spool
        self._timeline = timeline
        self._source_name = source_name(config.source)
        self._delivery = config.delivery
        watched = engine.window.channels if engine.window is not None and config.channels else ()
        self._channels = Channels(watched, config.channels, health.fault) if watched else None
        self._builder: WindowBuilder | None = None
        # After so long without a reading the clock closes windows; a recording is silent where it is read slowly.
        self._idle_s = math.inf
        if engine.window is not None:
            window = config.window or WindowConfig()
            how = window_input(window, engine.window, "$.window")
            self._builder = WindowBuilder(how, self._source_name, window)
            self._idle_s = math.inf if is_recorded(config.source) else idle_seconds(window, how)
        self._heard = timeline.monotonic()  # when the last item came, in monotonic time
        self._view = View(config.view, not isinstance(config.source, ImagesSource), health.fault)
        self._gate = Gate(config.checks, config.trigger, health) if self._builder is None else None
        policy = config.queue.policy or ("latest" if is_live(config.source) else "all")
        size = config.queue.size or (1 if policy == "latest" else 64 if self._builder is None else 1024)
        self._queue: BoundedQueue[Frame | Reading] = BoundedQueue(size, policy)
        self.stop_reading = threading.Event()

    @property
    def queued(self) -> int:
        """How many items wait for the model."""
        return len(self._queue)

    def read(self) -> None:
        """Unit: from the source into the queue, until the source ends or is stopped.

        Raises:
            Retryable: the source is away.
            Permanent: it can never give what is asked of it.
        """
        health = self.health
        for number, item in enumerate(self._source.items(self.stop_reading)):
            if number == 0:
                health.state("running")
            health.count("read")
            wanted = self._admit(item)
            if wanted is not None and not self._queue.put(wanted):
                health.count("dropped_queue_full")
            if self.stop_reading.is_set():
                break

    def ask(self, command: str) -> None:
        """Let the model see the next frame, whatever the trigger says; see `Gate.ask`.

        Raises:
            Rejected: there are no frames to ask for, or too many are asked for.
        """
        if self._gate is None:
            raise Rejected(f"The pipeline {self.name} has readings, and windows of them come by themselves.")
        if self.health.snapshot()[0] != "running":
            raise Rejected(f"The pipeline {self.name} has no frames now: it is {self.health.snapshot()[0]}.")
        self._gate.ask(command)

    def end(self) -> None:
        """No more items will come: let `work` finish what is queued."""
        self.stop_reading.set()
        self._queue.close()

    def work(self) -> None:
        """Unit: from the queue through the model into the spool, until the queue is closed and empty.

        Raises:
            Permanent: the model failed.
        """
        patience = min(_LOOK_S, self._idle_s) if self._idle_s < math.inf else None
        while (items := self._queue.take(patience)) is None or items:
            for whole in self._silence() if items is None else self._wholes(items):
                self._infer(whole)
        self._finish(lambda _: None)

    def run(self, now: Callable[[float], None], stop: threading.Event) -> None:
        """Read and work in this thread alone, until the source ends: for replay, where nothing may depend on threads.

        Args:
            now: told of the time of each frame or window before it is inferred, seconds since the epoch.
            stop: what the source waits by.

        Raises:
            Retryable, Permanent: as from `read` and `work`.
        """
        self.health.state("running")
        items = self._source.items(stop)
        while some := list(islice(items, 1 if self._builder is None else _BLOCK)):
            self.health.count("read", len(some))
            for whole in self._wholes([item for item in map(self._admit, some) if item is not None]):
                now(whole.ts if isinstance(whole, Frame) else whole.end)
                self._infer(whole)
        self._finish(now)

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def _admit(self, item: Frame | Reading) -> Frame | Reading | None:
        """A reading as it is; a frame with what it was found to be, or None when the model is not to be asked of it."""
        return self._gate.admit(item) if self._gate is not None and isinstance(item, Frame) else item

    def _wholes(self, items: Sequence[Frame | Reading]) -> Iterator[Frame | Window]:
        """What the task is ready to be asked of: the frames' views, or the windows that readings complete."""
        self._heard = self._timeline.monotonic()
        if self._builder is None:
            for item in items:
                assert isinstance(item, Frame)  # noqa: S101 - check_pairing looked
                try:
                    yield self._view(item)
                except Rejected as error:
                    self.health.fault("view_unfit", str(error))
            return
        readings = [item for item in items if isinstance(item, Reading)]
        if self._channels is not None:
            readings = self._channels.readings(readings)
        for start in range(0, len(readings), _BLOCK):
            yield from self._builder.add_all(readings[start : start + _BLOCK])
            self._count_faults(self._builder)

    def _silence(self) -> Sequence[Window]:
        """The windows that are over by the clock, when no reading has come for long."""
        silent_s = self._timeline.since(self._heard)
        if self._channels is not None:
            self._channels.silent(silent_s)
        if self._builder is None or silent_s < self._idle_s:
            return ()
        return self._builder.silent(silent_s)

    def _finish(self, now: Callable[[float], None]) -> None:
        """Ask for what is left once no more items come."""
        if self._builder is not None:
            for window in self._builder.finish():
                now(window.end)
                self._infer(window)
            self._count_faults(self._builder)
        if messages := self._engine.task.end():
            try:
                self._tell(Result(None, messages=messages), None)
            except Rejected as error:
                self.health.fault("input_rejected", str(error))
            except Retryable as error:  # tried again, there would be nothing left to tell
                self.health.fault("spool_unavailable", str(error))

    def _count_faults(self, builder: WindowBuilder) -> None:
        for fault, times in builder.faults.items():
            name = "window_unfinished" if fault == "unfinished" else f"reading_{fault}"
            self.health.fault(name, f"{self.name}: {FAULTS[fault]}.", times)
        builder.faults.clear()

    def _infer(self, item: Frame | Window) -> None:
        """Ask the model, and hand on what it says. What cannot be used is counted and left out."""
        health = self.health
        try:
            age_ms = self._age_ms(item)
            result = self._engine.task(item)
            if result is None or (result.body is None and (isinstance(item, Window) or not result.messages)):
                health.fault("window_incomplete", f"A window of {self.name} has holes, so there is no result.")
            if result is None:
                return
            self._tell(result, item, age_ms)
        except Rejected as error:
            health.fault("input_rejected", str(error))
        except Retryable as error:
            health.fault("spool_unavailable", str(error))
        else:
            if result.body is not None:
                health.result(result.preprocess_ms + result.infer_ms + result.postprocess_ms)

    def _age_ms(self, item: Frame | Window) -> float | None:
        """How old a frame is; a window's age is a matter of its sensor's clock."""
        if not isinstance(item, Frame) or item.captured is None:
            return None
        return round(self._timeline.since(item.captured) * 1e3, 3)

    def _tell(self, result: Result, item: Frame | Window | None, age_ms: float | None = None) -> None:
        """Hand a result and the messages behind it to the spool.

        Raises:
            Rejected: one is too large for a message.
            Retryable: the spool takes nothing.
        """
        stamp = self._timeline.stamp(item.ts if isinstance(item, Frame) else None)
        head: dict[str, Any] = {
            "ts": rfc3339(stamp.ts),
            "ts_quality": stamp.quality,
            "clock": stamp.origin or msgspec.UNSET,
            "pipeline": self.name,
            "source": self._source_name,
            "task": self._engine.kind,
            "model": self.model,
        }
        anomalous = isinstance(result.body, AnomalyBody) and result.body.state == "anomalous"
        if result.body is not None:
            latency = Latency(
                preprocess=round(result.preprocess_ms, 3),
                infer=round(result.infer_ms, 3),
                postprocess=round(result.postprocess_ms, 3),
            )
            window = _window_info(item) if isinstance(item, Window) else msgspec.UNSET
            body = ResultBody(**head, latency_ms=latency, input=_input(item, age_ms), window=window, result=result.body)
            self._append(body, "result", "alarm" if anomalous else "result")
        for message in result.messages:
            if isinstance(message, EventBody):
                alarm = self._engine.kind == "anomaly"
                self._append(EventMessage(**head, event=message), "event", "alarm" if alarm else "result")
            else:
                self._append(ScoreMessage(**head, score=message), "score", "metric")

    def _append(self, body: Struct, kind: MessageKind, importance: Importance) -> None:
        """Hand one message over; what it is worth is as the configuration says, or else as given."""
        worth = self._delivery.importance or importance
        self._spool.append(self.name, msgspec.json.encode(body), _SPOOL_WAIT_S, worth, self._delivery.ttl_s, kind)


def _input(item: Frame | Window | None, age_ms: float | None) -> InputInfo:
    if isinstance(item, Frame):
        return msgspec.structs.replace(item.input or InputInfo(), age_ms=age_ms)
    return InputInfo(faults=item.faults if item is not None else ())


def _window_info(window: Window) -> WindowInfo:
    return WindowInfo(
        start=rfc3339(window.start),
        end=rfc3339(window.end),
        step_s=window.step_s,
        n=len(window.values),
        coverage=round(window.coverage, 4),
        imputed=window.imputed,
        imputed_rows=imputed_rows(window),
    )
