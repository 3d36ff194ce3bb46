"""A pipeline: source -> queue -> task -> spool, bounded, with every drop counted.

The source runs in one thread and the model in another; between them is a queue that either keeps the latest
items or makes the source wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from lisiere.sources import Source, is_live, source_name
from lisiere.sync.envelope import EventMessage, Latency, ModelInfo, ResultBody, ScoreMessage, TaskKind, WindowInfo
from lisiere.tasks import Task
from lisiere.timeline import Timeline
from lisiere.values import AnomalyBody, EventBody, Frame, InputInfo, MessageKind, Reading, Result, Window
from lisiere.view import View
from lisiere.windows import WindowBuilder

_SPOOL_WAIT_S = 5.0  # how long a result waits for a disk that does not take it


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
        self._builder = WindowBuilder(engine.window, self._source_name) if engine.window is not None else None
        watched = engine.window.channels if engine.window is not None and config.channels else ()
        self._channels = Channels(watched, config.channels, health.fault) if watched else None
        self._view = View(config.view, not isinstance(config.source, ImagesSource), health.fault)
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
            if not self._queue.put(item):
                health.count("dropped_queue_full")
            if self.stop_reading.is_set():
                break

    def end(self) -> None:
        """No more items will come: let `work` finish what is queued."""
        self.stop_reading.set()
        self._queue.close()

    def work(self) -> None:
        """Unit: from the queue through the model into the spool, until the queue is closed and empty.

        Raises:
            Permanent: the model failed.
        """
        while items := self._queue.take():
            for item in self._checked(items):
                for whole in self._whole(item):
                    self._infer(whole)
        if messages := self._engine.task.end():
            self._tell(Result(None, messages=messages), None)

    def close(self) -> None:
        """Free the model."""
        self._engine.close()

    def _checked(self, items: Sequence[Frame | Reading]) -> Sequence[Frame | Reading]:
        """Note with readings what is wrong with them, where the configuration says what can be."""
        if self._channels is None:
            return items
        return self._channels.readings([item for item in items if isinstance(item, Reading)])

    def _whole(self, item: Frame | Reading) -> Iterable[Frame | Window]:
        """What the task is ready to be asked of: the frame's view, or the windows that a reading completes."""
        if self._builder is None:
            assert isinstance(item, Frame)  # noqa: S101 - check_pairing looked
            try:
                return (self._view(item),)
            except Rejected as error:
                self.health.fault("view_unfit", str(error))
                return ()
        assert isinstance(item, Reading)  # noqa: S101 - check_pairing looked
        windows = self._builder.add(item)
        if self._builder.faults:
            for fault, times in self._builder.faults.items():
                for _ in range(times):
                    self.health.fault(f"reading_{fault}", f"A reading of {self.name} was left out: {fault}.")
            self._builder.faults.clear()
        return windows

    def _infer(self, item: Frame | Window) -> None:
        """Ask the model, and hand on what it says. What cannot be used is counted and left out."""
        health = self.health
        try:
            age_ms = self._age_ms(item)
            result = self._engine.task(item)
            if result is None or (result.body is None and not result.messages):
                health.fault("window_incomplete", f"A window of {self.name} has holes, so there is no result.")
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
    return InputInfo(faults=item.faults) if isinstance(item, Window) else InputInfo(age_ms=age_ms)


def _window_info(window: Window) -> WindowInfo:
    return WindowInfo(
        start=rfc3339(window.start),
        end=rfc3339(window.end),
        step_s=window.step_s,
        n=len(window.values),
        coverage=round(window.coverage, 4),
        imputed=window.imputed,
    )
