"""Settings of the sources that give readings: recorded files, sockets, MQTT, Modbus, serial lines, and this machine."""

from __future__ import annotations

import math
import os
import re
import sys
from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from lisiere.documents import Absolute, Part, Seconds
from lisiere.errors import ConfigError
from lisiere.settings.links import TlsConfig, check_host, check_secrets, resolve_secrets

# sun_path of sockaddr_un, without the byte that ends it.
UNIX_PATH_MAX_BYTES = 103 if sys.platform == "darwin" else 107

Interval = Annotated[float, Meta(ge=0.01, le=86_400)]
Baud = Annotated[int, Meta(ge=50, le=4_000_000)]
# The name of a file of the kernel's, without a folder.
_Sysfs = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$(?!\n)")]
_Host = Annotated[str, Meta(min_length=1, max_length=253)]
_Port = Annotated[int, Meta(ge=1, le=65_535)]


class CsvSource(Part, tag="csv", frozen=True, kw_only=True):
    """A CSV file with a header, replayed by its own time stamps.

    Attributes:
        time: the column of time stamps (ISO 8601, or seconds since 1970).
        columns: channel -> column, where the names differ.
        speed: how many recorded seconds pass in one; 0 means as fast as it can.
    """

    path: str
    time: str = "time"
    columns: dict[str, str] = field(default_factory=dict)
    speed: Annotated[float, Meta(ge=0)] = 0.0


class JsonFields(Part, frozen=True, kw_only=True):
    """What of a JSON object is a reading.

    Attributes:
        keys: channel -> key, where the names differ; `a.b` is the key `b` of the object under `a`.
        time: the key of the time stamp (ISO 8601, or a number since 1970).
        time_unit: of a time stamp that is a number.
    """

    keys: dict[str, str] = field(default_factory=dict)
    time: Annotated[str, Meta(min_length=1)] = "ts"
    time_unit: Literal["s", "ms"] = "s"


class JsonlSource(JsonFields, tag="jsonl", frozen=True, kw_only=True):
    """A file with a JSON object a line, replayed by its own time stamps; see `JsonFields`.

    Attributes:
        speed: how many recorded seconds pass in one; 0 means as fast as it can.
    """

    path: str
    speed: Annotated[float, Meta(ge=0)] = 0.0


class SocketSource(Part, tag="socket", frozen=True, kw_only=True):
    """Lines of JSON on a socket that the device listens on: `unix:/path` or `tcp:HOST:PORT`.

    A line is `{"ts": …, "<channel>": number}`, or with `step_s` and lists of numbers for many rows at once.
    """

    listen: Annotated[str, Meta(pattern=r"^(unix:.+|tcp:[^:]+:[0-9]{1,5})$(?!\n)")]


class MqttTopic(JsonFields, frozen=True, kw_only=True):
    """A subscription: what comes on a topic, as a JSON object (see `JsonFields`) or as a bare number.

    With `keys` it gives those channels alone; without, every channel of the pipeline under its own name.

    Attributes:
        topic: a topic, or a filter with `+` and `#`.
        channel: the payload is a bare number, which is this channel's. Then there are no `keys`.
        qos: the delivery that is asked for.
    """

    topic: Annotated[str, Meta(min_length=1, max_length=1024)]
    channel: str | None = None
    qos: Annotated[int, Meta(ge=0, le=2)] = 1


class MqttSource(Part, tag="mqtt", frozen=True, kw_only=True):
    """Topics of other devices, by MQTT 5 or 3.1.1, on a broker of the source's own.

    What comes without a time stamp is stamped when it arrives; a retained message without one is left out, since nobody
    knows how old it is.

    Attributes:
        port: 8883 with `tls` and 1883 without, unless given.
        client_id: unset: the broker gives one.
        password_file: as with the transport: a file that others cannot read (chmod 600).
        max_payload_kb: a message with a larger payload is left out.
    """

    host: _Host
    port: _Port | None = None
    topics: Annotated[tuple[MqttTopic, ...], Meta(min_length=1, max_length=64)]
    client_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    username: str | None = None
    password_file: str | None = None
    tls: TlsConfig | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=1200)] = 30
    connect_timeout_s: Seconds = 5.0
    max_payload_kb: Annotated[int, Meta(ge=1, le=1024)] = 64

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""
        return self.host, self.port or (8883 if self.tls is not None else 1883)


