"""A recording through the very pipeline that a device runs.

The same input and configuration give the same bytes each time: one thread, a clock that the input moves, and numbers
that begin at 1. Nothing is kept on disk but what is asked for, and nothing is sent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from lisiere.clock import ManualClock
from lisiere.config import Config, Importance, Source
from lisiere.errors import ConfigError
from lisiere.health import PipelineHealth
from lisiere.pipeline import open_pipeline
from lisiere.settings.sensors import CsvSource, JsonFields, JsonlSource
from lisiere.settings.sources import FrameSource, ImagesSource, VideoSource
from lisiere.sources import gives_frames
from lisiere.spool import Row
from lisiere.sync.envelope import seal
from lisiere.timeline import Stamp, Timeline
from lisiere.values import MessageKind

EPOCH = "replay"
GIVEN = ("results", "events", "scores")  # a counter a kind of message
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp"})
_VIDEOS = frozenset({".avi", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"})
_LINES = frozenset({".json", ".jsonl", ".ndjson"})


def replay(
    config: Config, index: int, file: Path, stream: BinaryIO, start: float, told: Callable[[float], None]
) -> dict[str, int]:
    """Run recorded input through a pipeline, and write what it gives; return its counters, and those of messages.

    Args:
        config: of the device.
        index: of its pipelines, which.
        file: what was recorded.
        stream: takes lines of JSON.
        start: time of the first frame, seconds since the epoch.
        told: told of the time of every frame and window.

    Raises:
        ConfigError: the input does not fit the pipeline.
        LisiereError: the input or the model cannot be used.
    """
    configured = config.pipelines[index]
    # More threads than one may add up in another order.
    pipeline_config = replace(configured, source=recorded(file, configured.source), threads=1)
    clock = ManualClock(start, "unknown", EPOCH)
    health = PipelineHealth(configured.name)
    sink = _Lines(stream, config.device, clock)
    pipeline = open_pipeline(pipeline_config, f"$.pipelines[{index}]", sink, clock, _Recorded(clock), health)

    def now(ts: float) -> None:
        clock.advance(ts - clock.now())
        told(ts)

    try:
        pipeline.run(now, _VirtualStop(clock))
    finally:
        pipeline.close()
    return health.snapshot()[2] | sink.written


def recorded(file: Path, configured: Source | None) -> Source:
    """Return the source that reads a recording, with what the pipeline's own source says of such input.

    Raises:
        ConfigError: it is of no kind that is known.
    """
    path, suffix = str(file.absolute()), file.suffix.lower()
    if not file.exists():
        raise ConfigError(f"There is no {file}.", "INPUT")
    if suffix == ".csv":
        own = configured if isinstance(configured, CsvSource) else CsvSource(path=path)
        return replace(own, path=path, speed=0.0)
    if suffix in _LINES:
        fields = {}
        if isinstance(configured, JsonFields):
            fields = {name: getattr(configured, name) for name in JsonFields.__struct_fields__}
        return JsonlSource(path=path, **fields)
    most = configured.max_megapixels if isinstance(configured, FrameSource) else 64.0
    if file.is_dir() or suffix in _IMAGES:
        fps = configured.fps if isinstance(configured, ImagesSource) else 0.0
        return ImagesSource(path=path, fps=fps or 1.0, max_megapixels=most)
    if suffix in _VIDEOS:
        return VideoSource(path=path, max_megapixels=most)
    known = {".csv"} | _LINES | _IMAGES | _VIDEOS
    raise ConfigError(
        f"{file} cannot be replayed: it is no folder and ends in none of {', '.join(sorted(known))}.",
        "INPUT",
    )


def choose(config: Config, source: Source, name: str | None) -> int:
    """Return the index of the pipeline that takes a recording: the one of that name, or the only one that can.

    Raises:
        ConfigError: there is none, or more than one.
    """
    names = [pipeline.name for pipeline in config.pipelines]
    if name is not None:
        if name not in names:
            raise ConfigError(f"No pipeline is called {name!r}; there are {', '.join(names)}.", "--pipeline")
        return names.index(name)
    frames = gives_frames(source)
    fit = [at for at, pipeline in enumerate(config.pipelines) if gives_frames(pipeline.source) == frames]
    if len(fit) == 1:
        return fit[0]
    what = "frames" if frames else "readings"
    if not fit:
        raise ConfigError(f"None of the pipelines {', '.join(names)} takes {what}.", "INPUT")
    raise ConfigError(f"Several pipelines take {what}: {', '.join(names[at] for at in fit)}. Name one.", "--pipeline")


class _VirtualStop(threading.Event):
    """What sources wait by: nothing but the virtual clock moves, and nobody ever stops them."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """Let virtual time pass at once."""
        self._clock.advance(timeout or 0.0)
        return False


class _Recorded(Timeline):
    """Stamps of a recording: they are what they are, and nobody knows how far they could be trusted."""

    def stamp(self, ts: float | None = None) -> Stamp:
        """Return a stamp of virtual now, or of `ts`."""
        return Stamp(self._clock.now() if ts is None else ts, "unknown", None)


class _Lines:
    """The sink of a replay: every message in its envelope, a line each, numbered from 1."""

    def __init__(self, stream: BinaryIO, device: str, clock: ManualClock) -> None:
        self._stream = stream
        self._device = device
        self._clock = clock
        self._seq = 0
        self.written = dict.fromkeys(GIVEN, 0)

    def append(
        self,
        pipeline: str,
        body: bytes,
        timeout: float | None = None,  # noqa: ARG002 - the spool's, and so are the next two
        importance: Importance = "result",  # noqa: ARG002
        ttl_s: float | None = None,  # noqa: ARG002
        kind: MessageKind = "result",
    ) -> None:
        """Write one message."""
        self._seq += 1
        self.written[f"{kind}s"] += 1
        now = self._clock.now()
        self._stream.write(seal(Row(self._seq, kind, pipeline, now, body), self._device, EPOCH, now, True) + b"\n")
