"""Waiting for something to become true about the components."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Board:
    """Whoever changes something says so by `notify`; whoever waits gives a condition, which is then looked at."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[bool]]] = []

    def notify(self) -> None:
        """Look at all conditions that somebody waits for."""
        for condition, future in list(self._waiting):
            if not future.done() and condition():
                future.set_result(True)

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition holds. Returns whether it came to hold within `timeout` seconds."""
        if condition():
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        entry = (condition, future)
        self._waiting.append(entry)
        # Not wait_for: before Python 3.12 it may swallow that its task is cancelled.
        expiry = loop.call_later(timeout, _expire, future) if timeout is not None else None
        try:
            return await future
        finally:
            self._waiting.remove(entry)
            if expiry is not None:
                expiry.cancel()


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
