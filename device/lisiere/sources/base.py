"""The interface of a source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from lisiere.values import Frame, Reading

# Told of an item that had to be left out: the fault's name, for counting, and a sentence, for the log.
FaultReport = Callable[[str, str], None]


class Source(Protocol):
    """Yields frames or readings, each time anew from its beginning or from now."""

    def items(self, stop: threading.Event) -> Iterator[Frame | Reading]:
        """Open the source and yield until it ends or `stop` is set.

        Raises:
            Retryable: it cannot be opened now, or went away.
            Permanent: it can never give what is asked of it.
        """
