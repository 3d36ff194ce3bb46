"""What is wrong with a sensor's values: out of range, too fast, stuck, or missing for too long.

Many readings are looked at together, in the order of their arrival, and each costs the same however long the series is:
of what came before, a channel keeps its last value, when that came, and since when it has been the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lisiere.settings.channels import ChannelConfig
from lisiere.values import Reading

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]
# Told of a fault: its name, a sentence, and in how many readings it is.
Told = Callable[[str, str, int], None]
_NOWHERE = np.zeros((1, 1), np.bool_)


class Channels:
    """Looks at the readings of one source. A fault is called by its kind and channel, such as `stuck:vibration`.

    A value out of range is not held against those before and after it: it says nothing of how fast they change.

    Args:
        names: of the channels, in the order of a reading's values.
        configs: what is known of some of them; at least of one.
        told: told of faults.
    """

    def __init__(self, names: Sequence[str], configs: Mapping[str, ChannelConfig], told: Told) -> None:
        known = [(column, name, configs[name]) for column, name in enumerate(names) if name in configs]
        self._told = told
        self._columns = [column for column, _, _ in known]
        self._names = [name for _, name, _ in known]
        self._configs = [config for _, _, config in known]
        # What is not configured is so far away that nothing reaches it.
        self._low = _limits([config.min for config in self._configs], -math.inf)
        self._high = _limits([config.max for config in self._configs], math.inf)
        self._rate = _limits([config.max_rate for config in self._configs], math.inf)
        self._span = _limits([config.stuck_s for config in self._configs], math.inf)
        self._gap = _limits([config.gap_s for config in self._configs], math.inf)
        self._watches_gaps = bool(np.isfinite(self._gap).any())
        self._watches_changes = bool(np.isfinite([*self._rate, *self._span]).any())
        self._tolerant = [at for at, config in enumerate(self._configs) if config.stuck_tolerance]
        self._withheld = np.array([config.policy == "withhold" for config in self._configs])
        self._silent: set[int] = set()  # those of whose silence it was told
        nothing = np.full(len(known), math.nan)
        self._seen = nothing  # when the last value came
        self._last, self._last_ts = nothing, nothing  # the last value within the range, and when it came
        self._since = nothing.copy()  # since when the value has been the same
        self._same = nothing.copy()  # what that is, where something else counts as the same, too

    def readings(self, given: Sequence[Reading]) -> list[Reading]:
        """Return the readings, in their order, with what is wrong with them."""
        values, faults = self.check(
            np.array([reading.ts for reading in given]), np.array([reading.values for reading in given], np.float64)
        )
        if not faults:
            return list(given)
        checked = list(given)
        for row, names in faults.items():
            now = tuple(values[row].tolist())
            checked[row] = replace(given[row], values=now, faults=(*given[row].faults, *names))
        return checked

    def silent(self, seconds: float) -> None:
        """Hear that no reading at all has come for so long: channels that may not be so long without are told once."""
        for column in np.flatnonzero(self._gap < seconds).tolist():
            if column not in self._silent:
                self._silent.add(column)
                self._told(f"gap:{self._names[column]}", self._sentence("gap", column, math.nan), 1)

    def check(self, ts: Numbers, values: Numbers) -> tuple[Numbers, dict[int, tuple[str, ...]]]:
        """Return the values, and which faults are in which rows.

        Args:
            ts: [n] event times, seconds since the epoch, in the order of arrival; n is at least 1.
            values: [n, channels]; NaN where one is missing. Never written to: where something is withheld, what is
                returned is another array.
        """
        self._silent.clear()
        mine, at = values[:, self._columns], ts[:, None]
        there = np.isfinite(mine)
        within = there & (mine >= self._low) & (mine <= self._high)
        outside = there & ~within
        gaps = fast = stuck = _NOWHERE
        if self._watches_gaps:
            gaps = self._gaps(at, there)
        if self._watches_changes:
            with np.errstate(invalid="ignore"):  # what is missing, and what has no limit
                fast, stuck = self._changes(at, mine, within)
        faults: dict[int, list[str]] = {}
        for kind, found in (("gap", gaps), ("out_of_range", outside), ("rate", fast), ("stuck", stuck)):
            if found.any():
                self._told_of(kind, found, mine, faults)
        withheld = (outside | fast | stuck) & self._withheld
        if withheld.any():
            rows, columns = np.nonzero(withheld)
            values = values.copy()
            values[rows, np.asarray(self._columns)[columns]] = np.nan
        return values, {row: tuple(names) for row, names in faults.items()}

    def _gaps(self, at: Numbers, there: Mask) -> Mask:
        """Where the last value came longer ago than it may."""
        back = np.flatnonzero(np.diff(at[:, 0]) < 0) + 1
        if back.size:
            pieces = zip(np.split(at, back), np.split(there, back), strict=True)
            return np.concatenate([self._gaps(ts, values) for ts, values in pieces])
        # Where the clock was set back, no value is newer than the time that it tells now; NaN where there was none.
        self._seen = np.fmin(self._seen, at[0])
        newest = _newest(there)
        gaps: Mask = at - _taken(at, _before(newest), self._seen) > self._gap
        self._seen = _taken(at, newest[-1:], self._seen)[0]
        return gaps

    def _changes(self, at: Numbers, mine: Numbers, within: Mask) -> tuple[Mask, Mask]:
        """Where a value is too far from the one before for the time between, and where it has been the same too long.

        Of values of one moment, and of one that is older than the one before, nothing is said of how fast they change.
        """
        newest = _newest(within)
        before = _before(newest)
        took = at - _taken(at, before, self._last_ts)
        change = np.abs(mine - _taken(mine, before, self._last))
        fast: Mask = within & (took > 0) & (change > took * self._rate)
        # A clock that was set back begins anew; a reading that is only late does not.
        restarted = took < -self._span
        begins = _newest(within & ~((change == 0) & ~restarted))
        stuck: Mask = within & (at - _taken(at, begins, self._since) >= self._span)
        since = _taken(at, begins[-1:], self._since)[0]
        for column in self._tolerant:
            stuck[:, column], since[column] = self._tolerantly(column, at, mine, within, restarted)
        self._since = since
        self._last, self._last_ts = _taken(mine, newest[-1:], self._last)[0], _taken(at, newest[-1:], self._last_ts)[0]
        return fast, stuck

    def _tolerantly(
        self, column: int, at: Numbers, mine: Numbers, within: Mask, restarted: Mask
    ) -> tuple[list[bool], float]:
        """Where a value has stayed near the one that it began with, and since when; drifting away is a change."""
        span, tolerance = float(self._span[column]), self._configs[column].stuck_tolerance
        same, since = float(self._same[column]), float(self._since[column])
        stuck = []
        for ts, value, good, anew in zip(
            at[:, 0].tolist(),
            mine[:, column].tolist(),
            within[:, column].tolist(),
            restarted[:, column].tolist(),
            strict=True,
        ):
            if good and (anew or not same - tolerance <= value <= same + tolerance):
                same, since = value, ts
            stuck.append(good and ts - since >= span)
        self._same[column] = same
        return stuck, since

    def _told_of(self, kind: str, found: Mask, mine: Numbers, faults: dict[int, list[str]]) -> None:
        """Tell of a fault in each channel that has it, and note it with its readings."""
        for column in np.flatnonzero(found.any(axis=0)).tolist():
            rows = np.flatnonzero(found[:, column]).tolist()
            name = f"{kind}:{self._names[column]}"
            for row in rows:
                faults.setdefault(row, []).append(name)
            self._told(name, self._sentence(kind, column, float(mine[rows[-1], column])), len(rows))

    def _sentence(self, kind: str, column: int, value: float) -> str:
        name, config = self._names[column], self._configs[column]
        unit = f" {config.unit}" if config.unit else ""
        match kind:
            case "gap":
                return f"{name} has had no value for more than {config.gap_s or 0:g} s."
            case "out_of_range":
                low, high = self._low[column], self._high[column]
                return f"{name} is {value:g}{unit}, {f'above {high:g}' if value > high else f'below {low:g}'}{unit}."
            case "rate":
                return f"{name} went to {value:g}{unit} by more than {config.max_rate or 0:g}{unit} a second."
            case _:
                return f"{name} has been {value:g}{unit} for {config.stuck_s or 0:g} s and longer."


def _limits(given: Sequence[float | None], otherwise: float) -> Numbers:
    return np.array([otherwise if limit is None else limit for limit in given], np.float64)


def _newest(mask: Mask) -> NDArray[np.intp]:
    """For each row and column the newest row, up to it, where the mask is set; -1 where there is none yet."""
    rows = np.arange(len(mask), dtype=np.intp)[:, None]
    newest: NDArray[np.intp] = np.maximum.accumulate(np.where(mask, rows, -1), axis=0)
    return newest


def _before(newest: NDArray[np.intp]) -> NDArray[np.intp]:
    """The same up to the row before each."""
    before = np.empty_like(newest)
    before[0], before[1:] = -1, newest[:-1]
    return before


def _taken(values: Numbers, rows: NDArray[np.intp], kept: Numbers) -> Numbers:
    """What stands in those rows of each column, and what was kept from earlier where they are -1."""
    taken = values[np.maximum(rows, 0), np.arange(rows.shape[1]) if values.shape[1] > 1 else 0]
    return np.where(rows < 0, kept, taken)
