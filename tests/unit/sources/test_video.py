"""Video files and cameras: frames in order and in time, damage told, and no password in any message."""

from __future__ import annotations

import logging
import socket
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lisiere.clock import ManualClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource, VideoSource
from lisiere.sources import video
from lisiere.sources.video import Camera, Video
from lisiere.values import Frame
from support import forget_opencv
from support.sources import Faults, Stop

FRAMES, FPS = 12, 20.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 12 frames, each a little brighter than the one before."""
    file = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (64, 48))
    assert writer.isOpened()
    for at in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * at, np.uint8))
    writer.release()
    return file


def play(path: Path, **config: Any) -> tuple[list[Frame], Faults, Stop]:
    clock, faults = ManualClock(100.0), Faults()
    stop = Stop(clock)
    return list(Video(VideoSource(path=str(path), **config), "film", clock, faults).items(stop)), faults, stop


def level(frame: Frame) -> int:
    return round(float(frame.image.mean()) / 20)


def test_frames_come_in_order_as_bgr_bytes(clip: Path) -> None:
    frames, faults, _ = play(clip, fps=0)
    assert [level(frame) for frame in frames] == list(range(FRAMES))
    assert [frame.index for frame in frames] == list(range(FRAMES))
    assert {(frame.image.shape, frame.image.dtype.name, frame.source) for frame in frames} == {
        ((48, 64, 3), "uint8", "film")
    }
    assert faults == []


def test_frames_do_not_share_memory(clip: Path) -> None:
    frames, _, _ = play(clip, fps=0)
    assert not any(np.shares_memory(frames[0].image, frame.image) for frame in frames[1:])


def test_a_film_passes_as_fast_as_it_was_recorded(clip: Path) -> None:
    frames, _, stop = play(clip)
    assert stop.waits == pytest.approx([1 / FPS] * FRAMES)
    assert [frame.ts for frame in frames] == pytest.approx([100 + at / FPS for at in range(FRAMES)])


def test_a_film_passes_as_fast_as_asked_for(clip: Path) -> None:
    assert play(clip, fps=4.0)[2].waits == pytest.approx([0.25] * FRAMES)
    assert play(clip, fps=0)[2].waits == []


def test_a_loop_goes_round_with_rising_indices(clip: Path) -> None:
    stop = threading.Event()
    video = Video(VideoSource(path=str(clip), fps=0, loop=True), "film", ManualClock(), Faults())
    items = video.items(stop)
    frames = [next(items) for _ in range(2 * FRAMES + 3)]
    assert [level(frame) for frame in frames] == [at % FRAMES for at in range(2 * FRAMES + 3)]
    assert [frame.index for frame in frames] == list(range(2 * FRAMES + 3))
    stop.set()
    assert list(items) == []


def test_a_stop_ends_it(clip: Path) -> None:
    stop = threading.Event()
    items = Video(VideoSource(path=str(clip), fps=0.001), "film", ManualClock(), Faults()).items(stop)
    next(items)
    stop.set()
    assert list(items) == []


def test_a_stop_in_the_middle_is_no_damage(clip: Path) -> None:
    stop, faults = threading.Event(), Faults()
    items = Video(VideoSource(path=str(clip), fps=0), "film", ManualClock(), faults).items(stop)
    next(items)
    stop.set()
    assert list(items) == []
    assert faults == []


@pytest.mark.parametrize("data", [None, b"", b"This is no film.", b"RIFF\x00\x00\x00\x00AVI LIST", b"\x00" * 5000])
def test_what_is_missing_or_no_film_is_retryable(tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "x.avi"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(Retryable, match=r"x\.avi"):
        play(file)


def test_a_folder_is_no_film(tmp_path: Path) -> None:
    with pytest.raises(Retryable):
        play(tmp_path)


def test_a_truncated_film_gives_what_it_has_and_is_told(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    half = tmp_path / "half.avi"
    # The header, which says 12 frames, and about half of them.
    start = data.find(b"movi")
    half.write_bytes(data[: start + (len(data) - start) // 2])
    frames, faults, _ = play(half, fps=0)
    assert 0 < len(frames) < FRAMES
    assert [level(frame) for frame in frames[:-1]] == list(range(len(frames) - 1))
    assert [name for name, _ in faults] == ["video_damaged"]
    assert f"{len(frames)} of its {FRAMES}" in faults[0][1]


def test_a_film_cut_off_before_its_first_frame_is_retryable(clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    file = tmp_path / "x.avi"
    file.write_bytes(data[: data.find(b"movi") + 4])
    with pytest.raises(Retryable, match=r"x\.avi"):
        play(file)


@pytest.mark.parametrize("seed", range(6))
def test_a_corrupt_film_ends_or_is_retryable(clip: Path, tmp_path: Path, seed: int) -> None:
    data = bytearray(clip.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(data.find(b"movi"), len(data), 60):
        data[at] = rng.integers(0, 256)
    file = tmp_path / "x.avi"
    file.write_bytes(data)
    try:
        frames, _, _ = play(file, fps=0)
    except Retryable:
        return
    assert all(frame.image.shape == (48, 64, 3) for frame in frames)


class Capture:
    """Stands in for cv2.VideoCapture: two frames, then no more, with figures as given."""

    released = 0
    asked: tuple[Any, ...] = ()
    figures: dict[int, float] = {}  # noqa: RUF012 - replaced, never filled
    opened = True
    frames = 2

    def __init__(self, *asked: Any) -> None:
        type(self).asked = asked
        self.settings: list[tuple[int, float]] = []
        self._left = self.frames

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opened

    def get(self, key: int) -> float:
        return self.figures.get(key, 0.0)

    def set(self, key: int, value: float) -> bool:
        self.settings.append((key, value))
        return True

    def grab(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
        return True, np.zeros((4, 4, 3), np.uint8)

    def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
        return self.retrieve() if self.grab() else (False, None)

    def release(self) -> None:
        type(self).released += 1


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> type[Capture]:
    class Mine(Capture):
        pass

    monkeypatch.setattr(cv2, "VideoCapture", Mine)
    return Mine


@pytest.mark.parametrize("recorded", [0.0, -1.0, float("nan"), float("inf"), 90_000.0])
def test_a_film_without_a_sensible_rate_passes_at_25_a_second(
    tmp_path: Path, capture: type[Capture], recorded: float
) -> None:
    capture.figures = {cv2.CAP_PROP_FPS: recorded, cv2.CAP_PROP_FRAME_COUNT: 2}
    assert play(tmp_path / "x.avi")[2].waits == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize("count", [-9.2e18, 0.0, 2.0])
def test_a_film_that_does_not_know_its_length_is_not_damaged(
    tmp_path: Path, capture: type[Capture], count: float
) -> None:
    capture.figures = {cv2.CAP_PROP_FRAME_COUNT: count}
    assert play(tmp_path / "x.avi", fps=0)[1] == []


def test_the_film_is_let_go_however_it_ends(tmp_path: Path, capture: type[Capture]) -> None:
    play(tmp_path / "x.avi", fps=0)
    assert capture.released == 1
    items = Video(VideoSource(path="x"), "film", ManualClock(), Faults()).items(threading.Event())
    next(items)
    items.close()  # type: ignore[attr-defined]
    assert capture.released == 2
    capture.opened = False
    with pytest.raises(Retryable):
        play(tmp_path / "x.avi")
    assert capture.released == 3


def camera(**config: Any) -> Camera:
    return Camera(CameraSource(**config), "camera", ManualClock(100.0), Faults())


def test_a_missing_camera_is_retryable(tmp_path: Path) -> None:
    device = tmp_path / "video0"
    with pytest.raises(Retryable, match="There is no camera"):
        list(camera(device=str(device)).items(threading.Event()))


def test_a_device_that_is_no_camera_is_retryable(tmp_path: Path) -> None:
    (tmp_path / "video0").write_bytes(b"")
    with pytest.raises(Retryable, match="cannot be opened"):
        list(camera(device=str(tmp_path / "video0")).items(threading.Event()))


def test_a_camera_that_stops_giving_frames_is_retryable_and_let_go(capture: type[Capture]) -> None:
    items = camera(url="rtsp://camera/1").items(threading.Event())
    assert [next(items).index, next(items).index] == [0, 1]
    with pytest.raises(Retryable, match="no more frames"):
        next(items)
    assert capture.released == 1


def test_frames_beyond_the_rate_are_taken_off_the_camera_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(100.0)

    class Live(Capture):
        """Thirty frames a second, for three seconds."""

        frames = 90

        def grab(self) -> bool:
            clock.advance(1 / 30)
            return super().grab()

    monkeypatch.setattr(cv2, "VideoCapture", Live)
    items = Camera(CameraSource(url="rtsp://camera/1", fps=5.0), "camera", clock, Faults()).items(threading.Event())
    stamps: list[float] = []
    with pytest.raises(Retryable, match="no more frames"):
        stamps.extend(frame.ts for frame in items)
    assert len(stamps) == 15
    assert np.diff(stamps) == pytest.approx(0.2, abs=0.04)
    assert Live.released == 1


def test_a_camera_is_let_go_when_stopped(capture: type[Capture]) -> None:
    stop = threading.Event()
    items = camera(url="rtsp://camera/1").items(stop)
    assert next(items).ts == 100.0
    stop.set()
    assert list(items) == []
    assert capture.released == 1


def test_a_device_is_asked_for_size_and_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Capture] = []

    def make(*asked: Any) -> Capture:
        made.append(Capture(*asked))
        return made[-1]

    (tmp_path / "video0").write_bytes(b"")
    monkeypatch.setattr(cv2, "VideoCapture", make)
    next(camera(device=str(tmp_path / "video0"), width=640, height=480, fps=15.0).items(threading.Event()))
    assert Capture.asked == (str(tmp_path / "video0"), cv2.CAP_V4L2)
    assert dict(made[0].settings) == {
        cv2.CAP_PROP_BUFFERSIZE: 1,
        cv2.CAP_PROP_FRAME_WIDTH: 640,
        cv2.CAP_PROP_FRAME_HEIGHT: 480,
        cv2.CAP_PROP_FPS: 15.0,
    }


def test_a_network_camera_is_given_up_after_a_while(capture: type[Capture]) -> None:
    next(camera(url="rtsp://camera/1").items(threading.Event()))
    url, api, settings = capture.asked
    assert (url, api) == ("rtsp://camera/1", cv2.CAP_FFMPEG)
    limits = dict(zip(settings[::2], settings[1::2], strict=True))
    assert 0 < limits[cv2.CAP_PROP_OPEN_TIMEOUT_MSEC] <= 10_000
    assert 0 < limits[cv2.CAP_PROP_READ_TIMEOUT_MSEC] <= 10_000


URLS = [
    "rtsp://admin:hunter2@camera/1",
    "rtsp://admin:hunter2@x@camera/1",
    "rtsp://admin:x/hunter2@camera/1",
    "rtsp://admin:x?hunter2@camera/1",
    "http://camera/1?user=admin&password=hunter2",
    "http://camera/1?next=//x&password=hunter2",
    "http://admin:x@camera/1?password=hunter2#now",
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("opened", [True, False])
def test_no_password_is_in_any_message(capture: type[Capture], url: str, opened: bool) -> None:
    capture.opened, capture.frames = opened, 0
    with pytest.raises(Retryable) as caught:
        list(camera(url=url).items(threading.Event()))
    assert "hunter2" not in str(caught.value)


def test_the_camera_is_still_told_by_its_address(capture: type[Capture]) -> None:
    capture.opened = False
    with pytest.raises(Retryable, match=r"rtsp://camera:554/stream1 "):
        list(camera(url="rtsp://admin:hunter2@camera:554/stream1").items(threading.Event()))


def test_a_real_refusal_does_not_tell_the_password_either(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen, so it refuses at once
        url = f"http://admin:hunter2@127.0.0.1:{silent.getsockname()[1]}/1"
        with caplog.at_level(logging.DEBUG), pytest.raises(Retryable) as caught:
            list(camera(url=url).items(threading.Event()))
    said = capfd.readouterr()
    assert "hunter2" not in str(caught.value) + said.out + said.err + caplog.text


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_opencv(monkeypatch)
    for source in (camera(url="rtsp://camera"), Video(VideoSource(path="x"), "film", ManualClock(), Faults())):
        with pytest.raises(Permanent, match=r"lisiere\[camera\]"):
            list(source.items(threading.Event()))


@pytest.fixture
def by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "by-id"
    folder.mkdir()
    monkeypatch.setattr(video, "_BY_ID", folder)
    return folder


def test_a_missing_camera_is_told_with_those_that_are_there(tmp_path: Path, by_id: Path) -> None:
    with pytest.raises(Retryable, match=r"There is no camera at .*/video0\.$"):
        list(camera(device=str(tmp_path / "video0")).items(threading.Event()))
    for name in ("usb-B-index0", "usb-A-index0"):
        (by_id / name).symlink_to(tmp_path / "video7")
    with pytest.raises(Retryable, match=r"video0\. There are .*/usb-A-index0, .*/usb-B-index0\.$"):
        list(camera(device=str(tmp_path / "video0")).items(threading.Event()))


def test_a_camera_is_opened_by_the_path_that_stays_the_same(
    tmp_path: Path, by_id: Path, capture: type[Capture]
) -> None:
    (tmp_path / "video7").touch()
    (by_id / "usb-A-index0").symlink_to(tmp_path / "video7")
    next(camera(device=str(by_id / "usb-A-index0")).items(threading.Event()))
    assert capture.asked[0] == str(by_id / "usb-A-index0")
    (tmp_path / "video7").unlink()  # unplugged: the link goes with it, or leads nowhere
    with pytest.raises(Retryable, match="There is no camera"):
        next(camera(device=str(by_id / "usb-A-index0")).items(threading.Event()))


def test_a_camera_named_by_its_number_is_told_the_path_that_stays(
    by_id: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (by_id / "usb-A-index0").symlink_to("/dev/video7")
    (by_id / "usb-B-index0").symlink_to("/dev/video8")
    with caplog.at_level(logging.INFO):
        video._advise("/dev/video7")
        video._advise(str(by_id / "usb-B-index0"))
    assert [record.message for record in caplog.records] == [
        f"/dev/video7 may be another camera after the next start; {by_id}/usb-A-index0 stays with this one."
    ]


@pytest.mark.parametrize("size", [(10_000.0, 10_000.0), (float("inf"), 480.0)])
def test_a_stream_that_declares_too_many_pixels_is_not_read(
    tmp_path: Path, capture: type[Capture], size: tuple[float, float]
) -> None:
    capture.figures = {cv2.CAP_PROP_FRAME_WIDTH: size[0], cv2.CAP_PROP_FRAME_HEIGHT: size[1]}
    faults, before = Faults(), capture.released
    source = Camera(CameraSource(url="rtsp://camera"), "camera", ManualClock(), faults)
    with pytest.raises(Retryable, match="64 million are allowed"):
        next(source.items(threading.Event()))
    film = Video(VideoSource(path=str(tmp_path / "x.avi")), "film", ManualClock(), faults)
    with pytest.raises(Retryable, match=r"x\.avi has"):
        next(film.items(threading.Event()))
    assert faults.names == ["image_too_large"] * 2
    assert capture.released == before + 2


@pytest.mark.parametrize(("damaged", "frames"), [({1}, 9), ({0, 3, 4, 5, 6}, 5), ({1, 2, 3, 4, 5}, 1)])
def test_a_frame_that_cannot_be_decoded_costs_itself_until_they_are_many(
    monkeypatch: pytest.MonkeyPatch, damaged: set[int], frames: int
) -> None:
    class Damaged(Capture):
        frames = 10

        def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
            return (False, None) if 9 - self._left in damaged else super().retrieve()

    monkeypatch.setattr(cv2, "VideoCapture", Damaged)
    faults, seen = Faults(), list[Frame]()
    source = Camera(CameraSource(url="rtsp://camera"), "camera", ManualClock(), faults)
    says = "5 frames in a row" if len(damaged) == 5 and 0 not in damaged else "no more frames"
    with pytest.raises(Retryable, match=says):
        seen.extend(source.items(threading.Event()))
    assert [frame.index for frame in seen] == list(range(frames))
    assert faults.names == ["image_unreadable"] * len(damaged)


def test_a_frames_age_begins_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(100.0)

    class Slow(Capture):
        def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
            clock.advance(0.5)
            return super().retrieve()

    monkeypatch.setattr(cv2, "VideoCapture", Slow)
    source = Camera(CameraSource(url="rtsp://camera"), "camera", clock, Faults())
    frame = next(source.items(threading.Event()))
    assert (frame.ts, frame.captured, clock.monotonic()) == (100.0, 0.0, 0.5)
