"""Sources: what yields Frames or Readings. One file a kind.

A kind's library (OpenCV for images) is imported when a source of that kind is opened, not before.
"""

from __future__ import annotations

from lisiere.clock import Clock
from lisiere.config import Source as SourceConfig
from lisiere.settings.sensors import (
    CsvSource,
    JsonlSource,
    ModbusSource,
    MqttSource,
    SerialSource,
    SocketSource,
    SysfsSource,
    SystemSource,
)
from lisiere.settings.sources import CameraSource, FrameSource, ImagesSource, VideoSource
from lisiere.sources.base import FaultReport, Source

__all__ = ["FaultReport", "Source", "gives_frames", "is_live", "is_recorded", "open_source", "source_name"]


def gives_frames(config: SourceConfig) -> bool:
    """Whether a source of this configuration yields Frames; the others yield Readings."""
    return isinstance(config, FrameSource)


def is_live(config: SourceConfig) -> bool:
    """Whether the source goes on whether or not anybody takes its items."""
    return isinstance(config, CameraSource)


def is_recorded(config: SourceConfig) -> bool:
    """Whether the source's stamps are those of a recording, so that the clock on the wall says nothing of them."""
    return isinstance(config, CsvSource | JsonlSource | VideoSource | ImagesSource)


def source_name(config: SourceConfig) -> str:
    """Return what results call a source: its kind, such as `camera`."""
    return str(config.__struct_config__.tag)


def open_source(config: SourceConfig, channels: tuple[str, ...], clock: Clock, fault: FaultReport) -> Source:
    """Make the source that a configuration describes; it opens when its items are asked for.

    Args:
        config: one of the source structs.
        channels: the channels that readings must carry, in order; empty for frames.
        clock: for stamps and pacing.
        fault: told of items that had to be left out.
    """
    name = source_name(config)
    match config:
        case CameraSource():
            return _open_camera(config, name, clock, fault)
        case VideoSource():
            from lisiere.sources.video import Video

            return Video(config, name, clock, fault)
        case ImagesSource():
            from lisiere.sources.images import Images

            return Images(config, name, clock, fault)
        case CsvSource():
            from lisiere.sources.csv_replay import CsvReplay

            return CsvReplay(config, name, channels, clock, fault)
        case JsonlSource():
            from lisiere.sources.jsonl_replay import JsonlReplay

            return JsonlReplay(config, name, channels, clock, fault)
        case SocketSource():
            from lisiere.sources.json_lines import JsonLines

            return JsonLines(config, name, channels, clock, fault)
        case MqttSource():
            from lisiere.sources.mqtt import MqttTopics

            return MqttTopics(config, name, channels, clock, fault)
        case ModbusSource():
            from lisiere.sources.modbus import Modbus

            return Modbus(config, name, channels, clock, fault)
        case SerialSource():
            from lisiere.sources.serial_lines import SerialLines

            return SerialLines(config, name, channels, clock, fault)
        case SysfsSource():
            from lisiere.sources.sysfs import Sysfs

            return Sysfs(config, name, channels, clock, fault)
        case SystemSource():
            from lisiere.sources.system import System

            return System(config, name, channels, clock, fault)


def _open_camera(config: CameraSource, name: str, clock: Clock, fault: FaultReport) -> Source:
    """By which way its frames come: a program, HTTP, or OpenCV."""
    if config.csi is not None or config.command is not None:
        from lisiere.sources.process import ProcessCamera

        return ProcessCamera(config, name, clock, fault)
    if config.url is not None and config.url.startswith("http"):
        from lisiere.sources.http_camera import HttpCamera

        return HttpCamera(config, name, clock, fault)
    from lisiere.sources.video import Camera

    return Camera(config, name, clock, fault)
