"""What an operation is: a coroutine that takes a call and returns the body of the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Code = Literal[
    "ComponentNotFoundError",
    "ConflictError",
    "FailedUpdateConditionCheckError",
    "InvalidArgumentsError",
    "InvalidTokenError",
    "ResourceNotFoundError",
    "ServiceError",
    "UnauthorizedError",
]


class IpcError(Exception):
    """What a client gets instead of a response: one of the SDK's error shapes, and a sentence."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message


class Stream(Protocol):
    """The stream that a call came on; a subscription keeps it and sends events by it."""

    def send(self, shape: str, body: dict[str, Any]) -> None:
        """Send one event, such as `SubscriptionResponseMessage`; once the stream is closed this does nothing."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have something called when the client closes the stream or goes away."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request of one component.

    Attributes:
        component: who asks, as its token says.
        operation: its short name, such as `PublishToTopic`.
        request: the body, as JSON gave it.
    """

    component: str
    operation: str
    request: dict[str, Any]
    stream: Stream


# The response's body. The first event of a subscription may be sent only after the coroutine has returned.
Operation = Callable[[Call], Awaitable[dict[str, Any]]]


def levels_of(value: Any) -> int:
    """Return how many objects and lists lie in each other, without recursion: a client chooses how many there are."""
    levels, level = 0, [value]
    while level := [part for one in level for part in _parts(one)]:
        levels += 1
    return levels


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
