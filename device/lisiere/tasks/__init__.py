"""Tasks: from a frame or window to tensors, and from tensors to a result."""

from __future__ import annotations

from lisiere.backends import Model
from lisiere.clock import Clock
from lisiere.errors import Rejected
from lisiere.models import Package
from lisiere.models.manifest import Classification, Detection, Forecasting
from lisiere.settings.decision import DecisionConfig
from lisiere.settings.forecast import ForecastConfig
from lisiere.tasks.base import Task
from lisiere.tasks.classification import ClassificationTask
from lisiere.tasks.decision import check_decision
from lisiere.tasks.detection import DetectionTask
from lisiere.tasks.forecasting import ForecastingTask
from lisiere.tasks.series import AnomalyTask

__all__ = ["Task", "check_decision", "open_task"]


def open_task(
    package: Package,
    model: Model,
    clock: Clock,
    decision: DecisionConfig | None = None,
    forecast: ForecastConfig | None = None,
) -> Task:
    """Make the task that a package's manifest declares, on a loaded model.

    Args:
        package: a folder that `open_package` has verified.
        model: it, loaded.
        clock: where time comes from.
        decision: what to make of the scores, of classification and detection.
        forecast: how forecasts are judged.

    Raises:
        Rejected: it declares none.
    """
    task = package.manifest.task
    if task is None:
        raise Rejected(
            f"The model at {package.path} says nothing of what its input and output mean. Give it a model.yaml with "
            "`input` and `task`, and compile it again."
        )
    if isinstance(task, Classification):
        return ClassificationTask(package, model, clock, decision)
    if isinstance(task, Detection):
        return DetectionTask(package, model, clock, decision)
    if isinstance(task, Forecasting):
        return ForecastingTask(package, model, clock, forecast or ForecastConfig())
    return AnomalyTask(package, model, clock)
