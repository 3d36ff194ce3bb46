"""TLS to a real Mosquitto: mutual certificates work, and what should be refused is refused."""

from __future__ import annotations

import contextlib
import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lisiere.brokers import tls_context
from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.links import MqttConfig, TlsConfig
from lisiere.settings.sensors import MqttSource, MqttTopic
from lisiere.sources.mqtt import MqttTopics
from lisiere.subscriber import Result, Subscriber
from lisiere.sync.transports import Acked, Will
from lisiere.sync.transports.mqtt import MqttTransport
from lisiere.values import Reading
from support import require
from support.brokers import free_port, running_mosquitto
from support.events import Events
from support.wire import Envelopes

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

    def issue(self, name: str, subject_alt_name: str, days: int = 2) -> None:
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName={subject_alt_name}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                "-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.csr"))  # fmt: skip
        openssl("x509", "-req", "-in", self.path(f"{name}.csr"), "-CA", self.path("ca.crt"), "-CAkey",
                self.path("ca.key"), "-CAcreateserial", "-days", str(days), "-extfile", str(extensions),
                "-out", self.path(f"{name}.crt"))  # fmt: skip

    def revoke(self, *names: str) -> None:
        """Write the list of revoked certificates, crl.pem."""
        (self.folder / "index.txt").touch()
        (self.folder / "ca.cnf").write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={self.path('index.txt')}\ndefault_md=sha256\n"
        )
        own = ("-config", self.path("ca.cnf"), "-cert", self.path("ca.crt"), "-keyfile", self.path("ca.key"))
        for name in names:
            openssl("ca", *own, "-revoke", self.path(f"{name}.crt"))
        openssl("ca", *own, "-gencrl", "-crldays", "2", "-out", self.path("crl.pem"))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require(shutil.which("openssl"), "openssl")
    authority = Authority(tmp_path_factory.mktemp("tls") / "good")
    authority.issue("broker", "IP:127.0.0.1")
    authority.issue("elsewhere", "DNS:elsewhere.example")
    authority.issue("device", "DNS:device")
    authority.issue("expired", "IP:127.0.0.1", days=-1)
    authority.issue("revoked", "IP:127.0.0.1")
    authority.revoke("revoked")
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


def transport(port: int, ca: Authority, own: Authority, certificate: str = "device", **more: Any) -> MqttTransport:
    tls = TlsConfig(
        ca=ca.path("ca.crt"), certificate=own.path(f"{certificate}.crt"), key=own.path(f"{certificate}.key"), **more
    )
    return MqttTransport(MqttConfig(host="127.0.0.1", port=port, tls=tls, connect_timeout_s=5), "device")


def test_mutual_tls_delivers(port: int, authority: Authority) -> None:
    connection = transport(port, authority, authority)
    events = Events(connection)
    connection.connect(WILL, events.put)
    token = connection.publish("t/x", b"1")
    assert events.get(timeout=10) == Acked(token)
    connection.close()


def test_sensors_come_by_mutual_tls_and_not_from_a_broker_of_another_authority(
    port: int, authority: Authority, stranger: Authority
) -> None:
    def topics(ca: Authority) -> Iterator[Reading]:
        tls = TlsConfig(
            ca=ca.path("ca.crt"), certificate=authority.path("device.crt"), key=authority.path("device.key")
        )
        config = MqttSource(host="127.0.0.1", port=port, tls=tls, topics=(MqttTopic(topic="t/level", channel="level"),))
        return MqttTopics(config, "mqtt", ("level",), ManualClock(5.0), lambda *_: None).items(threading.Event())

    with pytest.raises(Retryable, match="TLS with the broker"):
        next(topics(stranger))
    connection = transport(port, authority, authority)
    connection.connect(WILL, lambda _event: None)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(next, topics(authority))
        while not reading.done():  # what comes before it has subscribed goes to nobody
            connection.publish("t/level", b"7")
            connection.wait(0.05)
            with contextlib.suppress(NotYet):
                reading.result(0.05)
    connection.close()
    assert reading.result() == Reading(5.0, (7.0,), "mqtt")


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
    (tmp_path / "device.key").chmod(0o600)
    tls = TlsConfig(
        ca=authority.path("ca.crt"), certificate=authority.path("device.crt"), key=str(tmp_path / "device.key")
    )
    with pytest.raises(Permanent, match="credentials"):
        MqttTransport(MqttConfig(host="127.0.0.1", port=port, tls=tls), "device").connect(WILL, lambda _event: None)


