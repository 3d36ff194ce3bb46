"""What a transport tells, taken one by one, while the transport is carried on with."""

from __future__ import annotations

import queue
import time
from collections import deque

from lisiere.sync.transports import Event, Transport


class Events:
    """The events of one connection: `put` is the listener that it is made with."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._events: deque[Event] = deque()
        self.put = self._events.append

    def get(self, timeout: float) -> Event:
        """Return the next event.

        Raises:
            queue.Empty: there was none for so many seconds.
        """
        until = time.monotonic() + timeout
        while not self._events:
            if (left := until - time.monotonic()) <= 0:
                raise queue.Empty
            self._transport.wait(left)
        return self._events.popleft()

    def empty(self) -> bool:
        """Whether nothing is left."""
        return not self._events
