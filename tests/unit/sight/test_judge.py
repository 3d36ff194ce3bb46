"""Faults are named within two seconds and clean frames are left alone, at any rate and in any light."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from lisiere.settings.checks import ChecksConfig
from lisiere.sight import Sight
from support import films, shared_data
from support.films import Alter, Camera, altered, scene
from support.trials import run

SIZE = (180, 240)
FAULTS: dict[str, tuple[str, Callable[[], Alter]]] = {
    "freeze": ("frozen", films.freeze),
    "freeze under a clock": ("frozen", lambda: films.freeze(clock=True)),
    "cap": ("dark", films.cover),
    "hand": ("covered", lambda: films.cover((60, 80, 130), shading=0.3)),
    "a hand before most of it": ("covered", lambda: films.cover((60, 80, 130), shading=0.3, share=0.85)),
    "paper": ("covered", lambda: films.cover((200, 205, 210), shading=0.1)),
    "defocus": ("blurred", lambda: films.blur(3)),
    "fog": ("blurred", lambda: films.blur(5, noise=2)),
    "nudge": ("moved", lambda: films.shift(22, 14)),
    "push": ("moved", lambda: films.shift(90, 30, roll=True)),
    "turn": ("moved", lambda: films.shift(0, turn=12)),
    "glare": ("over_exposed", lambda: films.over_expose(3, 100)),
}
CLEAN: dict[str, dict[str, object]] = {
    "noise": {"noise": 9},
    "hardly any noise": {"noise": 0.6},
    "people": {"people": 4},
    "a lorry": {"people": 1, "person": 0.7, "away": 2},
    "nightfall": {"seconds": 40, "fps": 8, "light": lambda now: 1 - 0.75 * now / 40},
    "flicker": {"light": lambda now: 1 + 0.15 * np.sin(40 * now), "banding": 0.1},
    "gain": {"light": lambda now: (1, 0.6, 1.3, 0.8)[int(now / 3) % 4]},
    "low light": {"noise": 5, "light": lambda _: 0.25},
    "shaking": {"shake": 0.7},
    "one frame a second": {"fps": 1, "seconds": 90, "people": 2},
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize(("seed", "fps"), [(0, 10), (2, 1)])
def test_a_fault_is_named_within_two_seconds_and_no_longer_than_it_lasts(name: str, seed: int, fps: float) -> None:
    fault, alter = FAULTS[name]
    start, stop = (60, 110) if fps > 1 else (30, 50)
    camera = Camera(scene(seed, SIZE), seed, fps=fps, seconds=(stop + 20) / fps, people=1)
    trial = run(altered(iter(camera), alter(), start, stop), fps, fault, start, stop)
    assert trial.after_s is not None
    assert trial.after_s <= 2
    assert trial.false_alarms == 0
    assert trial.named > 0.6 * trial.bad


@pytest.mark.parametrize("name", CLEAN)
def test_clean_frames_are_left_alone(name: str) -> None:
    options = {"fps": 10, "seconds": 12, **CLEAN[name]}
    camera = Camera(scene(3, SIZE), 7, **options)  # type: ignore[arg-type]
    trial = run(iter(camera), camera.fps)
    assert trial.false_alarms < 0.01, trial.false


def real() -> films.Film:
    """Every third frame of a real film, at half the size: most of the tests' time is that of decoding and of noise."""
    for frame in itertools.islice(films.video(shared_data() / "video" / "bottle-detection.mp4"), 0, None, 3):
        yield np.asarray(cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)


def test_a_real_film_is_left_alone() -> None:
    trial = run(real(), 29.83 / 3)
    assert trial.clean > 390
    assert trial.false_alarms == 0, trial.false


@pytest.fixture(scope="module")
def beginning() -> list[films.Frame]:
    return list(itertools.islice(real(), 130))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_real_film_is_named_within_two_seconds(name: str, beginning: list[films.Frame]) -> None:
    fault, alter = FAULTS[name]
    trial = run(altered(iter(beginning), alter(), 70, 120), 29.83 / 3, fault, 70, 120)
    assert trial.after_s is not None
    assert trial.after_s <= 2
    assert trial.false_alarms == 0, trial.false


def test_a_fault_is_named_through_a_codec(tmp_path: Path) -> None:
    """A frozen picture that is compressed anew changes a little all the same."""
    camera = Camera(scene(0, SIZE), fps=10, seconds=13, people=1)
    film = films.compressed(altered(iter(camera), films.freeze(), 60, 110), tmp_path / "film.mp4", 10)
    trial = run(film, 10, "frozen", 60, 110)
    assert trial.after_s is not None
    assert trial.after_s <= 2
    assert trial.false_alarms == 0


def test_a_frame_by_itself_names_nothing() -> None:
    film = list(Camera(scene(0, SIZE), fps=10, seconds=6))
    for alter in (films.cover(), films.blur(6), films.shift(60, 20), films.over_expose(3, 100)):
        trial = run((alter(frame, 0) if index % 13 == 0 else frame for index, frame in enumerate(film)), 10)
        assert trial.false_alarms == 0, trial.false


def test_every_frame_another_picture_is_no_camera_that_moves() -> None:
    """A folder of pictures: nothing is usual but change."""
    pictures = [np.clip(scene(seed, (120, 160)), 0, 255).astype(np.uint8) for seed in range(30)]
    trial = run(itertools.islice(itertools.cycle(pictures), 90), 5)
    assert trial.false_alarms == 0, trial.false