@pytest.mark.parametrize("certificate", ["expired", "revoked"])
def test_a_broker_whose_certificate_is_not_good_any_more_is_refused(authority: Authority, certificate: str) -> None:
    with (
        running_mosquitto(settings(authority, certificate)) as port,
        pytest.raises(Retryable, match=f"TLS with the broker.*certificate.* {certificate}"),
    ):
        transport(port, authority, authority, crl=authority.path("crl.pem")).connect(WILL, lambda _event: None)


def test_the_list_of_revoked_certificates_lets_the_others_in(port: int, authority: Authority) -> None:
    connection = transport(port, authority, authority, crl=authority.path("crl.pem"))
    connection.connect(WILL, lambda _event: None)
    connection.close()


@pytest.mark.parametrize("certificate", ["expired", "revoked"])
def test_a_device_whose_certificate_is_not_good_any_more_is_not_let_in(authority: Authority, certificate: str) -> None:
    checking = f"{settings(authority)}\ncrlfile {authority.path('crl.pem')}"
    with running_mosquitto(checking) as port:
        with pytest.raises(Retryable):
            transport(port, authority, authority, certificate).connect(WILL, lambda _event: None)
        connection = transport(port, authority, authority)
        connection.connect(WILL, lambda _event: None)
        connection.close()


def test_a_broker_that_has_signed_its_certificate_itself_is_refused(authority: Authority, stranger: Authority) -> None:
    own = "\n".join(
        (f"certfile {stranger.path('ca.crt')}", f"keyfile {stranger.path('ca.key')}", "allow_anonymous true")
    )
    with (
        running_mosquitto(own) as port,
        pytest.raises(Retryable, match=r"TLS with the broker.*certificate verify failed"),
    ):
        transport(port, authority, authority).connect(WILL, lambda _event: None)


class Listening:
    """A TLS server that shakes hands once, and remembers what was agreed on."""

    def __init__(self, authority: Authority, newest: ssl.TLSVersion) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.1 is the point
            self.context.minimum_version = ssl.TLSVersion.TLSv1
            self.context.maximum_version = newest
        self.context.set_ciphers("ALL:@SECLEVEL=0")
        self.context.load_cert_chain(authority.path("broker.crt"), authority.path("broker.key"))
        self.context.set_alpn_protocols(["x-amzn-mqtt-ca", "mqtt"])
        self.agreed: tuple[str | None, str | None] | None = None
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        link, _ = self.server.accept()
        link.settimeout(10)
        with link, contextlib.suppress(OSError), self.context.wrap_socket(link, server_side=True) as secure:
            self.agreed = secure.version(), secure.selected_alpn_protocol()

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self.server.close()


def shake_hands(port: int, context: ssl.SSLContext) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        context.wrap_socket(link, server_hostname="127.0.0.1").close()


def test_a_broker_that_speaks_tls_1_1_only_is_refused(authority: Authority) -> None:
    with Listening(authority, ssl.TLSVersion.TLSv1_1) as old, pytest.raises(Retryable, match="TLS with the broker"):
        transport(old.port, authority, authority).connect(WILL, lambda _event: None)
    assert old.agreed is None
    lenient = tls_context(TlsConfig(ca=authority.path("ca.crt")), 8883)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        lenient.minimum_version = ssl.TLSVersion.TLSv1
    lenient.set_ciphers("ALL:@SECLEVEL=0")
    with Listening(authority, ssl.TLSVersion.TLSv1_1) as old:  # it does shake hands with others
        shake_hands(old.port, lenient)
    assert old.agreed is not None
    assert old.agreed[0] == "TLSv1.1"


@pytest.mark.parametrize(
    ("port", "alpn", "agreed"), [(443, None, "x-amzn-mqtt-ca"), (443, "mqtt", "mqtt"), (8883, None, None)]
)
def test_port_443_asks_for_awss_protocol(authority: Authority, port: int, alpn: str | None, agreed: str | None) -> None:
    context = tls_context(TlsConfig(ca=authority.path("ca.crt"), alpn=alpn), port)
    with Listening(authority, ssl.TLSVersion.TLSv1_3) as server:
        shake_hands(server.port, context)
    assert server.agreed == ("TLSv1.3", agreed)


