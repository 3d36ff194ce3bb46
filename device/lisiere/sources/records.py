"""What comes from outside as text or JSON, as readings: one home for stamps, numbers and their faults."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from lisiere.clock import TS_MAX, parse_ts
from lisiere.errors import Rejected
from lisiere.sources.base import FaultReport
from lisiere.values import Reading

ROWS_MAX = 65_536  # in one record
STEP_MAX_S = 1e9
_KEPT = 40  # characters of what was wrong that are told
# Sensors without a clock of their own start in 1970. No device that runs this has a right clock from before 2000.
_FORGOTTEN, _SANE = 315_532_800.0, 946_684_800.0


class Records:
    """Turns records into readings of a pipeline's channels.

    A value that is no number becomes NaN and is counted as `not_a_number`, a key that is not there as
    `channel_missing`; a record that has nothing to give is Rejected, and costs only itself.

    Args:
        channels: what readings carry, in order.
        keys: channel -> key, for the channels that records give; the others are NaN.
        name: of the source.
        where: for messages: where records come from.
        fault: told of values that had to be left out.
        time: the key of the stamp.
        time_unit: of stamps that are numbers.
    """

    def __init__(
        self,
        channels: Sequence[str],
        keys: Mapping[str, str],
        name: str,
        where: str,
        fault: FaultReport,
        time: str = "ts",
        time_unit: Literal["s", "ms"] = "s",
    ) -> None:
        self._keys = [keys.get(channel) for channel in channels]
        self._count = sum(key is not None for key in self._keys)
        self._name = name
        self._where = where
        self._fault = fault
        self._time = time
        self._unit = 1000.0 if time_unit == "ms" else 1.0

    def parse(self, text: bytes, came: float | None) -> list[Reading]:
        """Return the readings of a JSON object: one, or with lists of numbers and `step_s` one a row.

        Args:
            text: the object.
            came: see `stamp`.

        Raises:
            Rejected: it is not one, or has no stamp that can be used, or none of the channels.
        """
        try:
            document = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(f"{error}.") from error
        if not isinstance(document, dict):
            raise Rejected("it is not a JSON object.")
        ts = self.stamp(_at(document, self._time), came)
        columns = [_MISSING if key is None else _at(document, key) for key in self._keys]
        absent = [key for key, column in zip(self._keys, columns, strict=True) if key and column is _MISSING]
        if len(absent) == self._count:
            raise Rejected(f"it has none of the channels {', '.join(absent)}.")
        for key in absent:
            self._fault("channel_missing", f"{self._where} gave a record without {key!r}.")
        if not any(isinstance(column, list) for column in columns):
            return [Reading(ts, tuple(map(self._number, columns)), self._name)]
        return self._rows(ts, columns, document.get("step_s"))

    def stamp(self, stamp: object, came: float | None) -> float:
        """Return the time of a record, seconds since the epoch.

        Args:
            stamp: its own.
            came: when it came, which is the time of one without a stamp, or with a stamp of 1970; None where that says
                nothing, as with a file: then it must have a stamp, which is taken as it is.

        Raises:
            Rejected: it is no time, or there is none.
        """
        if stamp is None or stamp is _MISSING:
            if came is None:
                raise Rejected(f"it has no time stamp {self._time!r}.")
            return came
        if isinstance(stamp, bool) or not isinstance(stamp, int | float | str):
            raise Rejected(f"{self._time!r} is neither a number nor text.")
        with contextlib.suppress(ValueError, OverflowError):
            stamp = float(stamp) / self._unit
        ts = parse_ts(str(stamp))
        if came is not None and ts < _FORGOTTEN and came > _SANE:
            self._fault("stamp_of_1970", f"{self._where} stamps with {str(stamp)[:_KEPT]}; the device's time is taken.")
            return came
        return ts

    def number(self, text: str) -> float:
        """Return the number that a text is; an empty one is a missing value, and other text a fault. Both are NaN."""
        text = text.strip()
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        return value if math.isfinite(value) else self._no_number(text)

    def _rows(self, ts: float, columns: list[Any], step: object) -> list[Reading]:
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= STEP_MAX_S:
            raise Rejected("lists of numbers need `step_s`, the seconds between them, above 0 and at most 1e9.")
        given = [column for column in columns if column is not _MISSING]
        length = max(len(column) for column in given if isinstance(column, list))
        if length > ROWS_MAX or any(not isinstance(column, list) or len(column) != length for column in given):
            raise Rejected(f"its channels are not lists of one length of at most {ROWS_MAX}.")
        if ts + (length - 1) * step > TS_MAX:
            raise Rejected("its rows go on beyond the year 9999.")
        rows = zip(*([_MISSING] * length if column is _MISSING else column for column in columns), strict=True)
        return [Reading(ts + at * step, tuple(map(self._number, row)), self._name) for at, row in enumerate(rows)]

    def _number(self, value: object) -> float:
        if value is _MISSING:
            return math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # JSON's whole numbers have no bound
                return float(value)
        return self._no_number(value)

    def _no_number(self, value: object) -> float:
        self._fault("not_a_number", f"{self._where} gave {str(value)[:_KEPT]!r} where a number belongs.")
        return math.nan


_MISSING = object()


def _at(document: dict[str, Any], key: str) -> Any:
    """What stands at a key; `a.b` is also the key `b` of the object under `a`."""
    if key in document:
        return document[key]
    found: Any = document
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return _MISSING
        found = found[part]
    return found
