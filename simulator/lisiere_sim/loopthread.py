"""An asyncio event loop in a thread of its own, for the broker and the proxy."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_LAST_TURNS = 5


class LoopThread:
    """Runs coroutines on its own loop. Stopping cancels what still runs and closes the loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        # amqtt makes futures while it is constructed, so the loop must be this thread's own.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], timeout: float = 10.0) -> T:
        """Run a coroutine on the loop and return what it returns.

        Raises:
            TimeoutError: it did not end in time.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:  # the builtin one only from Python 3.11 on
            future.cancel()
            raise TimeoutError(f"The {self._thread.name} thread did not answer within {timeout:g} s.") from None

    def stop(self) -> None:
        """Cancel what still runs, then end the thread. Calling it twice does no harm."""
        if self.loop.is_closed():
            return
        self.call(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
        # A closed transport lets go of its socket in one of the loop's next turns.
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(0)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
