"""Waiting for something to become true about the components."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Board:
    """Whoever changes something says so by `notify`; whoever waits gives a condition, which is then looked at."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def notify(self) -> None:
        """Look at all conditions that somebody waits for."""
        for condition, future in list(self._waiting):
            if not future.done() and condition():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a condition holds. Returns whether it came to hold within `timeout` seconds."""
        if condition():
            return True
        entry = (condition, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            await asyncio.wait_for(entry[1], timeout)
        except asyncio.TimeoutError:
            return False
        finally:
            self._waiting.remove(entry)
        return True
