"""TLS to a real Mosquitto: mutual certificates work, and what should be refused is refused."""

from __future__ import annotations

import queue
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lisiere.config import MqttConfig, TlsConfig
from lisiere.errors import Permanent, Retryable
from lisiere.sync.transports import Acked, Event, Will
from lisiere.sync.transports.mqtt import MqttTransport
from support import require
from support.brokers import running_mosquitto

WILL = Will("t/status", b"offline")


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@dataclass
class Authority:
    """A certificate authority in a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", "/CN=test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
                "-keyout", self.path("ca.key"), "-out", self.path("ca.crt"))  # fmt: skip

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def issue(self, name: str, subject_alt_name: str) -> None:
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName={subject_alt_name}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.csr"))  # fmt: skip
        openssl("x509", "-req", "-in", self.path(f"{name}.csr"), "-CA", self.path("ca.crt"), "-CAkey",
                self.path("ca.key"), "-CAcreateserial", "-days", "2", "-extfile", str(extensions),
                "-out", self.path(f"{name}.crt"))  # fmt: skip


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require(shutil.which("openssl"), "openssl")
    authority = Authority(tmp_path_factory.mktemp("tls") / "good")
    authority.issue("broker", "IP:127.0.0.1")
    authority.issue("elsewhere", "DNS:elsewhere.example")
    authority.issue("device", "DNS:device")
    return authority


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require(shutil.which("openssl"), "openssl")
    stranger = Authority(tmp_path_factory.mktemp("tls") / "stranger")
    stranger.issue("device", "DNS:device")
    return stranger


def settings(authority: Authority, certificate: str = "broker") -> str:
    return "\n".join(
        (
            f"cafile {authority.path('ca.crt')}",
            f"certfile {authority.path(certificate + '.crt')}",
            f"keyfile {authority.path(certificate + '.key')}",
            "require_certificate true",
            "use_identity_as_username true",
        )
    )


@pytest.fixture(scope="module")
def port(authority: Authority) -> Iterator[int]:
    with running_mosquitto(settings(authority)) as port:
        yield port


def transport(port: int, ca: Authority, own: Authority) -> MqttTransport:
    tls = TlsConfig(ca=ca.path("ca.crt"), certificate=own.path("device.crt"), key=own.path("device.key"))
    return MqttTransport(MqttConfig(host="127.0.0.1", port=port, tls=tls, connect_timeout_s=5), "device")


def test_mutual_tls_delivers(port: int, authority: Authority) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    connection = transport(port, authority, authority)
    connection.connect(WILL, events.put)
    token = connection.publish("t/x", b"1")
    assert events.get(timeout=10) == Acked(token)
    connection.close()


def test_a_broker_of_another_authority_is_refused(port: int, authority: Authority, stranger: Authority) -> None:
    with pytest.raises(Retryable, match="TLS with the broker"):
        transport(port, stranger, authority).connect(WILL, lambda _event: None)


def test_a_broker_of_another_name_is_refused(authority: Authority) -> None:
    with (
        running_mosquitto(settings(authority, "elsewhere")) as port,
        pytest.raises(Retryable, match=r"TLS with the broker.*doesn't match|not valid for"),
    ):
        transport(port, authority, authority).connect(WILL, lambda _event: None)


def test_a_device_of_another_authority_is_not_let_in(port: int, authority: Authority, stranger: Authority) -> None:
    with pytest.raises(Retryable):
        transport(port, authority, stranger).connect(WILL, lambda _event: None)


def test_a_key_that_cannot_be_read_is_permanent(port: int, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "device.key").write_text("not a key")
    tls = TlsConfig(
        ca=authority.path("ca.crt"), certificate=authority.path("device.crt"), key=str(tmp_path / "device.key")
    )
    with pytest.raises(Permanent, match="credentials"):
        MqttTransport(MqttConfig(host="127.0.0.1", port=port, tls=tls), "device").connect(WILL, lambda _event: None)
