"""Settings of input health and triggers: how a camera's frames are judged, and which of them the model is asked of."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from lisiere.documents import Part, Seconds

Fault = Literal["frozen", "dark", "covered", "over_exposed", "blurred", "moved"]
Share = Annotated[float, Meta(gt=0, le=1)]


class ChecksConfig(Part, frozen=True, kw_only=True):
    """How a camera's frames are judged; docs/input-health.md says what each threshold is compared with.

    Attributes:
        policy: `mark` names faults in the result; `withhold` gives no result while there is one, and counts it.
        ignore: faults that are not judged.
        frozen_s: for how long a picture must stand still.
        confirm_s: for how long any other fault must last before it is named.
        adapt_s: after so long a strange picture is the new normal. What is dark or over-exposed by itself stays so.
        dark_level: grey level, 0 … 255, that 98% of a dark picture stay below.
        over_share: share of clipped pixels, beyond what is usual, of an over-exposed picture.
        covered_loss: share of the usual edges that a covered picture lacks.
        blurred_ratio: sharpness of a blurred picture, by what is usual.
        moved_match: correlation with the usual picture that a moved one stays below.
    """

    policy: Literal["mark", "withhold"] = "mark"
    ignore: frozenset[Fault] = frozenset()
    frozen_s: Seconds = 1.2
    confirm_s: Seconds = 1.0
    adapt_s: Seconds = 300.0
    dark_level: Annotated[float, Meta(ge=0, le=255)] = 16.0
    over_share: Share = 0.25
    covered_loss: Share = 0.75
    blurred_ratio: Share = 0.5
    moved_match: Share = 0.4


class EveryTrigger(Part, tag="interval", frozen=True, kw_only=True):
    """One frame each `every_s` seconds; the command `infer` asks for one in between."""

    every_s: Seconds


class CommandTrigger(Part, tag="command", frozen=True, kw_only=True):
    """No frame but those that the command `infer` asks for."""


class MotionTrigger(Part, tag="motion", frozen=True, kw_only=True):
    """Frames in which something has changed since the last one that the model was asked of.

    Attributes:
        area: share of the picture that must have changed.
        level: by how many grey levels, 0 … 255.
        longest_s: after so long a frame is taken all the same.
    """

    area: Share = 0.005
    level: Annotated[float, Meta(gt=0, le=255)] = 10.0
    longest_s: Seconds = 60.0


TriggerConfig = EveryTrigger | CommandTrigger | MotionTrigger
