"""The interface of a task."""

from __future__ import annotations

from typing import Any, Protocol

from lisiere.values import EventBody, Result, ScoreBody


class Task(Protocol):
    """Turns items into results with one model. Used by one thread."""

    def __call__(self, item: Any) -> Result | None:
        """Infer on a Frame or a Window, whichever the task is for; None when the item has nothing to say.

        Raises:
            Rejected: the item cannot be used.
            Permanent: the model failed.
        """

    def end(self) -> tuple[EventBody | ScoreBody, ...]:
        """No more items will come: return what is left to be told, such as the end of an event."""
