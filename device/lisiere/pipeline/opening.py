"""Opening a pipeline: its model verified, loaded and warm, and a source that fits it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from lisiere import __version__
from lisiere.backends import Opened, open_model
from lisiere.clock import Clock
from lisiere.config import Config, PipelineConfig
from lisiere.errors import ConfigError
from lisiere.health import PipelineHealth
from lisiere.models import Manifest, Package, open_package
from lisiere.models.manifest import Anomaly, Classification, Detection, Forecasting, ImageInput, WindowInput
from lisiere.pipeline.pipeline import Engine, Pipeline, Sink
from lisiere.settings.anomaly import AlarmConfig, DetectorConfig, check_alarm
from lisiere.settings.decision import DecisionConfig
from lisiere.settings.forecast import ForecastConfig
from lisiere.settings.window import WindowConfig
from lisiere.sources import gives_frames, open_source
from lisiere.sync.envelope import ModelInfo, TaskKind
from lisiere.tasks import check_decision, open_task
from lisiere.tasks.alarmed import AlarmedTask
from lisiere.tasks.scoring import season_rows
from lisiere.tasks.streaming import StreamingTask, grid
from lisiere.timeline import Timeline
from lisiere.view import read_mask
from lisiere.windows import window_input

log = logging.getLogger(__name__)

_KINDS: dict[type, TaskKind] = {
    Classification: "classification",
    Detection: "detection",
    Forecasting: "forecasting",
    Anomaly: "anomaly",
}


def check_pairing(config: PipelineConfig, manifest: Manifest, path: str) -> tuple[str, ...]:
    """Check that the source yields what the model takes; return the channels that it must carry.

    Raises:
        ConfigError: at `path`, when a camera feeds a series model or a sensor an image model; at a channel, when the
            model takes none of that name, or in another unit; at `window`, when it takes other windows.
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
    base = path.removesuffix(".source")
    channels: tuple[str, ...] = ()
    if isinstance(manifest.input, WindowInput):
        channels = window_input(config.window or WindowConfig(), manifest.input, f"{base}.window").channels
    elif config.window is not None:
        raise ConfigError(f"The model {manifest.name!r} takes frames, and `window` is for readings.", f"{base}.window")
    _check_channels(config, manifest, channels, f"{base}.channels")
    if config.forecast is not None:
        _check_forecast(config.forecast, manifest, f"{base}.forecast")
    return channels


def _check_channels(config: PipelineConfig, manifest: Manifest, channels: tuple[str, ...], at: str) -> None:
    """What is said of channels must be of those that the model takes, and in its unit where it tells one."""
    task = manifest.task
    for name, channel in config.channels.items():
        if name not in channels:
            known = ", ".join(channels)
            raise ConfigError(f"The model {manifest.name!r} does not take this channel, but {known}.", f"{at}.{name}")
        unit = task.unit if isinstance(task, Forecasting) and name in task.names else ""
        if channel.unit and unit and channel.unit != unit:
            why = f"The model {manifest.name!r} takes this channel in {unit}, not in {channel.unit}."
            raise ConfigError(why, f"{at}.{name}.unit")


def _check_forecast(how: ForecastConfig, manifest: Manifest, path: str) -> None:
    if not isinstance(manifest.task, Forecasting) or not isinstance(manifest.input, WindowInput):
        raise ConfigError(f"`forecast` is for forecasting models, which {manifest.name!r} is not.", path)
    try:
        season_rows(manifest.input.step_s, manifest.input.length, how.season_s)
    except ValueError as error:
        raise ConfigError(f"The model {manifest.name!r} cannot be compared: {error}.", f"{path}.season_s") from error


def _check_alarm(config: PipelineConfig, manifest: Manifest, path: str) -> float:
    """An alarm is of an anomaly model; return the seconds between its results."""
    how = manifest.input
    if config.alarm is None or not isinstance(manifest.task, Anomaly) or not isinstance(how, WindowInput):
        raise ConfigError(f"`alarm` is for anomaly models, which {manifest.name!r} is not.", path)
    stride = config.window.stride if config.window is not None and config.window.stride else how.stride
    check_alarm(config.alarm, stride * how.step_s, path)
    return stride * how.step_s


