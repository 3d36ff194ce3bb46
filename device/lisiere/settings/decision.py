"""Decision: when a label counts as decided, and which labels a result lists."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from lisiere.documents import Part

Share = Annotated[float, Meta(ge=0, le=1)]


class DecisionConfig(Part, frozen=True, kw_only=True):
    """What a pipeline makes of a model's scores.

    Attributes:
        threshold: a best label with a lower score is not decided; it is listed all the same. Detection: objects with a
            lower score are left out, in place of what the model's manifest says.
        top: how many labels a result lists, in place of what the model's manifest says.
        coverage: how often a result's set of labels shall hold the true one, from the calibration in the model.
    """

    threshold: Share | None = None
    top: Annotated[int, Meta(ge=1, le=1000)] | None = None
    coverage: Annotated[float, Meta(gt=0, lt=1)] | None = None
