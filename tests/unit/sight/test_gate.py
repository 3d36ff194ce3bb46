"""The gate: which frames the model is asked of, and what is counted of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from lisiere.errors import Rejected
from lisiere.health import PipelineHealth
from lisiere.settings.checks import ChecksConfig, CommandTrigger, EveryTrigger, MotionTrigger, TriggerConfig
from lisiere.sight import Gate
from lisiere.values import Frame
from support import films

RNG = np.random.default_rng(1)
PICTURES = [RNG.integers(40, 200, (48, 64, 3)).astype(np.uint8) for _ in range(8)]


class Rig:
    """A gate, and what its health has counted."""

    def __init__(self, trigger: TriggerConfig | None = None, checks: ChecksConfig | None = None) -> None:
        self.health = PipelineHealth("dock")
        self.gate = Gate(checks, trigger, self.health)
        self.index = 0

    def admit(self, ts: float, image: films.Frame | None = None) -> Frame | None:
        self.index += 1
        return self.gate.admit(Frame(PICTURES[self.index % 8] if image is None else image, ts, "cam", self.index))

    @property
    def counters(self) -> dict[str, int]:
        return self.health.snapshot()[2]


def test_without_a_trigger_every_frame_goes_on_with_what_it_was_found_to_be() -> None:
    rig = Rig()
    frame = rig.admit(1.0)
    assert frame is not None
    assert frame.input is not None
    assert frame.input.faults == ()
    assert frame.input.command is UNSET
    assert {"level", "bright", "clipped", "still_s", "change"} <= set(frame.input.measures)
    assert rig.counters == {}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=60), st.floats(0.5, 8))
def test_an_interval_is_kept_at_any_rate(steps: list[float], every: float) -> None:
    rig, now, taken = Rig(EveryTrigger(every_s=every)), 100.0, [100.0]
    assert rig.admit(now) is not None
    for step in steps:
        now += step
        wanted = now - taken[-1] >= every - 1e-6
        assert (rig.admit(now) is not None) == wanted
        if wanted:
            taken.append(now)
    assert rig.counters.get("not_due", 0) == len(steps) + 1 - len(taken)


def test_a_clock_that_is_set_back_does_not_stop_an_interval() -> None:
    rig = Rig(EveryTrigger(every_s=10))
    assert rig.admit(1e9) is not None
    assert rig.admit(1e9 + 1) is None
    assert rig.admit(5.0) is not None
    assert rig.admit(6.0) is None


def test_on_demand_nothing_goes_on_that_was_not_asked_for() -> None:
    rig = Rig(CommandTrigger())
    assert rig.admit(1.0) is None
    rig.gate.ask("a1")
    rig.gate.ask("a2")
    commands = [frame.input.command for ts in (2, 3, 4) if (frame := rig.admit(ts)) and frame.input]
    assert commands == ["a1", "a2"]
    assert rig.counters == {"not_asked": 2}


def test_requests_are_bounded() -> None:
    rig = Rig(CommandTrigger())
    for number in range(16):
        rig.gate.ask(str(number))
    with pytest.raises(Rejected, match="16 commands wait"):
        rig.gate.ask("more")


def test_a_command_comes_between_intervals() -> None:
    rig = Rig(EveryTrigger(every_s=100))
    assert rig.admit(0.0) is not None
    assert rig.admit(1.0) is None
    rig.gate.ask("now")
    frame = rig.admit(2.0)
    assert frame is not None
    assert frame.input is not None
    assert frame.input.command == "now"


def test_still_scenes_are_skipped_until_something_moves_or_long_enough() -> None:
    rig = Rig(MotionTrigger(area=0.01, level=12, longest_s=5))
    camera = films.Camera(films.scene(1), fps=10, seconds=8, noise=3)
    moved = 0
    for index, image in enumerate(camera):
        image = image.copy()
        if 20 <= index < 24:
            image[100:160, 100:160] = 255 - image[100:160, 100:160]
        frame = rig.admit(index / 10, image)
        if frame is not None:
            moved += 20 <= index <= 24
            assert index == 0 or 20 <= index <= 24 or index == 24 + 50, index
    assert moved == 2  # when it comes and when it is gone
    assert rig.counters["still"] == 80 - 4


def test_what_moves_slowly_moves_too() -> None:
    """Each frame is compared with the last that went on, not with the one before it."""
    rig = Rig(MotionTrigger(area=0.05, level=10, longest_s=1000))
    base = films.scene(1).astype(np.uint8)
    taken = 0
    for index in range(60):
        image = base.copy()
        image[: 2 + index] = 0
        taken += rig.admit(index, image) is not None
    assert 3 < taken < 12


def test_bad_frames_are_marked_or_withheld_and_named() -> None:
    black = np.zeros((48, 64, 3), np.uint8)
    marking, withholding = Rig(), Rig(checks=ChecksConfig(policy="withhold"))
    marked, withheld = [], 0
    for second in range(6):
        frame = marking.admit(second, black)
        assert frame is not None
        assert frame.input is not None
        marked.append("dark" in frame.input.faults)
        withheld += withholding.admit(second, black) is None
    assert marked == [False] + [True] * 5
    assert withheld == 5
    assert marking.counters["input_dark"] == 5
    assert "withheld" not in marking.counters
    assert withholding.counters["withheld"] == withholding.counters["withheld_dark"] == 5
    assert withholding.counters["input_dark"] == 5


def test_a_command_waits_for_a_frame_that_is_not_withheld() -> None:
    rig = Rig(CommandTrigger(), ChecksConfig(policy="withhold"))
    for second in range(3):
        rig.admit(second, np.zeros((48, 64, 3), np.uint8))
    rig.gate.ask("a")
    assert rig.admit(3, np.zeros((48, 64, 3), np.uint8)) is None
    frame = rig.admit(4)
    assert frame is not None
    assert frame.input is not None
    assert frame.input.command == "a"


def test_a_frame_without_pixels_is_counted_and_left_out() -> None:
    rig = Rig()
    assert rig.admit(1, np.zeros((0, 64, 3), np.uint8)) is None
    assert rig.admit(2) is not None
    assert rig.counters == {"input_rejected": 1}


def test_frames_in_quick_succession_share_one_look() -> None:
    rig = Rig()
    first, second, third = rig.admit(1.0), rig.admit(1.05), rig.admit(1.09)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.input is not None
    assert second.input is not None
    assert third.input is not None
    assert first.input.measures is second.input.measures
    assert third.input.measures is not first.input.measures
