"""What IoT Core has taken, given and refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """What happened since the start.

    Attributes:
        published: publishes that components were told to have succeeded.
        acknowledged: QoS 1 publishes that the broker has acknowledged, and QoS 0 that were sent.
        received: messages from the broker; `unclaimed` of them had no subscriber any more.
        connects: connections that the broker accepted.
        refused: publishes and subscriptions that failed, by reason.
        dropped: publishes that had succeeded and were dropped, by reason.
    """

    published: int = 0
    acknowledged: int = 0
    received: int = 0
    unclaimed: int = 0
    connects: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
