"""Links: what a configuration says of the way out, which is a broker or the Greengrass nucleus."""

from __future__ import annotations

import importlib.util
import re
import stat
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from lisiere.documents import Absolute, Part, Seconds
from lisiere.errors import ConfigError

TLS_FILES = ("ca", "certificate", "key", "crl")


class TlsConfig(Part, frozen=True, kw_only=True):
    """TLS 1.2 or newer to the broker, whose name is verified.

    Attributes:
        ca: the authorities that may have signed the broker's certificate; the system's unless given.
        certificate: the device's own, with `key`, for mutual TLS. Others must not be able to read the key (chmod 600).
        crl: certificates that the authority has revoked (PEM); a broker with one of them is refused.
        alpn: the protocol to ask for. Unset: `x-amzn-mqtt-ca` on port 443, which AWS IoT Core wants there.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    crl: str | None = None
    alpn: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class LinkConfig(Part, frozen=True, kw_only=True):
    """What all transports share: how fast, in which order, and until when a result is kept.

    Attributes:
        window: how many unacknowledged messages may be under way.
        ack_timeout_s: an acknowledgement that takes longer means that the connection is dead.
        publishes_per_s: messages in any one second at most; AWS IoT Core discards what exceeds 100. 0 is no limit, for
            a broker of one's own.
        kib_per_s: KiB of messages in any one second at most; AWS IoT Core takes 512. 0 is no limit.
        backlog_share: of the messages, for what waited out an outage while live results come, too.
        backlog_batch_kb: results of the backlog go as one message (`lisiere.batch/1`) of up to so many kB; 0 is one by
            one. Subscribers must know that form.
        backlog_zstd: such messages are compressed and go to `backlog/<pipeline>/zstd`. Needs the extra `zstd`.
        consumer_ack: a result is kept until a consumer acknowledges it by `cmd/ack`, and not only until the broker, or
            the nucleus, has it.
        consumer_ack_s: it is sent again when that takes longer.
    """

    window: Annotated[int, Meta(ge=1, le=100)] = 16
    ack_timeout_s: Seconds = 20.0
    publishes_per_s: Annotated[float, Meta(ge=0, le=10_000)] = 80.0
    kib_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 400.0
    backlog_share: Annotated[float, Meta(ge=0.01, le=0.9)] = 0.25
    backlog_batch_kb: Annotated[float, Meta(ge=0, le=128)] = 0.0
    backlog_zstd: bool = False
    consumer_ack: bool = False
    consumer_ack_s: Seconds = 300.0


class MqttConfig(LinkConfig, tag="mqtt", frozen=True, kw_only=True):
    """Direct MQTT to a broker; what all transports share stands at `LinkConfig`.

    Attributes:
        port: 8883 with `tls` and 1883 without, unless given.
        protocol: `auto` is 5 where the broker speaks it, and 3.1.1 otherwise.
        password_file: the file that holds the password; passwords stay out of configurations. Others must not be able
            to read it (chmod 600).
    """

    host: Annotated[str, Meta(min_length=1)]
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    protocol: Literal["auto", "3.1.1", 5] = "auto"
    client_id: Annotated[str, Meta(max_length=128)] | None = None
    username: str | None = None
    password_file: str | None = None
    tls: TlsConfig | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=1200)] = 30
    connect_timeout_s: Seconds = 5.0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""
        return self.host, self.port or (8883 if self.tls is not None else 1883)


class GreengrassConfig(LinkConfig, tag="greengrass", frozen=True, kw_only=True):
    """Through the Greengrass nucleus, by `lisiere run --greengrass` alone; see `LinkConfig`, too.

    All components share the nucleus's connection, and so what AWS IoT Core allows on it. Nucleus lite refuses the
    eleventh message that is under way of all its components.

    Attributes:
        max_bytes: a result whose message is larger is set aside with a gap record. Unset: 131,072, which is AWS IoT
            Core's limit, and with nucleus lite what fits into 10,000 bytes once it is base64 in JSON.
        reconnect_s: how long a lost nucleus is waited for, before the component leaves to be started anew.
        publish_locally: whether results also go to the device's other components, by PublishToTopic on their topics.
    """

    window: Annotated[int, Meta(ge=1, le=100)] = 8
    max_bytes: Annotated[int, Meta(ge=1000, le=131_072)] | None = None
    reconnect_s: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    publish_locally: bool = False


def check_link(transport: MqttConfig | GreengrassConfig) -> None:
    """Check what a struct cannot say.

    Raises:
        ConfigError: with the path of what is wrong.
    """
    if transport.backlog_zstd and not transport.backlog_batch_kb:
        raise ConfigError("`backlog_zstd` compresses batches: give `backlog_batch_kb`.", "$.transport.backlog_zstd")
    if transport.backlog_zstd and importlib.util.find_spec("zstandard") is None:
        raise ConfigError("zstandard is not installed: pip install 'lisiere[zstd]'.", "$.transport.backlog_zstd")
    if isinstance(transport, MqttConfig):
        check_host(transport.host, "$.transport")
        check_secrets(transport.username, transport.password_file, transport.tls, "$.transport")


def check_host(host: str, at: str) -> None:
    """Check that a host can be looked up at all; `at` is what it is a part of.

    Raises:
        ConfigError: it is no name and no address.
    """
    try:
        good = bool(host.encode("idna")) and not re.search(r"[\s/\x00-\x1f\x7f]", host)
    except UnicodeError:
        good = False
    if not good:
        raise ConfigError(f"{host[:80]!r} is neither a host's name nor an address.", f"{at}.host")


def resolve_secrets(
    password_file: str | None, tls: TlsConfig | None, absolute: Absolute, at: str
) -> tuple[str | None, TlsConfig | None]:
    """Return both with paths that are absolute; `at` is where the configuration has them."""
    if password_file is not None:
        password_file = absolute(password_file, f"{at}.password_file")
    if tls is not None:
        given = {key: getattr(tls, key) for key in TLS_FILES}
        tls = replace(
            tls, **{key: absolute(path, f"{at}.tls.{key}") for key, path in given.items() if path is not None}
        )
    return password_file, tls


def check_secrets(username: str | None, password_file: str | None, tls: TlsConfig | None, at: str) -> None:
    """Check that the files are there and that secrets are secret.

    Raises:
        ConfigError: with the path of what is wrong, below `at`.
    """
    if password_file is not None and (why := exposed(Path(password_file))):
        raise ConfigError(why, f"{at}.password_file")
    if password_file is not None and username is None:
        raise ConfigError("A password goes with a `username`; without one the broker is given neither.", at)
    if tls is None:
        return
    if (tls.certificate is None) != (tls.key is None):
        raise ConfigError("`certificate` and `key` go together.", f"{at}.tls")
    for key in TLS_FILES:
        path = getattr(tls, key)
        if path is not None and not Path(path).is_file():
            raise ConfigError(f"There is no file {path}.", f"{at}.tls.{key}")
    if tls.key is not None and (why := exposed(Path(tls.key))):
        raise ConfigError(why, f"{at}.tls.key")


def exposed(file: Path) -> str:
    """Say why a secret in a file is none, or nothing. A file that is not there is not exposed.

    Its owner alone may have access; one that belongs to root may be read by its group, as libpq has it, so that a
    component without privileges can use a key that it cannot change.
    """
    try:
        found = file.stat()
    except OSError:
        return ""
    allowed = 0o740 if found.st_uid == 0 else 0o700
    if not stat.S_IMODE(found.st_mode) & ~allowed:
        return ""
    return f"Others can read {file}, and it is a secret: chmod 600 {file}."
