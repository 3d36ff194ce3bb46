"""Decision: whether what a configuration asks of a model's scores can be had from that model."""

from __future__ import annotations

from lisiere.errors import ConfigError, Rejected
from lisiere.models import Package
from lisiere.models.manifest import Classification, Detection
from lisiere.settings.decision import DecisionConfig
from lisiere.tasks.classification import sets_of


def check_decision(package: Package, decision: DecisionConfig, path: str) -> None:
    """Check a pipeline's decision against its model.

    Raises:
        ConfigError: with the place below `path`, when the model has no labels to decide between, no sets of them at
            this coverage, or not the labels that are named.
    """
    task = package.manifest.task
    if not isinstance(task, Classification | Detection):
        raise ConfigError(
            f"`decision` is for classification and detection; {package.manifest.name!r} is of another task.", path
        )
    if decision.coverage is not None:
        if isinstance(task, Detection):
            raise ConfigError("Sets of labels are for classification: leave `coverage` away.", f"{path}.coverage")
        try:
            sets_of(package, decision.coverage)
        except Rejected as error:
            raise ConfigError(str(error), f"{path}.coverage") from error
    watched = (decision.events.labels or ()) if decision.events is not None else ()
    if strange := sorted(set(watched) - set(package.labels())):
        raise ConfigError(f"{strange[0]!r} is none of the model's labels.", f"{path}.events.labels")
