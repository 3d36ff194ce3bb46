"""A pipeline: source -> queue -> task -> spool, bounded, with every drop counted.

The source runs in one thread and the model in another; between them is a queue that either keeps the latest
items or makes the source wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, Literal, TypeVar

import msgspec
import numpy as np

from lisiere.backends import Opened, open_model
from lisiere.clock import Clock, rfc3339
from lisiere.config import Config, Importance, PipelineConfig
from lisiere.errors import ConfigError, Rejected, Retryable
from lisiere.health import PipelineHealth
from lisiere.models import Manifest, Package, open_package
from lisiere.models.manifest import Anomaly, Classification, Forecasting, ImageInput, WindowInput
from lisiere.sources import Source, gives_frames, is_live, open_source, source_name
from lisiere.spool import Spool
from lisiere.sync.envelope import Latency, ModelInfo, ResultBody, WindowInfo
from lisiere.tasks import Task, open_task
from lisiere.timeline import Timeline
from lisiere.values import AnomalyBody, Frame, Reading, Result, Window
from lisiere.windows import WindowBuilder

log = logging.getLogger(__name__)

Kind = Literal["classification", "forecasting", "anomaly"]
_KINDS: dict[type, Kind] = {
    Classification: "classification",
    Forecasting: "forecasting",
    Anomaly: "anomaly",
}

T = TypeVar("T")
_SPOOL_WAIT_S = 5.0  # how long a result waits for a disk that does not take it


class BoundedQueue(Generic[T]):
    """Hands items from one thread to another, at most `size` of them.

    Args:
        size: how many items may wait.
        policy: when full, `latest` drops the oldest, `all` makes `put` wait.
    """

    def __init__(self, size: int, policy: Literal["latest", "all"]) -> None:
        self._size = size
        self._latest = policy == "latest"
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add one item; return False when one was dropped for it (or it itself, once closed)."""
        kept = True
        with self._changed:
            if len(self._items) >= self._size and not self._closed:
                if self._latest:
                    self._items.popleft()
                    kept = False
                else:
                    self._changed.wait_for(lambda: len(self._items) < self._size or self._closed)
            if self._closed:
                return False
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify_all()
        return kept

    def take(self) -> list[T]:
        """Wait for items and return them: one for `latest`, so that the rest can still be dropped; else all.

        The list is empty once the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if self._latest and self._items:
                return [self._items.popleft()]
            taken = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Take no more; what is inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Pipeline:
    """One configured pipeline. `read` and `work` are its two units, for two threads.

    Args:
        config: what to run.
        source: where items come from.
        opened: the loaded model, and by which backend.
        spool: where results go.
    """

    def __init__(
        self,
        config: PipelineConfig,
        source: Source,
        package: Package,
        opened: Opened,
        spool: Spool,
        clock: Clock,
        timeline: Timeline,
        health: PipelineHealth,
    ) -> None:
        manifest = package.manifest
        self.name = config.name
        self.health = health
        self._source = source
        self._opened = opened
        self._task: Task = open_task(package, opened.model, clock)
        self._spool = spool
        self._timeline = timeline
        self._kind = _KINDS[type(manifest.task)]
        self._source_name = source_name(config.source)
        self._delivery = config.delivery
        self.model = ModelInfo(
            name=manifest.name,
            version=manifest.version,
            digest=package.digest,
            backend=opened.backend,
            backend_why=opened.why,
            target=manifest.build.target if manifest.build and opened.backend != "onnx" else "any",
        )
        self._builder = (
            WindowBuilder(manifest.input, self._source_name) if isinstance(manifest.input, WindowInput) else None
        )
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
            for item in items:
                for whole in self._whole(item):
                    self._infer(whole)

    def close(self) -> None:
        """Free the model."""
        self._opened.model.close()

    def _whole(self, item: Frame | Reading) -> Iterable[Frame | Window]:
        """What the task is ready to be asked of: the frame itself, or the windows that a reading completes."""
        if self._builder is None:
            assert isinstance(item, Frame)  # noqa: S101 - check_pairing looked
            return (item,)
        assert isinstance(item, Reading)  # noqa: S101 - check_pairing looked
        windows = self._builder.add(item)
        if self._builder.faults:
            for fault, times in self._builder.faults.items():
                for _ in range(times):
                    self.health.fault(f"reading_{fault}", f"A reading of {self.name} was left out: {fault}.")
            self._builder.faults.clear()
        return windows

    def _importance(self, result: Result) -> Importance:
        """What is anomalous is an alarm, unless the configuration says what the pipeline's results are worth."""
        anomalous = isinstance(result.body, AnomalyBody) and result.body.state == "anomalous"
        return self._delivery.importance or ("alarm" if anomalous else "result")

    def _infer(self, item: Frame | Window) -> None:
        """Ask the model, and hand the result to the spool. What cannot be used is counted and left out."""
        health = self.health
        try:
            result = self._task(item)
            if result is None:
                health.fault("window_incomplete", f"A window of {self.name} has holes, so there is no result.")
                return
            stamp = self._timeline.stamp(item.ts if isinstance(item, Frame) else None)
            window = _window_info(item) if isinstance(item, Window) else msgspec.UNSET
            body = msgspec.json.encode(
                ResultBody(
                    ts=rfc3339(stamp.ts),
                    ts_quality=stamp.quality,
                    clock=stamp.origin or msgspec.UNSET,
                    pipeline=self.name,
                    source=self._source_name,
                    task=self._kind,
                    model=self.model,
                    latency_ms=Latency(
                        preprocess=round(result.preprocess_ms, 3),
                        infer=round(result.infer_ms, 3),
                        postprocess=round(result.postprocess_ms, 3),
                    ),
                    window=window,
                    result=result.body,
                )
            )
            self._spool.append(self.name, body, _SPOOL_WAIT_S, self._importance(result), self._delivery.ttl_s)
        except Rejected as error:
            health.fault("input_rejected", str(error))
        except Retryable as error:
            health.fault("spool_unavailable", str(error))
        else:
            health.result(result.preprocess_ms + result.infer_ms + result.postprocess_ms)