def test_a_picture_with_few_edges_among_others_is_frozen_when_it_stands_still() -> None:
    """Digits on paper, each frame another: one with a pale digit stands still."""
    rng = np.random.default_rng(2)
    sight, named = Sight(ChecksConfig()), []
    pictures = [np.clip(scene(seed, (120, 160)), 0, 255).astype(np.uint8) for seed in range(40)]
    pale = np.clip(150 + (scene(77, (120, 160)) - 150) * 0.2 + rng.normal(0, 2, (120, 160, 3)), 0, 255)
    for index, picture in enumerate([*pictures, *[pale.astype(np.uint8)] * 20]):
        named.append(sight.look(picture, index / 10).faults)
    assert all("frozen" in faults for faults in named[53:])
    assert not any("frozen" in faults for faults in named[:51])


def test_what_stays_strange_is_usual_in_the_end() -> None:
    sight, camera = Sight(ChecksConfig(adapt_s=20)), Camera(scene(0, SIZE), fps=2, seconds=60)
    named, renewed = [], []
    for index, frame in enumerate(altered(iter(camera), films.shift(60, 30), 40)):
        seen = sight.look(frame, index / 2)
        named.append("moved" in seen.faults)
        if seen.renewed:
            renewed.append(index)
    assert renewed == [40 + 20 * 2]
    assert not any(named[:40])
    assert all(named[44:80])
    assert not any(named[81:])


def test_what_is_dark_by_itself_stays_a_fault_and_is_renewed_once_at_most() -> None:
    sight, alter = Sight(ChecksConfig(adapt_s=5)), films.cover((2, 2, 2), noise=1)
    blank = np.zeros((120, 160, 3), np.uint8)
    seen = [sight.look(alter(blank, index), index / 4) for index in range(100)]
    assert all("dark" in one.faults for one in seen[8:])
    assert sum(bool(one.renewed) for one in seen) == 1


def test_a_camera_that_looks_at_nothing_but_a_wall_is_believed_in_the_end() -> None:
    sight, alter = Sight(ChecksConfig(adapt_s=10)), films.cover((150, 160, 170), shading=0.05)
    blank = np.zeros((240, 320, 3), np.uint8)
    faults = [sight.look(alter(blank, index), index / 4).faults for index in range(80)]
    assert faults[20] == ("covered",)
    assert faults[-1] == ()


def test_another_resolution_starts_anew() -> None:
    small, large = (Camera(scene(0, size), fps=10, seconds=6) for size in ((120, 160), (240, 320)))
    sight = Sight(ChecksConfig())
    trial = run(itertools.chain(small, large), 10, sight=sight)
    assert trial.false_alarms == 0
    grey = (frame[:, :, 1] for frame in Camera(scene(1), fps=10, seconds=4))
    assert run(grey, 10, sight=sight).false_alarms == 0


@pytest.mark.parametrize("jump", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_clock_that_is_set_names_nothing(jump: float) -> None:
    sight = Sight(ChecksConfig())
    for index, frame in enumerate(Camera(scene(0, SIZE), fps=10, seconds=10, people=1)):
        assert sight.look(frame, 1e9 + index / 10 + (jump if index > 50 else 0)).faults == ()


def test_what_is_ignored_is_not_named() -> None:
    sight = Sight(ChecksConfig(ignore=frozenset({"dark", "covered", "frozen"})))
    for second in range(10):
        assert sight.look(np.zeros((48, 64), np.uint8), second).faults == ()


def test_a_camera_without_noise_may_stand_still_as_long_as_it_has_before() -> None:
    """Each time that somebody comes in from the side, the stillness before was that of the scene."""
    camera = Camera(scene(0, (120, 160)), fps=5, seconds=80, noise=0, people=1, away=1)
    film = list(camera)
    sight = Sight(ChecksConfig())
    assert run(film[:200], 5, sight=sight).false["frozen"] > 0  # until that has happened
    assert run(film[200:], 5, sight=sight).false_alarms == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 640), (640, 1), (2, 640), (480, 8), (5000, 17), (3, 3)])
def test_a_frame_of_any_shape_is_judged(size: tuple[int, int]) -> None:
    """Also once there is a background, and the picture is another."""
    sight, rng = Sight(ChecksConfig()), np.random.default_rng(0)
    scene_ = rng.integers(0, 255, size, np.uint8)
    for at in range(40):
        image = scene_ if at < 30 else rng.integers(0, 255, size, np.uint8)
        sight.look(np.clip(image + rng.integers(-3, 4, size), 0, 255).astype(np.uint8), at * 0.3)


def test_memory_is_bounded() -> None:
    sight = Sight(ChecksConfig())
    image = scene(0, (48, 64)).astype(np.uint8)
    rng = np.random.default_rng(1)
    for second in range(330):
        seen = sight.look(np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8), second)
        assert {type(value) for value in seen.measures.values()} == {float}  # what a message can carry
    memory = sight._memory
    for history in (memory.level, memory.clipped, memory.sharpness, memory.stillness._quiet, memory.position._usual):
        assert len(history._samples) == len(history._sorted) <= 300
