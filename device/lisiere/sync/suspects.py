"""Suspects: messages that may be what the connection is lost by, and the proof that one is.

A message that ends every connection that it is sent on would hold up all the others for ever. A bad network ends
connections too, so nobody is convicted by losses alone: it takes losses with the message, and success without it.
"""

from __future__ import annotations

from collections.abc import Collection

ALONE_AFTER = 2  # losses in a row after which those that were under way each time go one by one
SKIPPED_AFTER = 5  # losses in a row after which the one that is left is skipped, to see whether others pass


class Suspects:
    """Remembers over connections what was under way when they were lost. For one thread; nothing outlives it."""

    def __init__(self) -> None:
        self._seqs: set[int] = set()  # under way at each of the last losses
        self.losses = 0

    @property
    def skipped(self) -> int | None:
        """The message that is left out of this connection, or None."""
        return next(iter(self._seqs)) if self.losses >= SKIPPED_AFTER and len(self._seqs) == 1 else None

    def clear(self) -> None:
        """Forget all: the spool is another one, whose seqs mean other rows."""
        self._seqs, self.losses = set(), 0

    def alone(self, seqs: Collection[int]) -> bool:
        """Whether a message with these seqs may only be under way by itself."""
        return self.losses >= ALONE_AFTER and not self._seqs.isdisjoint(seqs)

    def lost(self, under_way: Collection[int]) -> None:
        """Hear that a connection that had worked was lost, and with which seqs under way."""
        if self.skipped is not None:
            self._seqs, self.losses = set(), 0  # the others do not pass either: it is the network
        if not under_way:
            return
        both = self._seqs & set(under_way)
        self.losses = self.losses + 1 if both else 1
        self._seqs = both or set(under_way)

    def passed(self, seqs: Collection[int]) -> int | None:
        """Hear what was acknowledged; return the message that is thereby convicted, or None."""
        convicted = self.skipped
        if convicted is not None and convicted in seqs:
            convicted = None
        if convicted is not None:
            self._seqs = set()
        self._seqs.difference_update(seqs)
        if not self._seqs:
            self.losses = 0
        return convicted
