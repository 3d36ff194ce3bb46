"""Judges a camera's frames, one by one: which faults there are, measured against the camera's own history.

What is strange is not learnt; what stays strange for `adapt_s` is the new normal. docs/input-health.md has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lisiere.settings.checks import ChecksConfig, Fault
from lisiere.sight.history import History
from lisiere.sight.measures import Grey, Look, look_at
from lisiere.sight.position import Place, Position
from lisiere.sight.stillness import Stillness

_STEP_MOST_S = 10.0  # what passes between two frames, at most: a clock that is set is not a long wait
# What was usual for a short time only is given up sooner: somebody may have stood before the camera at the start.
_PATIENCE_S, _PATIENCE = 15.0, 4.0
_SAMPLE_S = (0.25, 1.0)  # between samples of the history: while it is short, and then
_DARKENED = 0.25  # of the usual level
_DARKENED_BRIGHT = 64.0
_BRIGHTENED = 20.0  # grey levels above what is usual
_WHITE, _MUCH_BRIGHTENED = 220.0, 40.0  # a mean level that leaves hardly any structure, where it is so much above usual
_OVER_AT_START = 0.6  # share of clipped pixels, as long as nothing is usual
_BLURRED_AT_START = 0.012  # sharpness
_LOW_OF_USUAL = 1.2  # where a camera's sharpness varies, it is compared with the lowest there usually is, and so much
_COVERED_AT_START = 2.0  # grey levels a pixel: the steepest edge
_TOTAL_COVERED, _AREA_COVERED = 0.4, 0.45  # of the usual edges, and of the area that usually has any
_MATCH_COVERED = 0.4  # a picture that is much blurred has lost its edges, but is still like what it was
# The picture fits elsewhere: further away than this, in pixels of the small one, and by so much better.
_SHIFT_MIN, _FIT_BETTER, _FIT = 2, 0.2, 0.35
# It fits nowhere: share of the background's tiles that are gone, by itself, beyond what is usual, along each side.
_LOST, _LOST_MORE, _RIM = 0.5, 0.15, 0.3
_UNLIKE = 0.15  # a correlation that no object leaves that passes, however large
_SLOW = 0.75  # how fast a picture that fits nowhere becomes one of a moved camera
# Black and white have no noise, so that it says nothing when they stand still.
_BLINDING: tuple[Fault, ...] = ("dark", "over_exposed")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one frame was found to be.

    Attributes:
        faults: the names of its faults, in the order of `Fault`; empty when it is good.
        measures: what the faults were judged by, in the units of docs/input-health.md.
        thumb: the small picture; see `Look.thumb`.
        renewed: why the history starts anew after this frame, or empty.
    """

    faults: tuple[Fault, ...]
    measures: dict[str, float]
    thumb: Grey
    renewed: str = ""


@dataclass(slots=True)
class _Held:
    """For how long something has been so, with good moments taken off; never more than it takes to be named."""

    seconds: float = 0.0
    before: bool = False

    def take(self, bad: bool, passed_s: float, most_s: float, weight: float = 1.0) -> bool:
        """Take one frame; return whether the fault is there now and has been for long enough."""
        if bad:
            self.seconds = min(most_s, self.seconds + (passed_s * weight if self.before else 0.0))
        else:
            self.seconds = max(0.0, self.seconds - passed_s)
        self.before = bad
        return bad and self.seconds >= most_s - 1e-9


@dataclass(slots=True)
class _Memory:
    """What is usual of one camera at one resolution. A new one knows nothing.

    Attributes:
        accepted: whether what is strange by itself has been taken for usual, so that only the dark is still a fault.
        since_sample, samples, age_s: since the last sample of the history, how many there are, and over how long.
    """

    shape: tuple[int, ...] = ()
    accepted: bool = False
    level: History = field(default_factory=History)
    clipped: History = field(default_factory=History)
    sharpness: History = field(default_factory=History)
    position: Position = field(default_factory=Position)
    stillness: Stillness = field(default_factory=Stillness)
    held: dict[Fault, _Held] = field(default_factory=dict)
    strange: _Held = field(default_factory=_Held)
    since_sample: float = _SAMPLE_S[0]
    samples: int = 0
    age_s: float = 0.0


