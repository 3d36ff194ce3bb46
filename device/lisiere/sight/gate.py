"""Which frames the model is asked of: those that the trigger picks and the policy does not withhold.

Every frame comes by here, whether it goes on or not, so that the history of a camera is whole.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

import numpy as np
from msgspec import UNSET

from lisiere.errors import Rejected
from lisiere.health import PipelineHealth
from lisiere.settings.checks import ChecksConfig, CommandTrigger, EveryTrigger, MotionTrigger, TriggerConfig
from lisiere.sight.judge import Seen, Sight
from lisiere.sight.measures import Grey
from lisiere.values import Frame, InputInfo

# Frames that follow within this time are as good or bad as the one before: ten looks a second are enough to name a
# fault within two, and cost a camera of 30 frames/s a third.
_LOOK_S = 0.08
_ASKED_MOST = 16
_SENTENCES = {
    "frozen": "shows the same picture again and again",
    "dark": "shows hardly any light",
    "covered": "shows hardly any structure, as when something is before the lens",
    "over_exposed": "shows far too much light",
    "blurred": "shows no sharp edges any more",
    "moved": "shows another scene than it used to",
}


class Gate:
    """Judges the frames of one pipeline, and lets some of them through. `admit` is for one thread, `ask` for any.

    Args:
        checks: how frames are judged; None: by the defaults.
        trigger: which frames are wanted; None: all.
        health: told of faults, and of what does not get through.
    """

    def __init__(self, checks: ChecksConfig | None, trigger: TriggerConfig | None, health: PipelineHealth) -> None:
        self._checks = checks or ChecksConfig()
        self._sight = Sight(self._checks)
        self._trigger = trigger
        self._health = health
        self._seen: Seen | None = None
        self._looked = 0.0
        self._taken: float | None = None
        self._taken_thumb: Grey | None = None
        self._asked: deque[str] = deque()
        self._lock = threading.Lock()

    def ask(self, command: str) -> None:
        """Let the next frame through that is not withheld, whatever the trigger says; its result names the command.

        Raises:
            Rejected: so many frames are asked for already that one more would be no use.
        """
        with self._lock:
            if len(self._asked) >= _ASKED_MOST:
                raise Rejected(f"{_ASKED_MOST} commands wait for a frame already.")
            self._asked.append(command)

    def admit(self, frame: Frame) -> Frame | None:
        """Return the frame with what it was found to be, or None when the model is not to be asked of it."""
        now = frame.ts if frame.captured is None else frame.captured
        try:
            seen = self._look(frame, now)
        except Rejected as error:
            self._health.fault("input_rejected", str(error))
            return None
        for fault in seen.faults:
            self._health.fault(f"input_{fault}", f"The camera of {self._health.name} {_SENTENCES[fault]}.")
        if seen.faults and self._checks.policy == "withhold":
            for fault in seen.faults:
                self._health.count(f"withheld_{fault}")
            self._health.count("withheld")
            return None
        command = self._command()
        if command is None and not self._wanted(seen, now):
            return None
        self._taken, self._taken_thumb = now, seen.thumb
        info = InputInfo(faults=seen.faults, measures=seen.measures, command=UNSET if command is None else command)
        return replace(frame, input=info)

    def _look(self, frame: Frame, now: float) -> Seen:
        if self._seen is None or not 0 <= now - self._looked < _LOOK_S:
            self._seen = self._sight.look(frame.image, now)
            self._looked = now
            if self._seen.renewed:
                sentence = f"What is usual of the camera of {self._health.name} is learnt anew. {self._seen.renewed}"
                self._health.fault("input_renewed", sentence)
        return self._seen

    def _command(self) -> str | None:
        with self._lock:
            return self._asked.popleft() if self._asked else None

    def _wanted(self, seen: Seen, now: float) -> bool:
        """Whether the trigger wants this frame. What it does not want is counted."""
        trigger, taken = self._trigger, self._taken
        if trigger is None:
            return True
        if isinstance(trigger, CommandTrigger):
            self._health.count("not_asked")
            return False
        longest = trigger.every_s if isinstance(trigger, EveryTrigger) else trigger.longest_s
        # A clock that was set back is no reason to wait.
        if taken is None or not 0 <= now - taken < longest - 1e-6:
            return True
        if isinstance(trigger, MotionTrigger) and self._has_moved(seen, trigger):
            return True
        self._health.count("not_due" if isinstance(trigger, EveryTrigger) else "still")
        return False

    def _has_moved(self, seen: Seen, trigger: MotionTrigger) -> bool:
        """Whether enough has changed since the last frame that was let through, so that what is slow counts too."""
        before = self._taken_thumb
        if before is None or before.shape != seen.thumb.shape:
            return True
        changed = np.count_nonzero(np.abs(seen.thumb - before) >= trigger.level)
        return bool(changed >= trigger.area * before.size)
