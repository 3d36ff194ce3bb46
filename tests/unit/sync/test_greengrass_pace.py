"""The transport over the nucleus keeps below what AWS IoT Core discards, however fast the nucleus answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from lisiere.config import GreengrassConfig
from lisiere.sync.transports import Event, Will
from lisiere.sync.transports.greengrass import GreengrassTransport


class Quick:
    """A nucleus that takes everything at once."""

    connected, is_lite = True, True

    def on_lost(self, _listener: Callable[[str], None]) -> Callable[[], None]:
        return lambda: None

    def publish(self, *_: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(None)
        return done


def test_a_burst_goes_at_once_and_the_rest_at_the_pace() -> None:
    events: list[Event] = []
    transport = GreengrassTransport(GreengrassConfig(per_s=200), Quick())  # type: ignore[arg-type]
    transport.connect(Will("t", b""), events.append)
    begun = time.monotonic()
    for _ in range(70):
        transport.publish("t/x", b"")
    took = time.monotonic() - begun
    assert len(events) == 70
    assert took >= (70 - 10 - 1) / 200


def test_what_is_worth_something_only_now_does_not_wait() -> None:
    transport = GreengrassTransport(GreengrassConfig(per_s=0.1), Quick())  # type: ignore[arg-type]
    transport.connect(Will("t", b""), lambda _event: None)
    begun = time.monotonic()
    for _ in range(100):
        transport.publish("t/health", b"", qos=0)
    assert time.monotonic() - begun < 1
