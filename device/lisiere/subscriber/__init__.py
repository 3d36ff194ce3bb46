"""For programs that subscribe to results: each result once, typed, with what was missed and why.

    >>> from lisiere.subscriber import Missed, Result, Subscriber
    >>> def watch(host: str) -> None:
    ...     with Subscriber(host, device="pi-dock-3") as subscriber:
    ...         for event in subscriber:
    ...             if isinstance(event, Result):
    ...                 print(event.ts, event.pipeline, event.result)
    ...             elif isinstance(event, Missed):
    ...                 print(event.sentence)

Nothing but what is named here is promised to stay.
"""

from __future__ import annotations

from lisiere.subscriber.client import Counts, Subscriber
from lisiere.subscriber.events import Event, Link, Missed, NewEpoch, Unreadable
from lisiere.sync.envelope import EventEnvelope as Occurrence
from lisiere.sync.envelope import GapEnvelope as Gap
from lisiere.sync.envelope import HealthMessage as Health
from lisiere.sync.envelope import MetricsMessage as Metrics
from lisiere.sync.envelope import ResultEnvelope as Result
from lisiere.sync.envelope import ScoreEnvelope as Score
from lisiere.sync.envelope import StatusMessage as Status
from lisiere.values import AnomalyBody as Anomaly
from lisiere.values import ClassificationBody as Classification
from lisiere.values import DetectionBody as Detection
from lisiere.values import ForecastingBody as Forecast

__all__ = [
    "Anomaly",
    "Classification",
    "Counts",
    "Detection",
    "Event",
    "Forecast",
    "Gap",
    "Health",
    "Link",
    "Metrics",
    "Missed",
    "NewEpoch",
    "Occurrence",
    "Result",
    "Score",
    "Status",
    "Subscriber",
    "Unreadable",
]
