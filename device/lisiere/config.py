"""The configuration: one JSON-able document, validated once into frozen structs.

The same document stands in a YAML file, in a recipe's DefaultConfiguration and in an update. Scalars may come as
strings (nucleus lite sends "5" for 5). Every error names its path, and unknown keys are errors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from lisiere.documents import Part, Seconds, read_yaml
from lisiere.errors import ConfigError, Rejected
from lisiere.models.package import find_manifest
from lisiere.settings.anomaly import AlarmConfig, DetectorConfig, check_alarm
from lisiere.settings.channels import ChannelConfig, check_channels
from lisiere.settings.checks import ChecksConfig, TriggerConfig
from lisiere.settings.decision import DecisionConfig, check_decision
from lisiere.settings.forecast import ForecastConfig
from lisiere.settings.links import GreengrassConfig, MqttConfig, check_link, resolve_secrets
from lisiere.settings.sensors import MqttSource, SensorSource, SocketSource, check_sensor, resolve_sensor
from lisiere.settings.sources import FrameSource, check_frames, resolve_frames
from lisiere.settings.view import ViewConfig, check_view, resolve_view
from lisiere.settings.window import WindowConfig

TOPIC_MAX_BYTES = 256  # AWS IoT Core's limits
TOPIC_MAX_SLASHES = 7

# A level of a topic: no separator, no wildcard, no `$`. `$(?!\n)` is the very end; `$` lets a last newline pass.
PIPELINE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$(?!\n)"
Level = Annotated[str, Meta(pattern=PIPELINE_NAME)]
# A topic to publish on: no wildcard, no empty start, and AWS IoT Core's own topics are not for devices' results.
Topic = Annotated[str, Meta(pattern=r"^[^/+#$\x00-\x1f][^+#\x00-\x1f]*$(?!\n)", max_length=TOPIC_MAX_BYTES)]


Source = FrameSource | SensorSource


class QueueConfig(Part, frozen=True, kw_only=True):
    """Between source and model: `latest` drops the oldest when full, `all` makes the source wait.

    A live camera keeps the `latest` frame alone unless told otherwise, so that a slow model sees no old ones; every
    other source `all`, 64 frames or 1,024 readings of them.
    """

    policy: Literal["latest", "all"] | None = None
    size: Annotated[int, Meta(ge=1, le=100_000)] | None = None


Importance = Literal["alarm", "result", "sample", "metric"]


class DeliveryConfig(Part, frozen=True, kw_only=True):
    """What a pipeline's results are worth when there is not room or time for all.

    Attributes:
        importance: when the spool is full, `metric` goes first, then `sample`, `result` and `alarm`, the oldest first.
            Unset: `result`, and `alarm` for what an anomaly model finds anomalous.
        ttl_s: results that have waited for longer are not delivered any more; a gap record says which. Unset: never.
    """

    importance: Importance | None = None
    ttl_s: Annotated[float, Meta(gt=0, le=1e9)] | None = None


class PipelineConfig(Part, frozen=True, kw_only=True):
    """One source through one model to one topic.

    Attributes:
        model: a model's folder. A pipeline has either a model or a detector.
        detector: the built-in anomaly detector, for a source of readings.
        alarm: when the scores of an anomaly model, or of the detector, are alarms.
        view: what the model sees of a camera's frames.
        checks: how a camera's frames are judged, and what becomes of bad ones; by the defaults without it.
        trigger: which frames the model is asked of; all without it.
        channels: what is known of a sensor's channels, by name, to tell what cannot be right.
        window: how a sensor's readings become what the model takes.
        output: `lisiere` publishes the envelope on `result/…` and `backlog/…`; `aws-dlr` publishes the message of AWS's
            component aws.greengrass.DLRImageClassification instead, on `publish_topic`. Classification alone has it.
        publish_topic: of `aws-dlr` alone.
        decision: what is made of the scores of a classification or detection.
        forecast: of forecasting models alone; they have the defaults without it.
    """

    name: Level
    source: Source
    view: ViewConfig | None = None
    checks: ChecksConfig | None = None
    trigger: TriggerConfig | None = None
    channels: dict[str, ChannelConfig] = field(default_factory=dict)
    window: WindowConfig | None = None
    model: str | None = None
    detector: DetectorConfig | None = None
    backend: Literal["auto", "dlr", "graph", "onnx"] = "auto"
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    queue: QueueConfig = field(default_factory=QueueConfig)
    output: Literal["lisiere", "aws-dlr"] = "lisiere"
    publish_topic: Topic = "ml/dlr/image-classification"
    delivery: DeliveryConfig = field(default_factory=DeliveryConfig)
    decision: DecisionConfig | None = None
    alarm: AlarmConfig | None = None
    forecast: ForecastConfig | None = None


class SpoolConfig(Part, frozen=True, kw_only=True):
    """Where results wait on disk, and how many may. Beyond that the least important go, with a gap record.

    Attributes:
        linger_ms: how long the first result of a batch waits for others before the commit.
    """

    path: str = "spool"
    max_rows: Annotated[int, Meta(ge=100)] = 1_000_000
    max_mb: Annotated[float, Meta(ge=1, le=1e9)] = 512.0
    linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0


class Config(Part, frozen=True, kw_only=True):
    """The whole configuration. Without a `transport` results stay in the spool and nothing is sent.

    Attributes:
        retry_max_s: the longest wait before a camera or the broker is tried again; waits start at 1 s and double.
        stop_drain_s: how long a clean stop goes on delivering before it leaves the rest on disk.
    """

    device: Level
    pipelines: Annotated[tuple[PipelineConfig, ...], Meta(min_length=1, max_length=64)]
    transport: MqttConfig | GreengrassConfig | None = None
    topic_prefix: Annotated[str, Meta(pattern=r"^[^/+#$\x00-\x1f][^+#\x00-\x1f]*$(?!\n)")] = "lisiere"
    spool: SpoolConfig = field(default_factory=SpoolConfig)
    health_interval_s: Seconds = 30.0
    metrics_interval_s: Seconds = 30.0
    retry_max_s: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    stop_drain_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0


def load_config(file: Path) -> Config:
    """Read, validate and resolve a configuration file (YAML or JSON).

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        document = read_yaml(file)
    except Rejected as error:
        raise ConfigError(str(error)) from error
    return parse_config(document, file.resolve().parent)


