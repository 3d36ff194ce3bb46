"""Virtual inputs: what the device's cameras and sensors would deliver."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import socket
import statistics
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lisiere.clock import parse_ts
from lisiere.errors import ConfigError, Permanent, Rejected
from lisiere_sim.pump import Fault as PumpFaultKind
from lisiere_sim.pump import Pump
from lisiere_sim.scenario import CameraInput, CsvInput, PumpInput

_RETRY_S = 0.1
_SEND_S = 2.0
# The device starts to read before the scenario's clock does, and goes on until it is stopped.
_SLACK_S = 5.0


class Input(Protocol):
    """What feeds one pipeline."""

    source: dict[str, Any]  # the `source` of the pipeline in the device's configuration

    def start(self) -> None:
        """Begin, if it is this side that does something."""

    def stop(self) -> None:
        """End. Calling it twice does no harm."""


@dataclass
class FileInput:
    """A file that the device reads by itself."""

    source: dict[str, Any]

    def start(self) -> None:
        """Nothing to do; see `Input.start`."""

    def stop(self) -> None:
        """Nothing to do; see `Input.stop`."""


def camera(
    config: CameraInput, glyphs: Path, seed: int, folder: Path, duration_s: float, where: str = "$"
) -> FileInput:
    """Render held-out digits into a video file and return it as an input.

    Args:
        config: rate and size, and when it freezes.
        glyphs: an .npz with `glyphs`, uint8 [n, 8, 8].
        seed: which digits, and how they look.
        folder: where the video goes.
        duration_s: how long it has to last if it freezes.
        where: the input's place in the scenario, for messages.

    Raises:
        ConfigError: the glyphs cannot be read.
        Permanent: OpenCV cannot write the video.
    """
    # Here and not above: a scenario without a camera needs no OpenCV.
    import cv2

    from lisiere_sim.digits import render

    try:
        # numpy does not close a file that it has opened itself and finds to be no archive.
        with glyphs.open("rb") as stream, np.load(stream) as archive:
            shapes = np.asarray(archive["glyphs"], np.uint8)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{glyphs} holds no glyphs: {error}", f"{where}.glyphs") from error
    rng = np.random.default_rng(seed)
    file = folder / "camera.avi"
    size = (config.width, config.height)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), config.fps, size)
    if not writer.isOpened():
        raise Permanent(f"OpenCV cannot write the video {file}.")
    try:
        frames = math.ceil((duration_s + _SLACK_S) * config.fps) if config.freezes else config.frames
        chosen = rng.integers(0, len(shapes), -(-frames // config.hold))
        picture = None
        for number, index in enumerate(np.repeat(chosen, config.hold)[:frames]):
            frozen = any(0 <= number / config.fps - freeze.at_s < freeze.length_s for freeze in config.freezes)
            if picture is None or not frozen:
                picture = render(shapes[index], rng, (config.height, config.width))
            writer.write(picture)
    finally:
        writer.release()
    return FileInput({"type": "video", "path": str(file), "loop": True, "fps": config.fps})


def replay(config: CsvInput, file: Path, duration_s: float, where: str = "$") -> FileInput:
    """Return a recorded series as an input, at the speed that makes `rows_per_s`.

    Args:
        config: the column of stamps, and the rate.
        file: the record.
        duration_s: how long it has to last.
        where: the input's place in the scenario, for messages.

    Raises:
        ConfigError: it cannot be read or is too short.
    """
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            stamps = [parse_ts(row[config.time]) for row in csv.DictReader(stream)]
    except (OSError, KeyError, Rejected, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be replayed: {error}", where) from error
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    step = statistics.median(steps) if steps else 0.0
    if step <= 0:
        raise ConfigError(f"The stamps of {file} do not rise.", f"{where}.path")
    speed = config.rows_per_s * step
    lasts = (stamps[-1] - stamps[0]) / speed
    if lasts < duration_s + _SLACK_S:
        most = (stamps[-1] - stamps[0]) / step / (duration_s + _SLACK_S)
        raise ConfigError(
            f"{file} lasts {lasts:.0f} s at {config.rows_per_s:g} rows/s, but the scenario needs "
            f"{duration_s + _SLACK_S:.0f} s: at most {most:.1f} rows/s will do.",
            f"{where}.rows_per_s",
        )
    return FileInput({"type": "csv", "path": str(file), "time": config.time, "speed": speed})


class PumpFeed:
    """The virtual pump's sensor: sends vibration to the device's socket in real time, whenever the device is there.

    A sensor has no memory: what it measures while nobody listens is gone, and the stamps go on.

    Attributes:
        source: see `Input`.
        sent: lines sent; `missed` are those that nobody took.
        silent: whether the sensor says nothing, though it could.
    """

    def __init__(self, config: PumpInput, seed: int, path: Path) -> None:
        self.source: dict[str, Any] = {"type": "socket", "listen": f"unix:{path}"}
        self.sent = self.missed = 0
        self.silent = False
        self._config = config
        self._path = path
        self._pump = Pump(seed=seed, rate_hz=config.rate_hz)
        self._lock = threading.Lock()  # a fault is switched by another thread than the one that samples
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="virtual-pump", daemon=True)

    def start(self) -> None:
        """Begin to measure."""
        self._thread.start()

    def stop(self) -> None:
        """Stop measuring."""
        self._halt.set()
        if self._thread.is_alive():
            self._thread.join()

    def set_fault(self, kind: PumpFaultKind, severity: float) -> None:
        """Break the pump, or mend it with a severity of 0."""
        with self._lock:
            self._pump.set_fault(kind, severity)

    def _run(self) -> None:
        length = self._config.block / self._config.rate_hz
        wall, begun = time.time(), time.monotonic()
        connection: socket.socket | None = None
        retry_at = 0.0
        block = 0
        try:
            # A block can be sent once its last sample has been measured.
            while not self._halt.wait(max(0.0, begun + (block + 1) * length - time.monotonic())):
                line = self._line(wall + block * length)
                block += 1
                if self.silent:
                    continue
                if connection is None and time.monotonic() >= retry_at:
                    connection = self._connect()
                    retry_at = time.monotonic() + _RETRY_S
                if connection is not None:
                    try:
                        connection.sendall(line)
                        self.sent += 1
                        continue
                    except OSError:
                        connection.close()
                        connection = None
                self.missed += 1
        finally:
            if connection is not None:
                connection.close()

    def _line(self, ts: float) -> bytes:
        with self._lock:
            samples = self._pump.samples(self._config.block)
        values = [round(float(value), 5) for value in samples]
        document = {"ts": round(ts, 6), "step_s": 1 / self._config.rate_hz, self._config.channel: values}
        return json.dumps(document, separators=(",", ":")).encode() + b"\n"

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_SEND_S)
        with contextlib.suppress(OSError):
            connection.connect(str(self._path))
            return connection
        connection.close()
        return None
