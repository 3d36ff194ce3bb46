"""Cameras by HTTP address, against a real HTTP server: motion JPEG, pictures, and what else cameras answer."""

from __future__ import annotations

import logging
import ssl
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from lisiere.clock import Clock, ManualClock, SystemClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources import http_camera, open_source
from lisiere.values import Frame
from support.cameras import PASSWORD, USER, CameraServer, Request, basic, digest
from support.pictures import claiming, encoded, jpeg, noise
from support.sources import Faults, Stop

FRAMES = 40


@pytest.fixture
def server() -> Iterator[CameraServer]:
    made = CameraServer()
    yield made
    made.close()


def items(
    url: str,
    faults: Faults | None = None,
    clock: Clock | None = None,
    stop: threading.Event | None = None,
    **config: Any,
) -> Iterator[Frame]:
    source = open_source(
        CameraSource(url=url, **config), (), clock or SystemClock(), faults if faults is not None else Faults()
    )
    return source.items(stop or threading.Event())  # type: ignore[return-value]


def brighter(request: Request) -> None:
    """Frames whose brightness rises, then it hangs up."""
    request.stream(jpeg(5 * at) for at in range(FRAMES))


def level(frame: Frame) -> int:
    return round(float(frame.image.mean()))


def with_password(url: str) -> str:
    return url.replace("//", f"//{USER}:{quote(PASSWORD, safe='')}@")


def test_frames_arrive_in_order(server: CameraServer) -> None:
    server.answer = brighter
    frames = list(islice(items(server.url), 10))
    assert [frame.index for frame in frames] == list(range(10))
    assert [level(frame) for frame in frames] == pytest.approx([5 * at for at in range(10)], abs=2)
    assert frames[0].image.shape == (48, 64, 3)


def test_parts_without_a_length_are_no_different(server: CameraServer) -> None:
    server.answer = lambda request: request.stream((jpeg(5 * at) for at in range(FRAMES)), lengths=False)
    assert len(list(islice(items(server.url), 10))) == 10


def test_a_camera_that_hangs_up_is_retryable_and_comes_back(server: CameraServer) -> None:
    server.answer = brighter
    for _ in range(2):
        seen: list[Frame] = []
        with pytest.raises(Retryable, match="gives no more frames"):
            seen.extend(items(server.url))
        assert [frame.index for frame in seen] == list(range(FRAMES))


def test_bad_pictures_in_a_stream_cost_only_themselves(server: CameraServer) -> None:
    bad = [
        encoded(".jpg", noise())[:-50],
        claiming(".jpg", 10_000, 10_000),
        claiming(".jpg", 0, 0),
        b"\xff\xd8\xff\xd9",
    ]
    server.answer = lambda request: request.stream(iter([jpeg(10), *bad, jpeg(90), jpeg(20, 24, 32)]))
    faults, frames = Faults(), list[Frame]()
    with pytest.raises(Retryable):
        frames.extend(items(server.url, faults))
    assert [(level(frame), frame.image.shape) for frame in frames] == [
        (10, (48, 64, 3)),
        (90, (48, 64, 3)),
        (20, (24, 32, 3)),
    ]
    assert sorted(faults.names) == ["image_empty", "image_too_large", "image_truncated", "image_unreadable"]


def test_pictures_are_asked_for_at_the_rate_given(server: CameraServer) -> None:
    levels = count(10)
    server.answer = lambda request: request.give(jpeg(next(levels)))
    clock = ManualClock(100.0)
    stop = Stop(clock)
    frames = list(islice(items(server.url, clock=clock, stop=stop, fps=4.0), 3))
    assert [level(frame) for frame in frames] == [11, 12, 13]  # the first answer told what the camera is
    assert [(frame.ts, frame.index, frame.captured) for frame in frames] == [
        (100.0, 0, 0.0),
        (100.25, 1, 0.25),
        (100.5, 2, 0.5),
    ]
    assert {path for path, _ in server.asked} == {"/camera"}
    stop = Stop(clock)
    list(islice(items(server.url, clock=clock, stop=stop), 2))
    assert stop.waits == [1.0]  # unless told otherwise


