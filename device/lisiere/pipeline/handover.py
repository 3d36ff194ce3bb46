"""What stands between two threads of a pipeline: a queue that is bounded, and counts what it drops."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """Hands items from one thread to another, at most `size` of them.

    Args:
        size: how many items may wait.
        policy: when full, `latest` drops the oldest, `all` makes `put` wait.
    """

    def __init__(self, size: int, policy: Literal["latest", "all"]) -> None:
        self._size = size
        self._latest = policy == "latest"
        self._items: deque[T] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add one item; return False when one was dropped for it (or it itself, once closed)."""
        kept = True
        with self._changed:
            if len(self._items) >= self._size and not self._closed:
                if self._latest:
                    self._items.popleft()
                    kept = False
                else:
                    self._changed.wait_for(lambda: len(self._items) < self._size or self._closed)
            if self._closed:
                return False
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify_all()
        return kept

    def take(self, timeout: float | None = None) -> list[T] | None:
        """Wait for items and return them: one for `latest`, so that the rest can still be dropped; else all.

        The list is empty once the queue is closed and empty; None is returned when nothing has come within `timeout`
        seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed, timeout):
                return None
            if self._latest and self._items:
                return [self._items.popleft()]
            taken = list(self._items)
            self._items.clear()
            self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Take no more; what is inside can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
