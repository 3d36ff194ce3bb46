"""Detection: a frame to the objects that it shows, each with a label, a score and a box."""

from __future__ import annotations

import math

import numpy as np
from msgspec import UNSET, UnsetType

from lisiere.backends import Model
from lisiere.clock import Clock
from lisiere.models import Package
from lisiere.models.manifest import Detection, ImageInput, SsdHead, SsdRawHead
from lisiere.settings.decision import DecisionConfig
from lisiere.tasks.boxes import suppress
from lisiere.tasks.heads import HeadReader, read_priors
from lisiere.tasks.preprocess import ImagePreprocess
from lisiere.tasks.presence import Events
from lisiere.values import DetectedObject, DetectionBody, EventBody, Frame, Result, ScoreBody

_IOU_THRESHOLD = 0.45


class DetectionTask:
    """Preprocess, infer, decode, suppress, and put the boxes back where they are in the frame."""

    def __init__(self, package: Package, model: Model, clock: Clock, decision: DecisionConfig | None = None) -> None:
        manifest, task = package.manifest, package.manifest.task
        assert isinstance(task, Detection)  # noqa: S101 - open_task looked
        assert isinstance(manifest.input, ImageInput)  # noqa: S101 - open_package looked
        decision = decision or DecisionConfig()
        self._preprocess = ImagePreprocess(manifest.input, manifest.inputs[0])
        self._labels = package.labels()
        priors = None
        if isinstance(task.head, SsdRawHead):
            count = next(spec.shape[1] for spec in manifest.outputs if spec.name == task.head.boxes)
            priors = read_priors(package.file(task.head.priors), count)
        self._read = HeadReader(task, len(self._labels), self._preprocess.size, priors)
        self._threshold = task.score_threshold if decision.threshold is None else decision.threshold
        # A head that has suppressed already is asked to do no more, but for too many.
        self._overlap = task.iou_threshold or (math.inf if isinstance(task.head, SsdHead) else _IOU_THRESHOLD)
        self._by_class = task.suppress == "class"
        self._top = decision.top or task.top
        self._events = Events(decision.events, self._labels, exclusive=False) if decision.events is not None else None
        self._model = model
        self._input = manifest.inputs[0].name
        self._clock = clock

    def __call__(self, item: Frame) -> Result:
        """Detect in one frame; see `Task`."""
        moment = self._clock.monotonic
        started = moment()
        tensor = self._preprocess(item.image)
        prepared = moment()
        outputs = self._model.run({self._input: tensor})
        inferred = moment()
        found = self._read(outputs, self._threshold)
        height, width = item.image.shape[:2]
        boxes = self._preprocess.placement(item.image).undo(found.boxes)
        # To hundredths of a pixel, and to what is inside the frame; what has no area there is left out.
        boxes = np.clip(boxes, 0, [width, height, width, height]).round(2)
        there = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        boxes, scores, classes = boxes[there], found.scores[there], found.classes[there]
        kept = suppress(boxes, scores, classes, self._overlap, self._top, self._by_class)
        objects = [
            DetectedObject(
                label=self._labels[classes[at]],
                score=round(float(scores[at]), 6),
                box=(left, top, round(right - left, 2), round(bottom - top, 2)),
            )
            for at, (left, top, right, bottom) in zip(kept, boxes[kept].tolist(), strict=True)
        ]
        messages: tuple[EventBody, ...] = ()
        steady: list[str] | UnsetType = UNSET
        if self._events is not None:
            best = np.zeros(len(self._labels))
            np.maximum.at(best, classes[kept], 1.0 if self._events.votes else scores[kept])
            messages = self._events.add(item.ts, best)
            steady = self._events.present
        body = DetectionBody(objects=objects, width=width, height=height, steady=steady)
        spent = (prepared - started) * 1e3, (inferred - prepared) * 1e3, (moment() - inferred) * 1e3
        return Result(body, *spent, messages)

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """Return the ends of the events that are open; see `Task`."""
        return () if self._events is None else self._events.end()
