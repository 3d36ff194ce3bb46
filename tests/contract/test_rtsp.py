"""A camera by RTSP: OpenCV's FFmpeg against a real RTSP server, which hangs up, comes back, and changes its size."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from lisiere.clock import SystemClock
from lisiere.errors import Retryable
from lisiere.health import State
from lisiere.settings.sources import CameraSource
from lisiere.sources import open_source
from lisiere.supervisor import Unit
from lisiere.values import Frame
from support.pictures import jpeg
from support.rtsp import RtspCamera
from support.sources import Faults


def level(frame: Frame) -> int:
    return round(float(frame.image.mean()))


@pytest.fixture
def camera() -> Iterator[RtspCamera]:
    made = RtspCamera(lambda: (jpeg(10 * at) for at in range(1, 21)))
    yield made
    made.close()


def items(
    url: str, faults: Faults | None = None, stop: threading.Event | None = None, **config: float
) -> Iterator[Frame]:
    settings = CameraSource(url=url, **config)  # type: ignore[arg-type]
    source = open_source(settings, (), SystemClock(), faults if faults is not None else Faults())
    return source.items(stop or threading.Event())  # type: ignore[return-value]


def test_frames_arrive_in_order_until_it_hangs_up(camera: RtspCamera) -> None:
    frames: list[Frame] = []
    with pytest.raises(Retryable, match=r"The camera rtsp://127.0.0.1:\d+/stream gives no more frames"):
        frames.extend(items(camera.url))
    assert [level(frame) for frame in frames] == pytest.approx([10 * at for at in range(1, 21)], abs=3)
    assert frames[0].image.shape == (48, 64, 3)
    assert [frame.index for frame in frames] == list(range(20))


def test_after_a_connection_that_broke_it_comes_back_by_itself(camera: RtspCamera) -> None:
    films = iter([(jpeg(50) for _ in range(10)), (jpeg(200) for _ in itertools.count())])
    camera.film = lambda: next(films)
    stop = threading.Event()
    seen: list[int] = []
    states: list[tuple[State, str]] = []

    def read() -> None:
        for frame in items(camera.url, stop=stop):
            seen.append(level(frame))
            if seen[-1] > 150:
                stop.set()

    unit = Unit("camera", read, stop, SystemClock(), lambda state, why: states.append((state, why)))
    unit.start()
    assert unit.join(60)
    assert not unit.failed
    assert seen == pytest.approx([50] * 10 + [200], abs=3)
    assert [state for state, _ in states] == ["waiting", "ended"]
    assert "gives no more frames. Next try in 1" in states[0][1]
    assert camera.players == 2


def test_a_change_of_size_in_mid_stream_goes_on(camera: RtspCamera) -> None:
    sizes = [(48, 64)] * 5 + [(96, 128)] * 5 + [(24, 32)] * 5
    camera.film = lambda: (jpeg(90, height, width) for height, width in sizes)
    frames: list[Frame] = []
    with pytest.raises(Retryable, match="gives no more frames"):
        frames.extend(items(camera.url))
    # OpenCV scales what comes later to the size of the beginning; a view in pixels goes on to fit.
    assert [frame.image.shape[:2] for frame in frames] == [sizes[0]] * len(sizes)
    assert [level(frame) for frame in frames] == pytest.approx([90] * len(sizes), abs=3)


def test_a_picture_too_large_is_refused_before_it_is_converted(camera: RtspCamera) -> None:
    faults = Faults()
    with pytest.raises(Retryable, match="has 64x48 pixels"):
        next(items(camera.url, faults, max_megapixels=0.003))
    assert faults.names == ["image_too_large"]
