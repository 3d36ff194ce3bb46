"""A camera's web server for tests: real HTTP, with the faults that cameras have."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER, PASSWORD = "admin", "hun/ter@2"


class CameraServer(ThreadingHTTPServer):
    """Answers each request by `answer`, and keeps which paths were asked for, and by whom.

    Attributes:
        answer: what to do with a request; set it to what the test wants.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[_Handler], None] = lambda request: request.give(b"")
        self.asked: list[tuple[str, str]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        """The address of its picture or stream."""
        return f"http://127.0.0.1:{self.server_address[1]}/camera"

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self._thread.join(10)
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Whoever has gone is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: CameraServer

    def do_GET(self) -> None:
        """One request."""
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        self.server.answer(self)

    def give(self, body: bytes, kind: str = "image/jpeg", code: int = 200, **headers: str) -> None:
        """Answer whole."""
        self.start(kind, code, **{"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def start(self, kind: str, code: int = 200, **headers: str) -> None:
        """Send the head of an answer."""
        self.send_response(code)
        if kind:
            self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def stream(self, pictures: Iterator[bytes], lengths: bool = True) -> None:
        """Send motion JPEG, part by part, and hang up at its end."""
        self.start("multipart/x-mixed-replace; boundary=frame")
        for picture in pictures:
            length = f"Content-Length: {len(picture)}\r\n" if lengths else ""
            self.wfile.write(f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + picture + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


Request = _Handler


def basic(then: Callable[[Request], None]) -> Callable[[Request], None]:
    """An answer for those alone who know the password, by basic authentication (RFC 7617)."""
    good = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def answer(request: Request) -> None:
        if request.headers.get("Authorization") == good:
            then(request)
        else:
            request.give(b"", "text/html", 401, WWW_Authenticate='Basic realm="camera"')

    return answer


def digest(then: Callable[[Request], None]) -> Callable[[Request], None]:
    """The same by digest authentication (RFC 7616, with MD5 as cameras have it)."""

    def answer(request: Request) -> None:
        head = request.headers.get("Authorization", "")
        given = dict(part.strip().split("=", 1) for part in head.removeprefix("Digest ").split(",") if "=" in part)
        given = {key: value.strip('"') for key, value in given.items()}
        who = _md5(f"{USER}:camera:{PASSWORD}")
        what = _md5(f"GET:{request.path}")
        middle = ":".join(given.get(key, "") for key in ("nonce", "nc", "cnonce", "qop"))
        if given.get("response") == _md5(f"{who}:{middle}:{what}"):
            then(request)
        else:
            request.give(b"", "text/html", 401, WWW_Authenticate='Digest realm="camera", nonce="n1", qop="auth"')

    return answer


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
