"""The pace: how fast messages may leave, whatever the transport.

AWS IoT Core discards what exceeds 100 publishes or 512 KiB a second on a connection. A discarded message has no
PUBACK, so it costs a connection: it is better never sent too early.
"""

from __future__ import annotations

import threading
from collections import deque

from lisiere.clock import Clock

_SPAN_S = 1.0  # the limits hold over any stretch of this length
_BURST_S = 0.05  # how much of the allowance may go at once; the rest is spread, so that live results wait for little


class Pace:
    """Two limits at once; neither is exceeded in any one-second window. Every method may be called from any thread.

    A bucket of a twentieth of a second's allowance spreads what leaves (the generic cell rate algorithm, ITU-T I.371,
    with a message's cost the larger of its shares in the two limits); a record of the last second makes the bounds
    exact.

    Args:
        publishes_per_s: messages in any one second; 0 is no limit.
        bytes_per_s: bytes of topic and payload in any one second; 0 is no limit. A message that is larger by itself
            goes when nothing went for a second.
        clock: for monotonic time.
    """

    def __init__(self, publishes_per_s: float, bytes_per_s: float, clock: Clock) -> None:
        self._publishes = publishes_per_s
        self._bytes = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[tuple[float, int]] = deque()  # when and how many bytes, over the last second
        self._sum = 0
        self._paid_until = clock.monotonic()  # when the bucket has taken in what has left

    def take(self, size: int) -> float:
        """Take the allowance for a message of so many bytes, or return after how many seconds to ask again.

        Returns:
            0 when the message may leave now; its allowance is then spent.
        """
        if not self._publishes and not self._bytes:
            return 0.0
        with self._lock:
            now = self._clock.monotonic()
            while self._sent and self._sent[0][0] + _SPAN_S <= now:
                self._sum -= self._sent.popleft()[1]
            wait = max(self._paid_until - _BURST_S, self._room_at(size)) - now
            if wait > 0:
                return wait
            cost = max(1 / self._publishes if self._publishes else 0.0, size / self._bytes if self._bytes else 0.0)
            self._paid_until = max(self._paid_until, now) + cost
            self._sent.append((now, size))
            self._sum += size
            return 0.0

    def _room_at(self, size: int) -> float:
        """Return when the last second will have room for one more message."""
        count, total, at = len(self._sent), self._sum, 0.0
        for sent, length in self._sent:
            if (not self._publishes or count + 1 <= max(self._publishes, 1)) and (
                not self._bytes or total + size <= self._bytes
            ):
                break
            count, total, at = count - 1, total - length, sent + _SPAN_S
        return at