def test_a_picture_of_another_format_is_taken_too(server: CameraServer) -> None:
    server.answer = lambda request: request.give(encoded(".png", noise()), "image/png")
    np.testing.assert_array_equal(next(items(server.url)).image, noise())


def test_a_picture_need_not_say_what_it_is(server: CameraServer) -> None:
    server.answer = lambda request: request.give(jpeg(70), "")
    assert level(next(items(server.url))) == 70


def test_bad_pictures_cost_only_themselves_until_they_are_many(server: CameraServer) -> None:
    bad = iter([b"", b"", encoded(".jpg", noise())[:-50], jpeg(50), *[claiming(".png", 10_000, 10_000)] * 9])
    server.answer = lambda request: request.give(next(bad))
    faults, clock = Faults(), ManualClock()
    seen: list[Frame] = []
    with pytest.raises(Retryable, match=r"5 pictures in a row cannot be used: A picture of .* 100.0 million"):
        seen.extend(items(server.url, faults, clock, Stop(clock)))
    assert [level(frame) for frame in seen] == [50]
    assert faults.names == ["image_unreadable", "image_truncated", *["image_too_large"] * 5]


def test_a_picture_without_an_end_is_not_read_to_it(server: CameraServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(request: Request) -> None:
        request.start("image/jpeg")
        while True:
            request.wfile.write(b"\xff\xd8" + bytes(65_536))

    monkeypatch.setattr(http_camera, "JPEG_MAX_BYTES", 1 << 20)
    server.answer = endless
    tracemalloc.start()
    with pytest.raises(Retryable, match="gives a picture of more than 1 MiB"):
        next(items(server.url))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_picture_that_drips_is_not_waited_for(server: CameraServer, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def drip(request: Request) -> None:
        request.start("image/jpeg")
        while not let_go.wait(0.02):
            request.wfile.write(b"\xff")

    monkeypatch.setattr(http_camera, "_WHOLE_S", 0.2)
    server.answer = drip
    with pytest.raises(Retryable, match="takes more than"):
        next(items(server.url))
    let_go.set()


@pytest.mark.parametrize("begins", [False, True])
def test_a_camera_that_says_nothing_is_given_up(
    server: CameraServer, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    let_go = threading.Event()

    def hang(request: Request) -> None:
        if begins:
            request.start("multipart/x-mixed-replace; boundary=frame")
        let_go.wait(30)

    monkeypatch.setattr(http_camera, "_TIMEOUT_S", 0.2)
    server.answer = hang
    started = time.monotonic()
    with pytest.raises(Retryable, match="does not answer in time"):
        next(items(server.url))
    assert time.monotonic() - started < 20
    let_go.set()


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (404, "text/html", "answers 404 Not Found"),
        (503, "image/jpeg", "answers 503 Service Unavailable"),
        (200, "text/html", "answers with 'text/html', which is neither a picture nor video"),
        (200, "application/json", "neither a picture"),
    ],
)
def test_what_is_no_camera_says_so(server: CameraServer, code: int, kind: str, says: str) -> None:
    server.answer = lambda request: request.give(b"<html>log in</html>", kind, code)
    with pytest.raises(Retryable, match=says):
        next(items(server.url))


@pytest.mark.parametrize("scheme", [basic, digest])
@pytest.mark.parametrize("streams", [False, True])
def test_the_password_is_given_to_a_camera_that_asks_for_it(server: CameraServer, scheme: Any, streams: bool) -> None:
    server.answer = scheme(brighter if streams else lambda request: request.give(jpeg(0)))
    assert level(next(items(with_password(server.url)))) == 0
    assert server.asked[0][1] == ""  # and not before


@pytest.mark.parametrize("scheme", [basic, digest])
def test_a_wrong_password_is_told_without_it(
    server: CameraServer, scheme: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = scheme(brighter)
    url = server.url.replace("//", "//admin:guess@") + "?password=guess"
    with caplog.at_level(logging.DEBUG), pytest.raises(Retryable, match="answers 401 Unauthorized") as caught:
        next(items(url))
    said = capfd.readouterr()
    assert "guess" not in str(caught.value) + caplog.text + said.out + said.err
    assert f"http://127.0.0.1:{server.server_address[1]}/camera" in str(caught.value)
    assert len(server.asked) < 10


def test_a_camera_may_lead_elsewhere_but_not_with_the_password(server: CameraServer) -> None:
    other = CameraServer()
    try:
        other.answer = basic(brighter)
        server.answer = lambda request: request.give(b"", "text/html", 302, Location=other.url)
        with pytest.raises(Retryable, match="401"):
            next(items(with_password(server.url)))
        other.answer = brighter
        assert level(next(items(with_password(server.url)))) == 0
        assert {password for _, password in other.asked} == {""}
    finally:
        other.close()


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "rtsp://127.0.0.1/x"])
def test_a_camera_does_not_lead_out_of_http(server: CameraServer, where: str) -> None:
    server.answer = lambda request: request.give(b"", "text/html", 302, Location=where)
    with pytest.raises(Retryable, match=r"answers 302|cannot be opened"):
        next(items(server.url))