class Sight:
    """Takes every frame of one camera, in order. For one thread; its memory is bounded."""

    def __init__(self, config: ChecksConfig) -> None:
        self._config = config
        self._memory = _Memory()
        self._last: float | None = None
        self._now = 0.0

    def look(self, image: NDArray[np.uint8], ts: float) -> Seen:
        """Judge one frame.

        Args:
            image: uint8, [height, width, 3] in BGR order, or [height, width].
            ts: when it was captured, in seconds; a clock that is set does no harm.

        Raises:
            Rejected: it has no pixels, or is no picture.
            Permanent: OpenCV is not installed.
        """
        look = look_at(image)
        passed = 0.0 if self._last is None else min(max(0.0, ts - self._last), _STEP_MOST_S)
        self._last = ts
        self._now += passed
        renewed = ""
        if self._memory.shape != image.shape:
            # Nothing that was measured can be compared. The view tells of it.
            self._memory = _Memory(shape=image.shape)
        memory, config = self._memory, self._config
        still, change = memory.stillness.look(look.grid, self._now, passed)
        place = memory.position.look(look.thumb)
        bad = self._strange(look, place)
        allowed = memory.stillness.allowed(config.frozen_s)
        blind = any(bad.get(fault) for fault in _BLINDING)
        frozen = still >= allowed - 1e-9 and not blind and "frozen" not in config.ignore
        faults: list[Fault] = ["frozen"] if frozen else []
        for fault, weight in bad.items():
            held = memory.held.setdefault(fault, _Held())
            if held.take(weight > 0, passed, config.confirm_s, weight):
                faults.append(fault)
        position = memory.position
        hidden = place is not None and position.trusted and _hidden(place, position.usually_lost)
        strange = any(bad.values()) or hidden
        doubtful = strange or frozen or any(held.seconds for held in memory.held.values())
        known = memory.level.known
        patience = min(config.adapt_s, max(_PATIENCE_S, _PATIENCE * memory.age_s)) if known else config.adapt_s
        if memory.strange.take(strange, passed, patience) and (known or not memory.accepted):
            renewed = f"It has looked strange for {patience:.0f} s, which is usual from now on."
            self._memory = _Memory(shape=image.shape, accepted=True, stillness=memory.stillness, held=memory.held)
        elif not doubtful:
            self._learn(look, place, passed)
        return Seen(tuple(faults), _measures(look, place, still, change), look.thumb, renewed)

    def _strange(self, look: Look, place: Place | None) -> dict[Fault, float]:
        """Return for each fault but `frozen` whether the frame by itself has it: 0, or how fast it is believed.

        One that hides others is asked for first: what is dark is neither blurred nor moved.
        """
        memory, config = self._memory, self._config
        level, clipped, sharpness = memory.level, memory.clipped, memory.sharpness
        dark = look.bright < config.dark_level or (
            level.known and look.level < _DARKENED * level.median and look.bright < _DARKENED_BRIGHT
        )
        if clipped.known:
            over = look.clipped >= min(clipped.high + config.over_share, 1.0)
            over = over and look.level >= level.median + min(_BRIGHTENED, (250 - level.median) / 2)
            over = over or look.level >= max(_WHITE, level.median + _MUCH_BRIGHTENED)
        else:
            over = look.clipped >= _OVER_AT_START and not memory.accepted
        if place is not None and memory.position.edged:
            bare = place.loss >= config.covered_loss and place.total <= _TOTAL_COVERED
            # Where every picture is another one, some have few edges by nature.
            covered = memory.position.trusted and place.area <= _AREA_COVERED
            covered = place.match < _MATCH_COVERED and (bare or covered)
        else:
            covered = memory.position.flat(look.thumb) <= _COVERED_AT_START and not memory.accepted
        blurred = False
        if look.sharpness is not None and not (dark or over or covered):
            if sharpness.known:
                blurred = look.sharpness < config.blurred_ratio * min(sharpness.low * _LOW_OF_USUAL, sharpness.median)
            else:
                blurred = look.sharpness < _BLURRED_AT_START and not memory.accepted
        moved = 0.0
        if place is not None and memory.position.trusted and not (dark or over or covered or blurred):
            moved = _moved(place, config.moved_match, memory.position.usually_lost)
        found: dict[Fault, float] = {
            "dark": float(dark),
            "covered": float(covered),
            "over_exposed": float(over),
            "blurred": float(blurred),
            "moved": moved,
        }
        return {fault: weight for fault, weight in found.items() if fault not in config.ignore}

    def _learn(self, look: Look, place: Place | None, passed: float) -> None:
        """Take a good frame into what is usual; samples are rarer once there are many."""
        memory = self._memory
        memory.since_sample += passed
        if memory.since_sample < _SAMPLE_S[memory.samples >= 20]:
            return
        memory.position.learn(look.thumb, memory.since_sample)
        memory.age_s += memory.since_sample
        memory.since_sample = 0.0
        memory.samples += 1
        memory.level.add(look.level)
        memory.clipped.add(look.clipped)
        if look.sharpness is not None:
            memory.sharpness.add(look.sharpness)
        if place is not None:
            memory.position.remember(place)


def _moved(place: Place, most: float, usually_lost: float) -> float:
    """Return 0, or how fast it is believed that the camera has moved: faster when the picture fits elsewhere."""
    far = max(map(abs, place.shift)) >= _SHIFT_MIN
    if far and place.fit >= max(_FIT, place.match + _FIT_BETTER):
        return 1.0
    everywhere = place.rim >= _RIM or place.match < _UNLIKE
    return _SLOW if _hidden(place, usually_lost) and everywhere and place.match < most else 0.0


def _hidden(place: Place, usually_lost: float) -> bool:
    """Whether more of the background is gone than usual, and most of it: no frame to learn the background from."""
    return place.lost >= max(_LOST, usually_lost + _LOST_MORE)


def _measures(look: Look, place: Place | None, still: float, change: float) -> dict[str, float]:
    measures = {
        "level": look.level,
        "bright": look.bright,
        "clipped": look.clipped,
        "still_s": still,
        "change": change,
    }
    if look.sharpness is not None:
        measures["sharpness"] = look.sharpness
    if place is not None:
        measures |= {"match": place.match, "lost": place.lost, "edges": place.total, "area": place.area}
    return {name: round(float(value), 4) for name, value in measures.items()}
