"""A camera that is a program: its frames arrive, its end is told and tried again, and nothing of it is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from lisiere.clock import ManualClock, SystemClock
from lisiere.errors import Permanent, Retryable
from lisiere.settings.sources import CameraSource
from lisiere.sources import process
from lisiere.sources.process import ProcessCamera
from lisiere.sources.streams import SILENCE_S
from lisiere.values import Frame
from support.pictures import jpeg
from support.sources import Faults

RAW: dict[str, Any] = {"format": "gray", "width": 16, "height": 16}
FRAME = 256


def python(program: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "import os, signal, subprocess, sys, time\n" + textwrap.dedent(program), *arguments)


def camera(command: tuple[str, ...], clock: Any = None, **config: Any) -> ProcessCamera:
    return ProcessCamera(CameraSource(command=command, **config), "camera", clock or SystemClock(), Faults())


def gone(pid: int) -> bool:
    """Wait until a process has ended; it may be a zombie of somebody who does not look."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def test_raw_frames_arrive_in_order() -> None:
    program = python("for level in range(5): sys.stdout.buffer.write(bytes([level]) * 256)")
    frames: list[Frame] = []
    with pytest.raises(Retryable, match="has ended with exit code 0 without a word"):
        frames.extend(camera(program, **RAW).items(threading.Event()))
    assert [int(frame.image[0, 0]) for frame in frames] == list(range(5))
    assert {frame.image.shape for frame in frames} == {(16, 16)}


def test_a_colour_frame_has_three_channels(tmp_path: Path) -> None:
    (tmp_path / "frame").write_bytes(bytes(range(256)) * 3)
    program = python("sys.stdout.buffer.write(open(sys.argv[1], 'rb').read()); sys.stdout.flush(); time.sleep(60)")
    items = camera((*program, str(tmp_path / "frame")), format="bgr", width=16, height=16).items(threading.Event())
    image = next(items).image
    items.close()  # type: ignore[attr-defined]
    assert image.shape == (16, 16, 3)
    assert image.reshape(-1).tolist() == list(range(256)) * 3


def test_motion_jpeg_arrives_picture_by_picture(tmp_path: Path) -> None:
    (tmp_path / "film").write_bytes(b"".join(jpeg(level) for level in (10, 90, 200)))
    frames: list[Frame] = []
    with pytest.raises(Retryable):
        frames.extend(camera(("cat", str(tmp_path / "film"))).items(threading.Event()))
    assert [round(float(frame.image.mean())) for frame in frames] == [10, 90, 200]


def test_no_shell_is_in_between(tmp_path: Path) -> None:
    words = ["$HOME", "`id`", "a; touch never", "* | &", "two words", "", "'\""]
    program = python("open(sys.argv[1], 'w').write(repr(sys.argv[2:]))", str(tmp_path / "told"), *words)
    with pytest.raises(Retryable):
        list(camera(program).items(threading.Event()))
    assert (tmp_path / "told").read_text() == repr(words)


def test_it_has_the_environment_but_not_the_components_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SVCUID", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "GST_DEBUG"):
        monkeypatch.setenv(name, "set")
    with pytest.raises(Retryable):
        list(
            camera(python("open(sys.argv[1], 'w').write('\\n'.join(os.environ))", str(tmp_path / "told"))).items(
                threading.Event()
            )
        )
    told = (tmp_path / "told").read_text().splitlines()
    assert {"GST_DEBUG", "PATH"} <= set(told)
    assert not {"SVCUID", "AWS_CONTAINER_AUTHORIZATION_TOKEN"} & set(told)


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("print('no camera found', file=sys.stderr); sys.exit(3)", "with exit code 3, and said: no camera found"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "by signal 9 without a word"),
        ("sys.stderr.write('x' * 100_000 + ' the last words'); sys.exit(1)", "x the last words"),
        ("sys.stderr.buffer.write(b'\\x1b[31mred\\xff\\n'); sys.exit(1)", "said: "),
    ],
)
def test_its_end_is_retryable_and_told_with_its_last_words(program: str, how: str) -> None:
    with pytest.raises(Retryable) as caught:
        list(camera(python(program)).items(threading.Event()))
    message = str(caught.value)
    assert how in message
    assert len(message) < 700
    assert message.isprintable()


def test_what_it_says_does_not_hold_it_up() -> None:
    # More than a pipe holds, before the first frame.
    program = python("sys.stderr.write('#0 (0.00 fps)\\n' * 200_000); sys.stdout.buffer.write(bytes(256))")
    assert len(list(islice(camera(program, **RAW).items(threading.Event()), 1))) == 1