class ModbusValue(Part, frozen=True, kw_only=True):
    """Where a channel's number stands in a Modbus device: `number * scale + offset` is the channel's value.

    Attributes:
        unit: the device's address on the bus, or behind the gateway.
        address: of the first register as it goes over the wire, from 0: what manuals call 40001 is holding register 0.
        kind: which of the four tables it is in. Coils and discrete inputs give 0 or 1.
        number: how registers are to be read, for `holding` and `input`.
        words: which register of a 32- or 64-bit number comes first, the high (`big`) or the low one.
        bytes: which byte of a register comes first; all but a few devices have the standard's `big`.
    """

    unit: Annotated[int, Meta(ge=0, le=255)] = 1
    address: Annotated[int, Meta(ge=0, le=65_535)]
    kind: Literal["holding", "input", "coil", "discrete"] = "holding"
    number: Literal["int16", "uint16", "int32", "uint32", "float32", "float64"] = "uint16"
    words: Literal["big", "little"] = "big"
    bytes: Literal["big", "little"] = "big"
    scale: float = 1.0
    offset: float = 0.0


class SerialLine(Part, frozen=True, kw_only=True):
    """How a serial port is set; 9600 bit/s, 8 data bits, no parity, 1 stop bit unless told otherwise."""

    baud: Baud = 9600
    data_bits: Literal[7, 8] = 8
    parity: Literal["none", "even", "odd"] = "none"
    stop_bits: Literal[1, 2] = 1


class ModbusSource(Part, tag="modbus", frozen=True, kw_only=True):
    """Registers of Modbus devices, asked for every `interval_s`: by TCP (`host`), or RTU on a serial port (`device`).

    Attributes:
        device: a serial port, such as /dev/serial/by-id/…; `line` says how it is set.
        values: channel -> where it stands, for every channel of the pipeline.
        timeout_s: how long an answer is waited for.
    """

    host: _Host | None = None
    port: _Port = 502
    device: str | None = None
    line: SerialLine = field(default_factory=SerialLine)
    values: Annotated[dict[str, ModbusValue], Meta(min_length=1, max_length=256)]
    interval_s: Interval = 1.0
    timeout_s: Annotated[float, Meta(ge=0.01, le=60)] = 1.0


class SerialSource(JsonFields, tag="serial", frozen=True, kw_only=True):
    """Lines of text on a serial port: JSON objects (see `JsonFields`), unless `columns` or `pattern` is given.

    Attributes:
        device: such as /dev/serial/by-id/…, whose name stays the same when devices are plugged in.
        columns: the line has these channels in this order, with `separator` between; an empty name is skipped, and the
            name that `time` says is the time stamp.
        separator: between columns; blanks about it do not count. Unset: any number of blanks.
        pattern: a regular expression (Python's) whose named groups are channels, or the time stamp; lines that it does
            not match are counted and left out.
    """

    device: str
    line: SerialLine = field(default_factory=SerialLine)
    columns: tuple[str, ...] | None = None
    separator: Annotated[str, Meta(min_length=1, max_length=8)] | None = None
    pattern: Annotated[str, Meta(min_length=1, max_length=1000)] | None = None


class SysfsValue(Part, frozen=True, kw_only=True):
    """A file of a kernel driver's: its number, in whole units: °C, V, A, W, %, and what the driver has for the rest.

    Attributes:
        device: what the driver calls itself in the device's file `name`, which stays the same while numbers such as
            hwmon3 do not; `name@parent` tells two of one name apart, such as `lm75@1-0048`.
        file: such as `temp1_input` (hwmon), `in_voltage0_raw` (IIO: scale and offset are the driver's own).
    """

    device: Annotated[str, Meta(pattern=r"^[^/\x00@]{1,80}(@[^/\x00@]{1,80})?$(?!\n)")]
    file: _Sysfs


class SysfsSource(Part, tag="sysfs", frozen=True, kw_only=True):
    """Sensors that Linux has a driver for (hwmon and IIO), read every `interval_s`.

    Attributes:
        values: channel -> where it stands, for every channel of the pipeline.
        root: where the kernel's files are.
    """

    values: Annotated[dict[str, SysfsValue], Meta(min_length=1, max_length=256)]
    interval_s: Interval = 1.0
    root: str = "/sys"


Measure = Literal[
    "cpu_percent",
    "memory_percent",
    "memory_available_mb",
    "disk_percent",
    "disk_free_mb",
    "load_1",
    "load_5",
    "load_15",
    "temperature",
]


class SystemSource(Part, tag="system", frozen=True, kw_only=True):
    """This machine itself, by psutil, looked at every `interval_s`.

    Attributes:
        values: channel -> measure; a channel that is named as a measure need not be given. `temperature` is the hottest
            sensor's, in °C.
        disk: the folder whose file system the measures of the disk are about.
    """

    values: dict[str, Measure] = field(default_factory=dict)
    interval_s: Annotated[float, Meta(ge=0.1, le=86_400)] = 10.0
    disk: str = "/"


SensorSource = (
    CsvSource | JsonlSource | SocketSource | MqttSource | ModbusSource | SerialSource | SysfsSource | SystemSource
)