def parse_config(document: Any, base: Path) -> Config:
    """Validate a document into a Config whose paths are absolute.

    Args:
        document: what YAML or JSON gave.
        base: the folder that relative paths start from.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    try:
        config = msgspec.convert(document, Config, strict=False)
    except msgspec.ValidationError as error:
        # The place comes last: "… - at `$.device`", or "… - at `key` in `$.pipelines[0].source.columns`".
        found = re.fullmatch(r"(.*?)(?: - at (?:`key` in )?`(\$[^`]*)`)?", str(error), re.S)
        assert found is not None  # noqa: S101 - the pattern takes any text
        raise ConfigError(f"{found[1]}.", found[2] or "$") from error
    except RecursionError as error:
        raise ConfigError("The document is nested too deeply.", "$") from error
    config = _resolve(config, base)
    _check_names(config)
    _check_clients(config)
    _check_topics(config)
    for index, pipeline in enumerate(config.pipelines):
        if isinstance(pipeline.source, FrameSource):
            check_frames(pipeline.source, f"$.pipelines[{index}].source")
            if pipeline.view is not None:
                check_view(pipeline.view, f"$.pipelines[{index}].view")
            if pipeline.channels:
                raise ConfigError("`channels` are of a source of readings.", f"$.pipelines[{index}].channels")
        else:
            check_channels(pipeline.channels, f"$.pipelines[{index}].channels")
            check_sensor(pipeline.source, f"$.pipelines[{index}].source")
            for name in ("view", "checks", "trigger", "decision"):
                if getattr(pipeline, name) is not None:
                    raise ConfigError(f"`{name}` is for a source of frames.", f"$.pipelines[{index}].{name}")
        if pipeline.decision is not None:
            check_decision(pipeline.decision, pipeline.trigger, f"$.pipelines[{index}].decision")
        _check_engine(pipeline, f"$.pipelines[{index}]")
    if config.transport is not None:
        check_link(config.transport)
    return config


def _check_engine(pipeline: PipelineConfig, at: str) -> None:
    """A pipeline has a model that is there, or a detector that fits its source."""
    if (pipeline.model is None) == (pipeline.detector is None):
        raise ConfigError("A pipeline has either a `model` or a `detector`.", f"{at}.model")
    if pipeline.model is not None:
        try:
            find_manifest(Path(pipeline.model))
        except Rejected as error:
            raise ConfigError(str(error), f"{at}.model") from error
    if pipeline.detector is not None:
        if isinstance(pipeline.source, FrameSource):
            raise ConfigError("The built-in detector watches readings; this source gives frames.", f"{at}.detector")
        if len(set(pipeline.detector.channels)) < len(pipeline.detector.channels):
            raise ConfigError("A channel is named twice.", f"{at}.detector.channels")
        unknown = sorted(set(pipeline.channels) - set(pipeline.detector.channels))
        if unknown:
            raise ConfigError("The detector does not watch this channel.", f"{at}.channels.{unknown[0]}")
        if pipeline.output != "lisiere":
            raise ConfigError("The detector classifies nothing: leave `output` away.", f"{at}.output")
        if pipeline.forecast is not None:
            raise ConfigError("The detector forecasts nothing: leave `forecast` away.", f"{at}.forecast")
        for name, otherwise in (("backend", "auto"), ("threads", 1)):
            if getattr(pipeline, name) != otherwise:
                raise ConfigError(f"`{name}` is for a model, and the detector is none.", f"{at}.{name}")
        window = pipeline.window or WindowConfig()
        given = {name: getattr(window, name) for name in ("channels", "length", "step_s", "stride", "max_gap")}
        for name, value in given.items():
            if value is not None:
                raise ConfigError("The detector takes each step by itself, of its own `step_s`.", f"{at}.window.{name}")
        if pipeline.alarm is not None:
            check_alarm(pipeline.alarm, pipeline.detector.step_s, f"{at}.alarm")


def _resolve(config: Config, base: Path) -> Config:
    """Make every path absolute, so that nothing later depends on the working directory."""

    def absolute(path: str, at: str) -> str:
        try:
            if not path or "\0" in path:
                raise ConfigError(f"{path!r} is not a path.", at)
            return str(base / Path(path).expanduser())
        except RuntimeError as error:  # ~somebody
            raise ConfigError(f"{path} cannot be resolved: {error}", at) from error

    replace = msgspec.structs.replace
    pipelines = []
    for index, pipeline in enumerate(config.pipelines):
        source, at = pipeline.source, f"$.pipelines[{index}]"
        if isinstance(source, FrameSource):
            source = resolve_frames(source, absolute, f"{at}.source")
        else:
            source = resolve_sensor(source, absolute, f"{at}.source")
        view = None if pipeline.view is None else resolve_view(pipeline.view, absolute, f"{at}.view")
        model = None if pipeline.model is None else absolute(pipeline.model, f"{at}.model")
        pipelines.append(replace(pipeline, source=source, view=view, model=model))
    transport = config.transport
    if isinstance(transport, MqttConfig):
        password_file, tls = resolve_secrets(transport.password_file, transport.tls, absolute, "$.transport")
        transport = replace(transport, password_file=password_file, tls=tls)
    spool = replace(config.spool, path=absolute(config.spool.path, "$.spool.path"))
    return replace(config, pipelines=tuple(pipelines), transport=transport, spool=spool)


def _check_names(config: Config) -> None:
    """Pipelines have names of their own, and sockets of their own."""
    names: set[str] = set()
    sockets: set[str] = set()
    for index, pipeline in enumerate(config.pipelines):
        if pipeline.name in names:
            raise ConfigError(f"Two pipelines are called {pipeline.name!r}.", f"$.pipelines[{index}].name")
        names.add(pipeline.name)
        if isinstance(pipeline.source, SocketSource):
            listen = pipeline.source.listen
            if listen in sockets and not listen.endswith(":0"):  # port 0 is a new port each time
                raise ConfigError(f"Two pipelines listen on {listen}.", f"$.pipelines[{index}].source.listen")
            sockets.add(listen)


def _check_clients(config: Config) -> None:
    """Of two clients with one id a broker keeps the newer, so that they would throw each other out for ever."""
    known: set[tuple[tuple[str, int], str]] = set()
    if isinstance(config.transport, MqttConfig):
        known.add((config.transport.address, config.transport.client_id or config.device))
    for index, pipeline in enumerate(config.pipelines):
        source = pipeline.source
        if not isinstance(source, MqttSource) or source.client_id is None:
            continue
        client = source.address, source.client_id
        if client in known:
            raise ConfigError(
                f"Two connections to {source.host} would have the client id {source.client_id!r}, and a broker allows "
                "one. Leave it away, and the broker gives one.",
                f"$.pipelines[{index}].source.client_id",
            )
        known.add(client)


def _check_topics(config: Config) -> None:
    """The longest topic of each pipeline must be within AWS IoT Core's limits."""
    for index, pipeline in enumerate(config.pipelines):
        zstd = config.transport is not None and config.transport.backlog_zstd
        topic = f"{config.topic_prefix}/v1/{config.device}/backlog/{pipeline.name}{'/zstd' if zstd else ''}"
        if len(topic.encode()) > TOPIC_MAX_BYTES:
            raise ConfigError(
                f"The topic {topic[:40]}… has {len(topic.encode())} bytes; {TOPIC_MAX_BYTES} are allowed.",
                f"$.pipelines[{index}].name",
            )
        if topic.count("/") > TOPIC_MAX_SLASHES:
            raise ConfigError(
                f"The topic {topic} has {topic.count('/')} slashes; {TOPIC_MAX_SLASHES} are allowed.",
                "$.topic_prefix",
            )