def test_no_password_is_in_its_last_words() -> None:
    says = "cannot open rtsp://admin:hunter2@camera/1 or http://camera/x?password=hunter2"
    program = python("print(sys.argv[1], file=sys.stderr); sys.exit(1)", says)
    with pytest.raises(Retryable, match="rtsp://camera/1 or http://camera/x") as caught:
        list(camera(program).items(threading.Event()))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("program", ["/nowhere/camera-program", "no-such-camera-program", "/etc"])
def test_a_program_that_is_not_there_is_permanent(program: str) -> None:
    with pytest.raises(Permanent, match=f"{program} cannot be run"):
        list(camera((program,)).items(threading.Event()))


def test_the_program_of_a_board_that_is_not_there_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    source = ProcessCamera(CameraSource(csi="nvarguscamerasrc"), "camera", SystemClock(), Faults())
    with pytest.raises(Permanent, match=r"gst-launch-1.0 cannot be run: .* Install gstreamer1.0-tools"):
        list(source.items(threading.Event()))


FOREVER = "sys.stdout.buffer.write(os.getpid().to_bytes(4, 'big') * 64); sys.stdout.flush()\n"


def running(program: str, **config: Any) -> tuple[Any, int]:
    """Items of a program that has written its number as a frame, and that number."""
    items = camera(python(program), **RAW, **config).items(threading.Event())
    return items, int.from_bytes(next(items).image.reshape(-1)[:4].tobytes(), "big")


def test_it_is_ended_when_the_source_stops() -> None:
    stop = threading.Event()
    items = camera(python(FOREVER * 3 + "time.sleep(60)"), **RAW).items(stop)
    pid = int.from_bytes(next(items).image.reshape(-1)[:4].tobytes(), "big")
    assert psutil.pid_exists(pid)
    stop.set()
    list(items)
    assert not psutil.pid_exists(pid)  # and nothing of it waits to be fetched


def test_it_is_ended_when_nobody_reads_any_more() -> None:
    items, pid = running(FOREVER + "while True: sys.stdout.buffer.write(bytes(4096))")
    items.close()
    assert not psutil.pid_exists(pid)


def test_one_that_does_not_want_to_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_END_S", 0.1)
    items, pid = running("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FOREVER + "time.sleep(60)")
    items.close()
    assert not psutil.pid_exists(pid)


def test_what_it_has_started_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_END_S", 0.1)
    # The grandchild ignores the polite signal, and speaks to nobody.
    program = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        nowhere = subprocess.DEVNULL
        child = subprocess.Popen(["sleep", "60"], stdout=nowhere, stderr=nowhere)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout.buffer.write(child.pid.to_bytes(4, "big") * 64); sys.stdout.flush()
        time.sleep(60)
        """
    items, pid = running(program)
    assert psutil.pid_exists(pid)
    items.close()
    assert gone(pid)


def test_one_that_hangs_is_ended_and_tried_again() -> None:
    class Hurried(ManualClock):
        """Time passes whenever somebody looks."""

        def monotonic(self) -> float:
            self.advance(SILENCE_S / 2)
            return super().monotonic()

    with pytest.raises(Retryable, match="has given no frame that can be used for 15 s"):
        list(camera(python("time.sleep(60)"), Hurried()).items(threading.Event()))


def test_it_ends_when_the_device_is_killed(tmp_path: Path) -> None:
    device = f"""
        import threading
        from lisiere.clock import SystemClock
        from lisiere.settings.sources import CameraSource
        from lisiere.sources.process import ProcessCamera
        camera = {python(FOREVER + "while True: sys.stdout.buffer.write(bytes(4096))")!r}
        config = CameraSource(command=camera, format="gray", width=16, height=16)
        items = ProcessCamera(config, "camera", SystemClock(), print).items(threading.Event())
        print(int.from_bytes(next(items).image.reshape(-1)[:4].tobytes(), "big"), flush=True)
        time.sleep(60)
        """
    with subprocess.Popen(python(device), stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        pid = int(killed.stdout.readline())
        assert psutil.pid_exists(pid)
        killed.kill()
    assert gone(pid)


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208 - a count
    for _ in range(3):
        with pytest.raises(Retryable):
            list(camera(python("sys.stdout.buffer.write(bytes(300))"), **RAW).items(threading.Event()))
    # At most: what others have left behind may have ended meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= before[0]  # noqa: PTH208 - a count
    assert threading.active_count() <= before[1]
