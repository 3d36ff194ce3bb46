"""Cameras by HTTP: motion JPEG in one answer without an end, or a picture for each request.

What comes is told by its Content-Type. Video of another kind is left to OpenCV.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from lisiere.clock import Clock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources.address import apart, shown
from lisiere.sources.base import FaultReport
from lisiere.sources.decoding import decode_image
from lisiere.sources.image_header import UnusableImage
from lisiere.sources.pace import Arrival, Pacer
from lisiere.sources.streams import CHUNK_BYTES, JPEG_MAX_BYTES, JpegStream
from lisiere.sources.video import BAD_IN_A_ROW, Camera
from lisiere.values import Frame

_TIMEOUT_S = 5.0  # to connect, and for each piece of an answer
_WHOLE_S = 10.0  # for all of a picture
_SNAPSHOT_FPS = 1.0


class HttpCamera:
    """Yields the frames of a camera's HTTP address. Proxies of the environment are not used: a camera is near."""

    def __init__(self, config: CameraSource, name: str, clock: Clock, fault: FaultReport) -> None:
        self._config = config
        self._name = name
        self._clock = clock
        self._fault = fault
        self._url, user, password = apart(config.url or "")
        self._what = f"The camera {shown(self._url)}"
        self._user, self._password = user, password

    def items(self, stop: threading.Event) -> Iterator[Frame]:
        """Ask, and yield frames by what is answered, until stopped; see `Source.items`."""
        opener = self._opener()
        with self._ask(opener) as answer:
            kind = _kind(answer)
            if kind.startswith("multipart/") or kind in ("video/x-motion-jpeg", "video/x-mjpeg"):
                yield from self._stream(answer, stop)
                return
            if kind.startswith("video/") or kind == "application/octet-stream" or "mpegurl" in kind:
                answer.close()
                yield from Camera(self._config, self._name, self._clock, self._fault).items(stop)
                return
            self._check_picture(kind)
        yield from self._snapshots(opener, stop)

    def _stream(self, answer: Any, stop: threading.Event) -> Iterator[Frame]:
        stream = JpegStream(self._config, self._name, self._what, self._clock, self._fault)
        while not stop.is_set():
            chunk = self._read(answer, CHUNK_BYTES)
            if not chunk:
                raise Retryable(f"{self._what} gives no more frames.")
            yield from stream.feed(chunk)
            stream.check_silence()

    def _snapshots(self, opener: urllib.request.OpenerDirector, stop: threading.Event) -> Iterator[Frame]:
        pacer = Pacer(self._clock, stop)
        index = bad = 0
        while not stop.is_set():
            with self._ask(opener) as answer:
                self._check_picture(_kind(answer))
                data = self._whole(answer)
            arrived = Arrival.now(self._clock)
            try:
                image = decode_image(data, f"A picture of the camera {shown(self._url)}", self._config.most_pixels)
            except UnusableImage as error:
                self._fault(error.fault, str(error))
                bad += 1
                if bad == BAD_IN_A_ROW:
                    raise Retryable(f"{bad} pictures in a row cannot be used: {error}") from error
            else:
                yield Frame(image, arrived.ts, self._name, index, arrived.captured)
                index, bad = index + 1, 0
            if not pacer.wait(1 / (self._config.fps or _SNAPSHOT_FPS)):
                return

    def _whole(self, answer: Any) -> bytes:
        """All of a picture, within bounds of size and time."""
        begun = self._clock.monotonic()
        data = bytearray()
        while chunk := self._read(answer, CHUNK_BYTES):
            data += chunk
            if len(data) > JPEG_MAX_BYTES:
                raise Retryable(f"{self._what} gives a picture of more than {JPEG_MAX_BYTES >> 20} MiB.")
            if self._clock.monotonic() - begun > _WHOLE_S:
                raise Retryable(f"{self._what} takes more than {_WHOLE_S:.0f} s for a picture.")
        return bytes(data)

    def _check_picture(self, kind: str) -> None:
        if not kind.startswith("image/"):
            raise Retryable(f"{self._what} answers with {kind!r}, which is neither a picture nor video.")

    def _opener(self) -> urllib.request.OpenerDirector:
        """What speaks HTTP alone, and knows the password of this camera alone."""
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if self._user:
            passwords.add_password(None, self._url, self._user, self._password)
        try:
            context = ssl.create_default_context(cafile=self._config.ca)
        except (OSError, ssl.SSLError) as error:
            raise Permanent(f"The certificates at {self._config.ca} cannot be used: {error.strerror}.") from error
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPDigestAuthHandler(passwords),
            urllib.request.HTTPBasicAuthHandler(passwords),
            urllib.request.UnknownHandler(),
            _HangUp(),
        ):
            opener.add_handler(handler)
        opener.addheaders = [("User-Agent", "lisiere")]
        return opener

    def _ask(self, opener: urllib.request.OpenerDirector) -> Any:
        # Nothing of the library's own errors is repeated: they may hold the address, and so a password.
        try:
            return opener.open(self._url, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            raise Retryable(f"{self._what} answers {error.code} {http.client.responses.get(error.code, '')}.") from None
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            # LookupError: the library takes a challenge for a password apart, and trusts that it is well formed.
            raise Retryable(f"{self._what} cannot be opened: {_reason(error)}.") from None

    def _read(self, answer: Any, size: int) -> bytes:
        try:
            chunk: bytes = answer.read1(size)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Retryable(f"{self._what} gives no more frames: {_reason(error)}.") from None
        return chunk


class _HangUp(urllib.request.BaseHandler):
    """Lets go what came with a request for a password or with a redirect, before it is asked again.

    The library keeps the first open, and reads all of the second, however much that is.
    """

    handler_order = 100  # before those that answer it

    def http_error_401(self, _request: Any, answer: Any, *_: Any) -> None:
        """Close it, and leave the rest to the others."""
        answer.close()

    http_error_301 = http_error_302 = http_error_303 = http_error_307 = http_error_308 = http_error_401


def _kind(answer: Any) -> str:
    """An answer's Content-Type; that of a picture where it has none, as that of some cameras."""
    return str(answer.headers.get_content_type()) if "Content-Type" in answer.headers else "image/jpeg"


def _reason(error: Exception) -> str:
    """What is told of a failure: the system's own words, or else its kind."""
    inner = getattr(error, "reason", error)
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({inner.verify_message}); name one that vouches for it as `ca`"
    if isinstance(inner, TimeoutError):
        return "it does not answer in time"
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return f"what it answers cannot be understood ({type(error).__name__})"
