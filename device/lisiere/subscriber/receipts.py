"""The consumer's acknowledgement: devices that wait for it are told on `cmd/ack` which results were taken."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

from lisiere.subscriber.intervals import Intervals
from lisiere.sync.envelope import Sequenced

_EVERY = 100
_LATEST_S = 1.0
_RANGES_MAX = 100  # in one message, so that it stays below what a device takes as a command


class Receipts:
    """Gathers what was taken and tells it: at the latest 1 s after the first, at the earliest 100 results later.

    What cannot be published waits for the connection; a device that never hears of it sends again.

    Args:
        base: the topics up to the device's name.
        publish: sends a payload to a topic, and returns whether it could.
    """

    def __init__(self, base: str, publish: Callable[[str, bytes], bool]) -> None:
        self._base = base
        self._publish = publish
        self._taken: dict[tuple[str, str], Intervals] = {}
        self._number = 0
        self.due_at: float | None = None

    def add(self, result: Sequenced, now: float) -> None:
        """Note that a result was taken."""
        self._taken.setdefault((result.device, result.epoch), Intervals()).add(result.seq)
        self._number += 1
        if self.due_at is None:
            self.due_at = now + _LATEST_S
        if self._number >= _EVERY:
            self.due_at = now

    def send_due(self, now: float) -> None:
        """Tell what is due; what cannot be sent is due again a second later."""
        if self.due_at is not None and now >= self.due_at:
            self.send()
            self.due_at = now + _LATEST_S if self._taken else None

    def send(self) -> None:
        """Tell all that was taken and can be told."""
        for (device, epoch), taken in list(self._taken.items()):
            ranges = taken.ranges()
            for start in range(0, len(ranges), _RANGES_MAX):
                document = {"id": secrets.token_hex(8), "epoch": epoch, "ranges": ranges[start : start + _RANGES_MAX]}
                if not self._publish(f"{self._base}{device}/cmd/ack", msgspec.json.encode(document)):
                    return
            del self._taken[device, epoch]
        self._number = 0
