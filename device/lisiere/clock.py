"""Time, as a collaborator: wall time for stamps, monotonic time for intervals.

Nothing else in the package asks the operating system what time it is, so a test can say what time it is.
"""

from __future__ import annotations

import ctypes
import functools
import secrets
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, Protocol

from lisiere.errors import Rejected

# `synced`: the system holds its clock to be right. `unsynced`: nothing has set it. `jumped`: it was seen to be set, and
# nothing has vouched for it since. `corrected`: stamped while it was not right, and put right when the true time became
# known. `unknown`: the system cannot say.
TsQuality = Literal["synced", "unsynced", "jumped", "corrected", "unknown"]

# The kernel's answer to adjtimex() when no time source has set the clock (linux/timex.h, TIME_ERROR).
_TIME_ERROR = 5
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Years 1 to 9999, which is what RFC 3339 and datetime can write.
TS_MIN, TS_MAX = -62_135_596_800.0, 253_402_300_799.0
# Larger than struct timex on every Linux ABI; the call fills at most 208 bytes.
_TIMEX_BYTES = 512


class Clock(Protocol):
    """What the runtime asks of time."""

    def now(self) -> float:
        """Wall time: seconds since 1970-01-01T00:00:00Z."""

    def monotonic(self) -> float:
        """Seconds since some fixed point; never goes back."""

    def quality(self) -> TsQuality:
        """Whether wall time can be trusted: `synced`, `unsynced`, or `unknown` where the system cannot say."""

    def boot(self) -> str:
        """What tells this run of the machine from others: monotonic times compare within one boot only."""


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(8)

    def now(self) -> float:
        """Return wall time in seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return monotonic time in seconds; on Linux it goes on while the machine sleeps, as wall time does."""
        if sys.platform.startswith("linux"):
            return time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.monotonic()

    def boot(self) -> str:
        """Return the kernel's id of this boot; elsewhere than on Linux, one of this process."""
        try:
            return _BOOT_ID.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return self._process

    def quality(self) -> TsQuality:
        """Ask the kernel whether something (NTP, PTP) keeps the clock right.

        Source: adjtimex(2); it reads without privilege. Elsewhere than on Linux the answer is `unknown`.
        """
        if not sys.platform.startswith("linux"):
            return "unknown"
        buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
        state = ctypes.CDLL(None).adjtimex(buffer)
        if state < 0:
            return "unknown"
        return "unsynced" if state == _TIME_ERROR else "synced"


class ManualClock:
    """A clock that moves when it is told to. For tests and for replay in virtual time."""

    def __init__(self, now: float = 1_700_000_000.0, quality: TsQuality = "synced", boot: str = "boot-1") -> None:
        self._now = now
        self._boot = boot
        self._monotonic = 0.0
        self._quality: TsQuality = quality

    def now(self) -> float:
        """Return the wall time last set."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._monotonic

    def quality(self) -> TsQuality:
        """Return the quality last set."""
        return self._quality

    def boot(self) -> str:
        """Return the boot given at construction."""
        return self._boot

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self._now += seconds
        self._monotonic += seconds

    def step(self, seconds: float, quality: TsQuality | None = None) -> None:
        """Set wall time alone, as NTP or a person does, and what the system then says of it."""
        self._now += seconds
        self._quality = quality or self._quality


def rfc3339(ts: float) -> str:
    """Format seconds since the epoch as RFC 3339 in UTC with milliseconds: `2026-01-31T07:36:16.123Z`."""
    whole, milli = divmod(round(ts * 1000), 1000)
    return f"{_second(whole)}.{milli:03d}Z"


@functools.lru_cache(maxsize=1024)
def _second(whole: int) -> str:
    """The stamp's part up to the second, which many results share, and the horizons of forecasts."""
    tm = time.gmtime(whole)
    return f"{tm.tm_year:04d}-{tm.tm_mon:02d}-{tm.tm_mday:02d}T{tm.tm_hour:02d}:{tm.tm_min:02d}:{tm.tm_sec:02d}"


def parse_ts(text: str) -> float:
    """Read a time stamp: seconds since the epoch as a number, or ISO 8601 (no zone means UTC).

    Raises:
        Rejected: the text is neither, or the moment lies outside the years 1 to 9999.
    """
    try:
        ts = float(text)
    except ValueError:
        ts = _parse_iso(text)
    if not TS_MIN <= ts <= TS_MAX:  # NaN as well
        raise Rejected(f"{text[:40]!r} lies outside the years 1 to 9999: a time stamp counts seconds since 1970.")
    return ts


def _parse_iso(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise Rejected(f"{text[:40]!r} is not a time stamp: write seconds since 1970 or ISO 8601.") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()
