"""Whether the wall clock was right: steps of it are noticed, and what was stamped before is put right afterwards.

A small computer without a battery starts in 1970, or when it was last switched off, and makes results before NTP sets
its clock. Such a result carries the boot and the monotonic time of its stamp. Once the system says that its clock is
right, the difference between wall and monotonic time is true for the whole boot, and so for what was stamped before.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from lisiere.clock import TS_MAX, TS_MIN, Clock, TsQuality
from lisiere.documents import write_durably

log = logging.getLogger(__name__)

STEP_S = 0.1  # systemd-timesyncd sets the clock from 0.4 s, ntpd from 0.128 s; what is less is slewed
_ASK_S = 1.0  # how often the system is asked whether its clock is right
_SLEW = 1e-3  # where monotonic time is not slewed along with wall time; adjtime() may do 500 ppm
_STRETCHES = 8
_TRUTHS_OF_A_BOOT = 8  # a leap second makes another
_BOOTS = 16
_FILE = "clock.json"
_FILE_MAX_BYTES = 1 << 20


class Origin(Struct, frozen=True):
    """When something was stamped, in a time that is never set: seconds of this boot of the machine."""

    boot: str
    mono_s: float


@dataclass(frozen=True, slots=True)
class Stamp:
    """A time, seconds since the epoch, and how far it can be trusted; `origin` while the true time is not known."""

    ts: float
    quality: TsQuality
    origin: Origin | None


@dataclass(slots=True)
class _Stretch:
    """A time in which the clock was not set: it began at a monotonic time, and wall minus monotonic is `offset`."""

    began: float
    offset: float


class _Truth(Struct):
    """The true offset of a boot: wall minus monotonic while the system vouched for it, last at `until` (monotonic)."""

    boot: str
    offset: float
    until: float


class _Document(Struct):
    schema: str
    truths: list[_Truth]


class Timeline:
    """Watches a clock. Every method may be called from any thread.

    Args:
        clock: what is watched.
        folder: where `clock.json` keeps what is known of earlier boots and processes; None keeps nothing.
    """

    def __init__(self, clock: Clock, folder: Path | None = None) -> None:
        self._clock = clock
        self._boot = clock.boot()
        self._file = folder / _FILE if folder else None
        self._lock = threading.Lock()
        self._truths = _load(self._file) if self._file else []
        mono, offset, _ = self._read()
        self._stretches: deque[_Stretch] = deque([_Stretch(mono, offset)], maxlen=_STRETCHES)
        self._last = mono, offset
        self._kernel = clock.quality()
        self._asked = mono
        self._stepped = False  # since the system last vouched for the clock
        self.steps = 0
        with self._lock:
            self._confirm(mono, offset)

    def quality(self) -> TsQuality:
        """Return how far a stamp of now can be trusted."""
        with self._lock:
            self._look()
            return self._quality()

    def stamp(self, ts: float | None = None) -> Stamp:
        """Return a stamp of now, or of the time `ts` that the clock told a moment ago."""
        with self._lock:
            mono, offset = self._look()
            if ts is None:
                ts = mono + offset
            quality = self._quality()
            stretch, then = self._stretch_of(ts, mono)
            if quality == "unknown":
                return Stamp(ts, quality, None)
            if quality == "synced" and stretch is self._stretches[-1]:
                return Stamp(ts, quality, None)
            origin = Origin(self._boot, round(then, 3))
            right = self._corrected(ts, origin)
            if right is not None:
                return Stamp(right, "corrected", None)
            return Stamp(ts, quality, origin)

    def monotonic(self) -> float:
        """Return the moment of now, for `since`."""
        return self._clock.monotonic()

    def since(self, moment: float) -> float:
        """Return the seconds since a moment of monotonic time."""
        return self._clock.monotonic() - moment

    def corrected(self, ts: float, origin: Origin) -> float | None:
        """Return the true time of a stamp, seconds since the epoch, or None as long as it is not known.

        Also None when the clock has run freely since the system last vouched for it: then nothing knows better.
        """
        with self._lock:
            self._look()
            return self._corrected(ts, origin)

    def _read(self) -> tuple[float, float, float]:
        """Return monotonic time, wall minus monotonic, and how far off the latter may be: the two are read in turn."""
        best = (0.0, 0.0, float("inf"))
        for _ in range(3):
            before, wall, after = self._clock.monotonic(), self._clock.now(), self._clock.monotonic()
            if after - before < best[2]:
                best = after, wall - (before + after) / 2, after - before
            if best[2] < STEP_S / 10:
                break
        return best

    def _look(self) -> tuple[float, float]:
        """Notice a step, and from time to time ask the system; return monotonic time and wall minus monotonic."""
        mono, offset, slack = self._read()
        last_mono, last_offset = self._last
        slew = _SLEW * (mono - last_mono) if self._kernel == "unknown" else 0.0
        step = offset - last_offset
        self._last = mono, offset
        if stepped := abs(step) > STEP_S + slack + slew:
            self._stretches.append(_Stretch(mono, offset))
            self._stepped = True
            self.steps += 1
            log.warning("The clock was set by %+.1f s.", step)
        if stepped or mono - self._asked >= _ASK_S:
            self._kernel = self._clock.quality()
            self._asked = mono
            self._confirm(mono, offset)
        return mono, offset

    def _confirm(self, mono: float, offset: float) -> None:
        """Remember the offset as true, if the system says so."""
        if self._kernel != "synced":
            return
        self._stepped = False
        mine = [truth for truth in self._truths if truth.boot == self._boot]
        if mine and abs(mine[-1].offset - offset) <= STEP_S:
            mine[-1].until = mono
            return
        mine = [*mine, _Truth(self._boot, offset, mono)][-_TRUTHS_OF_A_BOOT:]
        others = [truth for truth in self._truths if truth.boot != self._boot]
        boots = list(dict.fromkeys(truth.boot for truth in others))[-(_BOOTS - 1) :]
        self._truths = [truth for truth in others if truth.boot in boots] + mine
        if self._file:
            _save(self._file, self._truths)

    def _quality(self) -> TsQuality:
        return "jumped" if self._stepped else self._kernel

    def _stretch_of(self, ts: float, mono: float) -> tuple[_Stretch, float]:
        """Return in which stretch a moment ago the clock told `ts`, and the monotonic time of that moment."""
        end = mono
        for stretch in reversed(self._stretches):
            then = ts - stretch.offset
            if stretch.began - STEP_S <= then <= end + STEP_S:
                return stretch, then
            end = stretch.began
        return self._stretches[-1], mono  # it was told by no clock of ours

    def _corrected(self, ts: float, origin: Origin) -> float | None:
        truths = [truth for truth in self._truths if truth.boot == origin.boot]
        if not truths:
            return None
        truth = next((one for one in truths if one.until >= origin.mono_s), truths[-1])
        right = origin.mono_s + truth.offset
        if origin.mono_s > truth.until and abs(right - ts) <= STEP_S:
            return None
        return right if TS_MIN <= right <= TS_MAX else None


def _load(file: Path) -> list[_Truth]:
    """Read what is known; without it, old stamps stay as they are, which is no reason not to start."""
    try:
        if not file.exists():
            return []
        if file.stat().st_size > _FILE_MAX_BYTES:
            log.warning("%s is too large and is not read.", file)
            return []
        return msgspec.json.decode(file.read_bytes(), type=_Document).truths
    except (OSError, msgspec.DecodeError) as error:
        log.warning("%s cannot be read, so stamps of earlier boots stay as they are: %s", file, error)
        return []


def _save(file: Path, truths: list[_Truth]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, msgspec.json.encode(_Document("lisiere.clock/1", truths)))
    except OSError as error:
        log.warning("%s cannot be written, so a restart will not know the true time of this one: %s", file, error)