def check_pairing(config: PipelineConfig, manifest: Manifest, path: str) -> tuple[str, ...]:
    """Check that the source yields what the model takes; return the channels that it must carry.

    Raises:
        ConfigError: at `path`, when a camera feeds a series model or a sensor an image model.
    """
    if manifest.task is None:
        raise ConfigError(
            f"The model {manifest.name!r} says nothing of what its input and output mean. Give it a model.yaml with "
            "`input` and `task`, and compile it again.",
            path,
        )
    if gives_frames(config.source) != isinstance(manifest.input, ImageInput):
        gives = "frames" if gives_frames(config.source) else "readings"
        raise ConfigError(
            f"The source gives {gives}, which the {_KINDS[type(manifest.task)]} model {manifest.name!r} cannot take.",
            path,
        )
    if config.output == "aws-dlr" and not isinstance(manifest.task, Classification):
        raise ConfigError(
            f"`output: aws-dlr` is for classification; {manifest.name!r} is a {_KINDS[type(manifest.task)]} model.",
            path.removesuffix(".source") + ".output",
        )
    return manifest.input.channels if isinstance(manifest.input, WindowInput) else ()


def check_models(config: Config) -> None:
    """Check every pipeline's model, and that its source fits it, without loading anything.

    Raises:
        ConfigError: a source does not fit its model.
        Rejected: a model must not be used.
    """
    for index, pipeline in enumerate(config.pipelines):
        check_pairing(pipeline, open_package(Path(pipeline.model)).manifest, f"$.pipelines[{index}].source")


def open_pipeline(
    config: PipelineConfig,
    path: str,
    spool: Spool,
    clock: Clock,
    timeline: Timeline,
    health: PipelineHealth,
) -> Pipeline:
    """Verify and load the model, warm it up by its first inference, and make the pipeline.

    Args:
        config: what to run.
        path: where the configuration has it, such as `$.pipelines[0]`.
        spool: where results go.
        clock: where time comes from.
        timeline: says how far stamps can be trusted.
        health: told of what happens.

    Raises:
        ConfigError: the source does not fit the model.
        Rejected, Permanent: the model must not or cannot be used.
    """
    package = open_package(Path(config.model))
    channels = check_pairing(config, package.manifest, f"{path}.source")
    opened = open_model(package, config.backend, config.threads)
    opened.model.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in opened.model.inputs})
    health.backend = opened.backend
    log.info("The pipeline %s runs %s by %s (%s).", config.name, package.manifest.name, opened.backend, opened.why)
    source = open_source(config.source, channels, clock, health.fault)
    return Pipeline(config, source, package, opened, spool, clock, timeline, health)


def _window_info(window: Window) -> WindowInfo:
    return WindowInfo(
        start=rfc3339(window.start),
        end=rfc3339(window.end),
        step_s=window.step_s,
        n=len(window.values),
        coverage=round(window.coverage, 4),
        imputed=window.imputed,
    )
