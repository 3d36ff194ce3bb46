"""Getting into a broker: which MQTT it speaks, TLS, and a name and password from files that others cannot read."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal, Protocol

from lisiere.errors import Permanent
from lisiere.settings.links import TlsConfig, exposed

_ALPN_PORT, _ALPN = 443, "x-amzn-mqtt-ca"

Version = Literal[4, 5]  # as paho counts: 4 is 3.1.1


class Negotiation:
    """Which version a broker speaks, as far as is known; one for all connections to it.

    Args:
        protocol: what is configured.
    """

    def __init__(self, protocol: Literal["auto", "3.1.1", 5] = "auto") -> None:
        self._fixed = protocol != "auto"
        self._known = False
        self.version: Version = 4 if protocol == "3.1.1" else 5

    def accepted(self) -> None:
        """Hear that the broker took the version."""
        self._known = True

    def refused(self) -> bool:
        """Hear that the broker does not speak the version; return whether there is another one to try."""
        if self._fixed or (self.version == 4 and not self._known):
            return False
        self._switch()
        return True

    def unanswered(self) -> None:
        """Hear that there was no answer, which may mean the version as long as none was ever taken."""
        if not self._fixed and not self._known:
            self._switch()

    def _switch(self) -> None:
        self.version, self._known = (5 if self.version == 4 else 4), False


class _ClosingSocket(ssl.SSLSocket):
    """A TLS socket that closes when its handshake fails: paho would leave it to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class Access(Protocol):
    """What a configuration says of getting into a broker."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""

    @property
    def username(self) -> str | None:
        """Who the client is."""

    @property
    def password_file(self) -> str | None:
        """The file that holds the password."""

    @property
    def tls(self) -> TlsConfig | None:
        """None is a plain connection."""


def authenticate(client: Any, access: Access) -> None:
    """Give a client of paho's what it needs to get in.

    Raises:
        Permanent: a file cannot be read, is not what it should be, or can be read by others.
    """
    try:
        if access.username is not None:
            password = None
            if access.password_file is not None:
                password = secret(access.password_file).read_text(encoding="utf-8").strip()
            client.username_pw_set(access.username, password)
        if access.tls is not None:
            client.tls_set_context(tls_context(access.tls, access.address[1]))
    except (OSError, ssl.SSLError, UnicodeDecodeError) as error:
        # Not the error's own text where it could quote the file.
        said = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise Permanent(f"The credentials for {access.address[0]} cannot be used: {said}") from None


def tls_context(config: TlsConfig, port: int) -> ssl.SSLContext:
    """Return what a connection to the broker is made with: TLS 1.2 or newer, and the host's name verified.

    Raises:
        OSError, ssl.SSLError: a file cannot be read or is not what it should be.
        Permanent: others can read the key.
    """
    context = ssl.create_default_context(cafile=config.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _ClosingSocket
    if config.certificate is not None and config.key is not None:
        context.load_cert_chain(config.certificate, secret(config.key))
    if config.crl is not None:
        context.load_verify_locations(cafile=config.crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    alpn = config.alpn or (_ALPN if port == _ALPN_PORT else None)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def secret(path: str) -> Path:
    """Return the path of a secret, or raise Permanent when others can read it by now."""
    if why := exposed(Path(path)):
        raise Permanent(why)
    return Path(path)
