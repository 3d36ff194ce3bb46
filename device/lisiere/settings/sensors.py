"""Settings of the sources that give readings."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from msgspec import Meta, field
from msgspec.structs import replace

from lisiere.documents import Absolute, Part
from lisiere.errors import ConfigError

# sun_path of sockaddr_un, without the byte that ends it.
UNIX_PATH_MAX_BYTES = 103 if sys.platform == "darwin" else 107


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


class SocketSource(Part, tag="socket", frozen=True, kw_only=True):
    """Lines of JSON on a socket that the device listens on: `unix:/path` or `tcp:HOST:PORT`.

    A line is `{"ts": …, "<channel>": number}`, or with `step_s` and lists of numbers for many rows at once.
    """

    listen: Annotated[str, Meta(pattern=r"^(unix:.+|tcp:[^:]+:[0-9]{1,5})$(?!\n)")]


SensorSource = CsvSource | SocketSource


def resolve_sensor(source: SensorSource, absolute: Absolute, at: str) -> SensorSource:
    """Return a source whose paths are absolute; `at` is where the configuration has it."""
    if isinstance(source, CsvSource):
        return replace(source, path=absolute(source.path, f"{at}.path"))
    if source.listen.startswith("unix:"):
        return replace(source, listen=f"unix:{absolute(source.listen.removeprefix('unix:'), f'{at}.listen')}")
    return source


def check_sensor(source: SensorSource, at: str) -> None:
    """Check what the types cannot say.

    Raises:
        ConfigError: a socket's path is too long, or its port is none.
    """
    if not isinstance(source, SocketSource):
        return
    if source.listen.startswith("unix:"):
        size = len(os.fsencode(source.listen.removeprefix("unix:")))
        if size > UNIX_PATH_MAX_BYTES:
            raise ConfigError(
                f"The path of a Unix socket has at most {UNIX_PATH_MAX_BYTES} bytes, not {size}.", f"{at}.listen"
            )
    elif (port := int(source.listen.rpartition(":")[2])) > 65535:
        raise ConfigError(f"{port} is not a TCP port.", f"{at}.listen")