def resolve_sensor(source: SensorSource, absolute: Absolute, at: str) -> SensorSource:
    """Return a source whose paths are absolute; `at` is where the configuration has it."""
    match source:
        case CsvSource() | JsonlSource():
            return replace(source, path=absolute(source.path, f"{at}.path"))
        case SocketSource() if source.listen.startswith("unix:"):
            return replace(source, listen=f"unix:{absolute(source.listen.removeprefix('unix:'), f'{at}.listen')}")
        case MqttSource():
            password_file, tls = resolve_secrets(source.password_file, source.tls, absolute, at)
            return replace(source, password_file=password_file, tls=tls)
        case ModbusSource() | SerialSource() if source.device is not None:
            return replace(source, device=absolute(source.device, f"{at}.device"))
        case SysfsSource():
            return replace(source, root=absolute(source.root, f"{at}.root"))
        case SystemSource():
            return replace(source, disk=absolute(source.disk, f"{at}.disk"))
    return source


def check_sensor(source: SensorSource, at: str) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    match source:
        case SocketSource():
            _check_socket(source, at)
        case MqttSource():
            check_host(source.host, at)
            check_secrets(source.username, source.password_file, source.tls, at)
            for index, topic in enumerate(source.topics):
                _check_topic(topic, f"{at}.topics[{index}]")
                if any(topic.topic == other.topic for other in source.topics[:index]):
                    raise ConfigError(f"The topic {topic.topic!r} stands twice.", f"{at}.topics[{index}].topic")
        case ModbusSource():
            _check_modbus(source, at)
        case SerialSource():
            _check_serial(source, at)


# How many registers a number takes.
REGISTERS = {"int16": 1, "uint16": 1, "int32": 2, "uint32": 2, "float32": 2, "float64": 4}


def _check_socket(source: SocketSource, at: str) -> None:
    if source.listen.startswith("unix:"):
        size = len(os.fsencode(source.listen.removeprefix("unix:")))
        if size > UNIX_PATH_MAX_BYTES:
            raise ConfigError(
                f"The path of a Unix socket has at most {UNIX_PATH_MAX_BYTES} bytes, not {size}.", f"{at}.listen"
            )
    elif (port := int(source.listen.rpartition(":")[2])) > 65535:
        raise ConfigError(f"{port} is not a TCP port.", f"{at}.listen")


def _check_modbus(source: ModbusSource, at: str) -> None:
    if (source.host is None) == (source.device is None):
        raise ConfigError("Modbus has either a `host` (TCP) or a `device` (RTU).", at)
    if source.host is not None:
        check_host(source.host, at)
        if source.line != SerialLine():
            raise ConfigError("`line` sets a serial port, and Modbus by TCP (`host`) has none.", f"{at}.line")
    for channel, value in source.values.items():
        where = f"{at}.values.{channel}"
        if value.kind in ("coil", "discrete"):
            if (value.number, value.words, value.bytes) != ("uint16", "big", "big"):
                raise ConfigError(
                    "A coil or discrete input is 0 or 1: leave `number`, `words` and `bytes` away.", where
                )
        elif value.address + REGISTERS[value.number] > 65_536:
            raise ConfigError(f"A {value.number} at {value.address} ends beyond register 65535.", where)
        if not (math.isfinite(value.scale) and math.isfinite(value.offset) and value.scale):
            raise ConfigError("`scale` and `offset` are numbers, and `scale` is not 0.", where)


def _check_topic(topic: MqttTopic, at: str) -> None:
    levels = topic.topic.split("/")
    if (
        any(
            ("#" in level and (level != "#" or place != len(levels) - 1)) or ("+" in level and level != "+")
            for place, level in enumerate(levels)
        )
        or "\0" in topic.topic
    ):
        raise ConfigError(
            f"{topic.topic!r} is not a topic filter: `+` is a whole level, `#` the whole last one.", f"{at}.topic"
        )
    if topic.channel is not None and topic.keys:
        raise ConfigError("A topic gives a `channel` (a bare number) or `keys` (a JSON object), not both.", at)


def _check_serial(source: SerialSource, at: str) -> None:
    if source.columns is not None and source.pattern is not None:
        raise ConfigError("A line is told by `columns` or by a `pattern`, not by both.", at)
    if source.separator is not None and source.columns is None:
        raise ConfigError("A `separator` stands between `columns`: name them.", f"{at}.separator")
    if source.keys and (source.columns is not None or source.pattern is not None):
        raise ConfigError("`keys` are for JSON; `columns` and `pattern` name the channels themselves.", f"{at}.keys")
    named = [name for name in source.columns or () if name]
    if len(named) != len(set(named)):
        raise ConfigError("A column's name stands twice.", f"{at}.columns")
    if source.pattern is not None:
        try:
            groups = re.compile(source.pattern).groupindex
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f"It is not a regular expression: {error}.", f"{at}.pattern") from error
        if not groups:
            raise ConfigError(
                "Its named groups, such as (?P<level>[0-9.]+), are the channels; it has none.", f"{at}.pattern"
            )