def check_models(config: Config) -> None:
    """Check every pipeline's model and mask, and that its source fits it, without loading anything.

    Raises:
        ConfigError: a source does not fit its model.
        Rejected: a model must not be used, or a view's mask is no image.
    """
    for index, pipeline in enumerate(config.pipelines):
        if pipeline.model is None:
            continue
        package, path = open_package(Path(pipeline.model)), f"$.pipelines[{index}]"
        check_pairing(pipeline, package.manifest, f"{path}.source")
        if pipeline.decision is not None:
            check_decision(package, pipeline.decision, f"{path}.decision")
        if pipeline.alarm is not None:
            _check_alarm(pipeline, package.manifest, f"{path}.alarm")
        if pipeline.view is not None and isinstance(pipeline.view.mask, str):
            read_mask(Path(pipeline.view.mask))


def model_engine(
    package: Package,
    opened: Opened,
    clock: Clock,
    decision: DecisionConfig | None = None,
    forecast: ForecastConfig | None = None,
) -> Engine:
    """Return what infers by a loaded model.

    Raises:
        Rejected: the model's manifest declares no task.
    """
    manifest = package.manifest
    task = open_task(package, opened.model, clock, decision, forecast)
    info = ModelInfo(
        name=manifest.name,
        version=manifest.version,
        digest=package.digest,
        backend=opened.backend,
        backend_why=opened.why,
        target=manifest.build.target if manifest.build and opened.backend != "onnx" else "any",
    )
    window = manifest.input if isinstance(manifest.input, WindowInput) else None
    return Engine(task, _KINDS[type(manifest.task)], info, window, opened.model.close)


def _as_configured(package: Package, config: PipelineConfig, path: str) -> Package:
    """The package with the windows that the configuration chooses: a forecast is judged by how often it is made."""
    how = package.manifest.input
    if config.window is None or not isinstance(how, WindowInput):
        return package
    how = window_input(config.window, how, f"{path}.window")
    return replace(package, manifest=msgspec.structs.replace(package.manifest, input=how))


def detector_engine(detector: DetectorConfig, alarm: AlarmConfig | None, clock: Clock) -> Engine:
    """Return what watches readings without a model; results name it `builtin`."""
    info = ModelInfo(
        name="builtin",
        version=__version__,
        digest="",
        backend="builtin",
        backend_why="it needs no model",
        target="any",
    )
    return Engine(StreamingTask(detector, alarm, clock), "anomaly", info, grid(detector), lambda: None)


def open_pipeline(
    config: PipelineConfig,
    path: str,
    spool: Sink,
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
    if config.detector is not None:
        engine = detector_engine(config.detector, config.alarm, clock)
        health.backend = engine.model.backend
        source = open_source(config.source, config.detector.channels, clock, health.fault)
        return Pipeline(config, source, engine, spool, timeline, health)
    assert config.model is not None  # noqa: S101 - parse_config looked
    package = open_package(Path(config.model))
    channels = check_pairing(config, package.manifest, f"{path}.source")
    if config.decision is not None:
        check_decision(package, config.decision, f"{path}.decision")
    opened = open_model(package, config.backend, config.threads)
    opened.model.run({spec.name: np.zeros(spec.shape, spec.dtype) for spec in opened.model.inputs})
    health.backend = opened.backend
    log.info("The pipeline %s runs %s by %s (%s).", config.name, package.manifest.name, opened.backend, opened.why)
    source = open_source(config.source, channels, clock, health.fault)
    engine = model_engine(_as_configured(package, config, path), opened, clock, config.decision, config.forecast)
    if config.alarm is not None:
        step_s = _check_alarm(config, package.manifest, f"{path}.alarm")
        engine = replace(engine, task=AlarmedTask(engine.task, config.alarm, step_s))
    return Pipeline(config, source, engine, spool, timeline, health)