@pytest.mark.parametrize("secret", ["key", "password"])
def test_a_secret_that_others_can_read_by_now_is_not_used(authority: Authority, tmp_path: Path, secret: str) -> None:
    (tmp_path / "key").write_bytes(Path(authority.path("device.key")).read_bytes())
    (tmp_path / "password").write_text("swordfish")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "password").chmod(0o600)
    (tmp_path / secret).chmod(0o644)
    tls = TlsConfig(ca=authority.path("ca.crt"), certificate=authority.path("device.crt"), key=str(tmp_path / "key"))
    config = MqttConfig(
        host="127.0.0.1", port=free_port(), tls=tls, username="pi", password_file=str(tmp_path / "password")
    )
    with pytest.raises(Permanent, match=f"chmod 600 .*{secret}"):
        MqttTransport(config, "device").connect(WILL, lambda _event: None)


def test_no_secret_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither a log, however detailed, nor an error, nor a configuration that is shown has the password in it."""
    caplog.set_level(logging.DEBUG)
    (tmp_path / "users").write_text("")
    (tmp_path / "password").write_bytes(b"swordfish\n")
    (tmp_path / "password").chmod(0o600)
    config = MqttConfig(host="127.0.0.1", port=1, username="pi", password_file=str(tmp_path / "password"))
    said = [repr(config)]
    with running_mosquitto(f"allow_anonymous false\npassword_file {tmp_path / 'users'}") as port:
        here = msgspec.structs.replace(config, port=port)
        with pytest.raises(Retryable, match="refuses the connection") as refused:
            MqttTransport(here, "device").connect(WILL, lambda _event: None)
        said.append("".join(traceback.format_exception(refused.value)))
    (tmp_path / "password").write_bytes(b"swordfish \xff")
    with pytest.raises(Permanent, match="not UTF-8") as unreadable:
        MqttTransport(config, "device").connect(WILL, lambda _event: None)
    said.append("".join(traceback.format_exception(unreadable.value)))
    assert "swordfish" not in "".join((*said, caplog.text))


def subscribe(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `lisiere subscribe` for one result of a device that says everything twice."""
    command = [sys.executable, "-m", "lisiere", "subscribe", f"127.0.0.1:{port}", "--count", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_a_subscriber_takes_mutual_tls(port: int, authority: Authority) -> None:
    context = tls_context(TlsConfig(ca=authority.path("ca.crt"), certificate=authority.path("device.crt"),
                                    key=authority.path("device.key")), port)  # fmt: skip
    connection = transport(port, authority, authority)
    connection.connect(WILL, lambda _event: None)
    with Subscriber("127.0.0.1", port, tls=context) as subscriber:
        connection.publish("lisiere/v1/sim/result/dock", Envelopes().result(1))
        connection.wait(0)
        event = subscriber.next(10)
    connection.close()
    assert isinstance(event, Result)


def test_a_subscriber_refuses_another_host_and_another_authority(authority: Authority, stranger: Authority) -> None:
    with running_mosquitto(settings(authority, "elsewhere")) as port:
        wrong = subscribe(port, "--ca", authority.path("ca.crt"))
    assert (wrong.returncode, "TLS with the broker" in wrong.stderr) == (1, True)
    with running_mosquitto(settings(authority)) as port:
        foreign = subscribe(port, "--ca", stranger.path("ca.crt"))
    assert (foreign.returncode, "TLS with the broker" in foreign.stderr) == (1, True)


def test_a_subscriber_uses_no_key_that_others_can_read(authority: Authority, tmp_path: Path) -> None:
    key = tmp_path / "exposed.key"
    key.write_bytes(Path(authority.path("device.key")).read_bytes())
    key.chmod(0o644)
    done = subscribe(
        1, "--ca", authority.path("ca.crt"), "--certificate", authority.path("device.crt"), "--key", str(key)
    )
    assert done.returncode == 1
    assert "Others can read" in done.stderr
    assert "PRIVATE" not in done.stderr
