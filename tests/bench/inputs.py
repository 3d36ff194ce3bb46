"""What judging a camera's frames costs, and how well it is done: films of many kinds with faults put into them."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bench.outcome import Outcome
from lisiere.settings.checks import ChecksConfig
from lisiere.sight import Sight
from support import films
from support.films import Alter, Camera, Film, Frame, altered
from support.trials import Trial
from support.trials import run as show

SIZE = (480, 640)  # of the frames that cost is measured with
DRAWN = (240, 320)  # of the films that are drawn
# For each fault its name, and what makes it.
FAULTS: dict[str, tuple[str, Callable[[], Alter]]] = {
    "frozen": ("frozen", films.freeze),
    "frozen, under a clock": ("frozen", lambda: films.freeze(clock=True)),
    "a cap": ("dark", films.cover),
    "a hand": ("covered", lambda: films.cover((60, 80, 130), shading=0.3)),
    "a sheet of paper": ("covered", lambda: films.cover((200, 205, 210), shading=0.1)),
    "out of focus": ("blurred", lambda: films.blur(3)),
    "fogged": ("blurred", lambda: films.blur(5, noise=2)),
    "pushed a little": ("moved", lambda: films.shift(14, 12)),
    "pushed": ("moved", lambda: films.shift(60, 30, roll=True)),
    "turned by 10°": ("moved", lambda: films.shift(0, turn=10)),
    "glaring light": ("over_exposed", films.over_expose),
}
# How the camera is otherwise; what is not said is as `Camera` has it.
WITH_FAULTS: dict[str, dict[str, Any]] = {
    "people": {"people": 2},
    "noise": {"noise": 6},
    "1 frame/s": {"fps": 1, "people": 1},
}
CLEAN: dict[str, dict[str, Any]] = {
    "noise": {"noise": 8},
    "hardly any noise": {"noise": 0.6},
    "people": {"people": 3},
    "a crowd": {"people": 6, "person": 0.2},
    "lorries": {"people": 1, "person": 0.7, "away": 1.5, "seconds": 40},
    "nightfall": {"seconds": 60, "light": lambda now: 1 - 0.75 * now / 60},
    "dawn": {"seconds": 60, "light": lambda now: 0.25 + 0.75 * now / 60},
    "flicker": {"light": lambda now: 1 + 0.15 * np.sin(40 * now), "banding": 0.1},
    "gain": {"light": lambda now: (1, 0.6, 1.3, 0.8)[int(now / 4) % 4]},
    "low light": {"noise": 5, "light": lambda _: 0.25},
    "shaking": {"shake": 1.5},
    "1 frame/s": {"fps": 1, "seconds": 120, "people": 2},
    "5 frames/s": {"fps": 5, "seconds": 60, "people": 2},
}
REAL_FPS = 29.83


def run(rounds: int, data: Path) -> list[Outcome]:
    """Measure cost and quality.

    Args:
        rounds: of each side of the comparison.
        data: the folder of shared data, for the real film; what is drawn is measured without it.
    """
    outcomes = _cost(rounds)
    film = data / "video" / "bottle-detection.mp4"
    if film.is_file():
        outcomes += _quality("real film", list(_real_faults(film)), [show(films.video(film), REAL_FPS)])
    places = [films.scene(seed, DRAWN) for seed in range(3)]
    places += [films.photograph(file, DRAWN) for file in sorted((data / "images_ovms10").glob("*.jpeg"))[:3]]
    faulty = [_drawn_fault(place, name, how) for place in places for name in FAULTS for how in WITH_FAULTS.values()]
    clean = [_clean(place, how) for place in places for how in CLEAN.values()]
    return outcomes + _quality("drawn films", faulty, clean)


def _cost(rounds: int) -> list[Outcome]:
    """A look, against what is commonly done of it: difference, mean and the Laplacian's variance of the whole frame."""
    cv2.setNumThreads(1)
    frames = list(Camera(films.scene(0, SIZE), seconds=6, people=2))
    sight, ours, theirs = Sight(ChecksConfig()), [], []
    for number in range(rounds):
        started = time.process_time()
        for index, frame in enumerate(frames):
            sight.look(frame, 6.0 * number + index / 15)
        middle = time.process_time()
        _usual_checks(frames)
        ours.append((middle - started) / len(frames) * 1e3)
        theirs.append((time.process_time() - middle) / len(frames) * 1e3)
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    against = "cv2.absdiff with the frame before, mean, and variance of cv2.Laplacian, in grey at full size"
    cost = statistics.median(ours)
    return [
        Outcome("input health, a frame of 640x480", "the bound of 1 ms", cost, "ms", "<= 1", cost <= 1),
        Outcome("input health, by three usual checks", against, ratio, "x", "<= 1", ratio <= 1),
    ]


def _usual_checks(frames: list[Frame]) -> None:
    before = cv2.cvtColor(frames[-1], cv2.COLOR_BGR2GRAY)
    for frame in frames:
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        cv2.absdiff(grey, before).mean()
        grey.mean()
        cv2.Laplacian(grey, cv2.CV_64F).var()
        before = grey


def _quality(what: str, faulty: list[tuple[str, Trial]], clean: list[Trial]) -> list[Outcome]:
    named = [trial.after_s is not None and trial.after_s <= 2 for _, trial in faulty]
    missed = Counter(name for (name, _), good in zip(faulty, named, strict=True) if not good)
    for name, times in missed.items():
        print(f"{what}: {name} was not named within 2 s, {times} times.", file=sys.stderr)
    share = sum(named) / len(named)
    trials = [*clean, *(trial for _, trial in faulty)]
    frames = sum(trial.clean for trial in trials)
    alarms = sum(trial.false["any"] for trial in trials) / frames
    latest = max((trial.after_s for _, trial in faulty if trial.after_s is not None), default=0.0)
    return [
        Outcome(f"faults named within 2 s, {what}", f"{len(named)} faults", share, "", "1", share == 1),
        Outcome(f"false alarms, {what}", f"{frames} clean frames", alarms, "", "< 0.01", alarms < 0.01),
        Outcome(f"the slowest naming, {what}", "the bound of 2 s", latest, "s", "<= 2", latest <= 2),
    ]


def _real_faults(film: Path) -> Iterator[tuple[str, Trial]]:
    for name, (fault, make) in FAULTS.items():
        for start in (150, 500):
            stop = start + 180
            frames: Film = islice(films.video(film), stop + 60)
            yield name, show(altered(frames, make(), start, stop), REAL_FPS, fault, start, stop)


def _drawn_fault(place: Any, name: str, how: dict[str, Any]) -> tuple[str, Trial]:
    fault, make = FAULTS[name]
    fps = how.get("fps", 15)
    start, stop = (120, 180) if fps > 1 else (20, 40)
    camera = Camera(place, 1, **{**how, "seconds": (stop + 3 * fps) / fps})
    return name, show(altered(iter(camera), make(), start, stop), fps, fault, start, stop)


def _clean(place: Any, how: dict[str, Any]) -> Trial:
    camera = Camera(place, 1, **how)
    return show(iter(camera), camera.fps)
