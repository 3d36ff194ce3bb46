"""The transport over the nucleus: what a failure does to the messages beside it, and what is too large."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from lisiere.errors import Rejected, Retryable
from lisiere.ipc import LITE_FRAME_BYTES, Unauthorized, frame_bytes
from lisiere.settings.links import GreengrassConfig
from lisiere.sync.transports import Acked, Denied, Event, Lost, Refused, Will
from lisiere.sync.transports.greengrass import GreengrassTransport


class Held:
    """A nucleus that answers when the test says so."""

    def __init__(self, is_lite: bool = False) -> None:
        self.connected = True
        self.is_lite = is_lite
        self.answers: list[Future[Any]] = []
        self.sizes: list[int] = []
        self.lost: list[Callable[[str], None]] = []

    def on_lost(self, listener: Callable[[str], None]) -> Callable[[], None]:
        self.lost.append(listener)
        return lambda: self.lost.remove(listener)

    def publish(self, _topic: str, payload: bytes, _qos: int, _retain: bool) -> Future[Any]:
        self.sizes.append(len(payload))
        self.answers.append(Future())
        return self.answers[-1]


class Open:
    def __init__(self, nucleus: Held, **settings: Any) -> None:
        self.nucleus = nucleus
        self.events: list[Event] = []
        self.transport = GreengrassTransport(GreengrassConfig(**settings), nucleus)  # type: ignore[arg-type]
        self.transport.connect(Will("t", b""), self.events.append)

    def publish(self, size: int = 1, qos: int = 1) -> int:
        return self.transport.publish("t/x", b"x" * size, qos=qos)


def test_what_is_not_allowed_is_told_and_the_rest_goes_on() -> None:
    here = Open(Held())
    denied = here.publish()
    here.nucleus.answers[0].set_exception(Unauthorized("Not on t/x."))
    acked = here.publish()
    here.nucleus.answers[1].set_result(None)
    assert here.events == [Denied(denied, "Not on t/x."), Acked(acked)]


def test_a_failure_is_told_after_what_is_beside_it_has_settled() -> None:
    error = Retryable("The cloud is away.")
    here = Open(Held())
    tokens = [here.publish() for _ in range(3)]
    here.nucleus.answers[0].set_exception(error)
    assert here.events == []
    with pytest.raises(Retryable, match=str(error)):
        here.publish()
    here.nucleus.answers[2].set_result(None)
    here.nucleus.answers[1].set_exception(Retryable("A second one."))
    assert here.events == [Acked(tokens[2]), Lost(str(error))]


def test_what_the_nucleus_will_never_take_is_refused_and_the_rest_goes_on() -> None:
    here = Open(Held())
    first, second = here.publish(), here.publish(9000)
    here.nucleus.answers[0].set_exception(Rejected("No such topic."))
    here.nucleus.answers[1].set_exception(Rejected("It is too long."))
    assert here.events == [Refused(first, "refused", "No such topic."), Refused(second, "too_large", "It is too long.")]
    third = here.publish()
    here.nucleus.answers[2].set_result(None)
    assert here.events[-1] == Acked(third)


def test_nucleus_lite_is_never_sent_what_it_would_hang_up_over() -> None:
    """A frame that is one byte too long ends the connection there, so that the same message would end it for ever."""
    fits = max(size for size in range(10_000) if frame_bytes("t/x", size) <= LITE_FRAME_BYTES)
    here = Open(Held(is_lite=True))
    here.publish(fits)
    token = here.publish(fits + 1)
    assert here.nucleus.sizes == [fits]
    (event,) = here.events
    assert isinstance(event, Refused)
    assert (event.token, event.reason) == (token, "too_large")
    assert "nucleus lite" in event.why


def test_the_bound_can_be_set() -> None:
    here = Open(Held(), max_bytes=1000)
    here.publish(1000)
    here.publish(1001)
    assert here.nucleus.sizes == [1000]
    here = Open(Held(is_lite=True), max_bytes=20_000)
    here.publish(20_000)
    assert here.nucleus.sizes == [20_000]


def test_of_qos_0_few_are_under_way_and_failures_lose_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    here = Open(Held())
    for _ in range(20):
        here.publish(qos=0)
    assert len(here.nucleus.answers) == 8
    for answer in here.nucleus.answers:
        answer.set_exception(Unauthorized("Not on t/x."))
    assert here.events == []
    assert len(caplog.records) == 1
    here.publish()
    assert len(here.nucleus.answers) == 9


def test_a_lost_nucleus_is_told_at_once_and_a_closed_transport_hears_nothing() -> None:
    here = Open(Held())
    here.publish()
    here.nucleus.lost[0]("It is gone.")
    assert here.events == [Lost("It is gone.")]
    here.transport.close()
    assert here.nucleus.lost == []
    here.nucleus.answers[0].set_exception(Retryable("It is gone."))
    assert here.events == [Lost("It is gone.")]


def test_without_a_connection_it_does_not_open() -> None:
    nucleus = Held()
    nucleus.connected = False
    with pytest.raises(Retryable, match="no connection"):
        Open(nucleus)