def test_what_comes_with_a_redirect_is_not_read(server: CameraServer) -> None:
    hung_up = threading.Semaphore(0)

    def endless(request: Request) -> None:
        request.start("text/html", 302, Location="/elsewhere")
        try:
            for _ in range(300):
                request.wfile.write(bytes(1 << 16))
        except OSError:
            hung_up.release()

    server.answer = endless
    with pytest.raises(Retryable, match="answers 302"):
        next(items(server.url))
    for _ in server.asked:
        assert hung_up.acquire(timeout=10)


@pytest.mark.parametrize("challenge", ["Digest realm=", "Digest", "", "Digest realm, nonce", "Nonesuch x"])
def test_a_challenge_that_makes_no_sense_is_retryable(server: CameraServer, challenge: str) -> None:
    server.answer = lambda request: request.give(b"", "text/html", 401, WWW_Authenticate=challenge)
    with pytest.raises(Retryable, match=r"answers 401|cannot be understood") as caught:
        next(items(with_password(server.url)))
    assert PASSWORD not in str(caught.value)


def test_proxies_of_the_environment_are_not_used(server: CameraServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server.answer = brighter
    assert next(items(server.url)).index == 0


def test_a_camera_that_is_not_there_is_retryable(server: CameraServer) -> None:
    url = server.url
    server.server_close()
    with pytest.raises(Retryable, match="cannot be opened: Connection refused"):
        next(items(url))


def test_video_of_another_kind_is_left_to_opencv(server: CameraServer, tmp_path: Path) -> None:
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for at in range(5):
        writer.write(np.full((48, 64, 3), 40 * at, np.uint8))
    writer.release()
    server.answer = lambda request: request.give(file.read_bytes(), "video/x-msvideo")
    frames = list[Frame]()
    with pytest.raises(Retryable, match="gives no more frames"):
        frames.extend(items(server.url))
    assert [level(frame) for frame in frames] == pytest.approx([0, 40, 80, 120, 160], abs=3)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    made = tmp_path / "camera.pem", tmp_path / "camera.key"
    subject = ("-subj", "/CN=camera", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-out", str(made[0]), "-keyout", str(made[1]))
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files)
    subprocess.run(command, check=True, capture_output=True)
    return made


def test_a_camera_with_a_certificate_of_its_own(
    server: CameraServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answer = brighter
    url = server.url.replace("http:", "https:")
    assert next(items(url, ca=str(certificate[0]))).index == 0
    with pytest.raises(Retryable, match=r"its certificate is not trusted .* name one that vouches for it as `ca`"):
        next(items(url))
    (tmp_path / "no.pem").write_text("no certificate")
    for file in ("no.pem", "absent.pem"):
        with pytest.raises(Permanent, match=rf"The certificates at .*{file} cannot be used"):
            next(items(url, ca=str(tmp_path / file)))
