"""Through the Greengrass nucleus: PublishToIoTCore and SubscribeToIoTCore.

`Acked` here means that the nucleus has taken the message. The classic one keeps it in its own spooler, in memory unless
it is told otherwise; nucleus lite has none and, by its sources, answers when it has written the message to its
connection, so what the cloud had not acknowledged is lost when that breaks. No will exists: a device that vanishes
says nothing.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from lisiere.config import TOPIC_MAX_BYTES
from lisiere.errors import Rejected, Retryable
from lisiere.health import worth_logging
from lisiere.ipc import LITE_FRAME_BYTES, MESSAGE_MAX_BYTES, Nucleus, Unauthorized, frame_bytes
from lisiere.settings.links import GreengrassConfig
from lisiere.sync.transports.base import JSON, Acked, Bell, Denied, Event, Listener, Lost, Received, Refused, Will

log = logging.getLogger(__name__)

_ASIDE_MAX = 8  # messages of QoS 0 under way at once; more are dropped


class GreengrassTransport:
    """One use of the component's connection to the nucleus: what failed once takes nothing more.

    Args:
        config: the bound on a message's size.
        nucleus: the component's connection, which outlives this.
    """

    window: int | None = None  # the configured one is what fits the nucleus

    def __init__(self, config: GreengrassConfig, nucleus: Nucleus) -> None:
        self._config = config
        self._nucleus = nucleus
        self._lock = threading.Lock()
        self._listener: Listener | None = None
        self._bell = Bell()
        self._forget: Callable[[], None] = lambda: None
        self._token = 0
        self._under_way = 0
        self._aside = 0
        self._aside_failed = 0
        self._failure = ""

    def connect(self, will: Will, listener: Listener) -> None:  # noqa: ARG002 - there is no will over the IPC
        """Begin; see `Transport.connect`."""
        if not self._nucleus.connected:
            raise Retryable("There is no connection to the Greengrass nucleus.")

        def tell(event: Event) -> None:
            listener(event)
            self._bell.ring()

        self._listener = tell
        self._forget = self._nucleus.on_lost(self._lost)

    @property
    def max_bytes(self) -> int:
        """The largest payload that fits, whatever the topic."""
        limit = self._config.max_bytes
        if limit is None and self._nucleus.is_lite:
            return (LITE_FRAME_BYTES - frame_bytes("", 0) - TOPIC_MAX_BYTES) * 3 // 4 - 3
        return limit or MESSAGE_MAX_BYTES

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        content: str = JSON,  # noqa: ARG002 - the IPC takes neither
        expiry_s: float | None = None,  # noqa: ARG002
    ) -> int:
        """Publish; see `Transport.publish`. Of QoS 0 a few are under way at most, and failures are only counted."""
        listener = self._listener
        if listener is None or self._failure:
            raise Retryable(self._failure or "The transport is closed.")
        with self._lock:
            self._token += 1
            token = self._token
            if not qos and self._aside >= _ASIDE_MAX:
                return token
        if why := self._too_large(topic, len(payload)):
            if qos:
                listener(Refused(token, "too_large", why))
            else:
                self._aside_lost(why)
            return token
        answer = self._nucleus.publish(topic, payload, qos, retain)
        with self._lock:
            if qos:
                self._under_way += 1
            else:
                self._aside += 1
        # Whoever names its socket otherwise may still be bounded as nucleus lite is; then it refuses, and this is why.
        reason: Literal["too_large", "refused"] = (
            "too_large" if frame_bytes(topic, len(payload)) > LITE_FRAME_BYTES else "refused"
        )
        answer.add_done_callback(functools.partial(self._answered, token, reason) if qos else self._answered_aside)
        return token

    def subscribe(self, topic: str) -> None:
        """Subscribe; see `Transport.subscribe`."""
        if self._listener is None:
            raise Retryable("The transport is closed.")
        try:
            self._nucleus.subscribe(topic, self._arrived, self._unsubscribed)
        except Rejected as error:
            raise Retryable(str(error)) from error

    def wait(self, timeout: float) -> None:
        """Wait; see `Transport.wait`."""
        self._bell.wait(timeout)

    def wake(self) -> None:
        """End a wait; see `Transport.wake`."""
        self._bell.ring()

    def close(self) -> None:
        """Take no part in the connection any more; it stays."""
        self._listener = None
        self._forget()

    def _too_large(self, topic: str, size: int) -> str:
        """Say why a message of so many bytes cannot be sent, or nothing."""
        limit = self._config.max_bytes
        if limit is None and self._nucleus.is_lite and frame_bytes(topic, size) > LITE_FRAME_BYTES:
            return (
                f"A message has {size} bytes, which do not fit into the {LITE_FRAME_BYTES} of nucleus lite's IPC once "
                "they are base64."
            )
        if size > (limit or MESSAGE_MAX_BYTES):
            return f"A message has {size} bytes; {limit or MESSAGE_MAX_BYTES} are allowed."
        return ""

    def _answered(self, token: int, reason: Literal["too_large", "refused"], answer: Future[Any]) -> None:
        """Hear what became of a message, on the SDK's thread.

        A failure is told once the others under way are settled, so that what has arrived is not sent again.
        """
        error = answer.exception()
        with self._lock:
            self._under_way -= 1
            if error is not None and not isinstance(error, Rejected | Unauthorized):
                self._failure = self._failure or str(error)
            over = bool(self._failure) and self._under_way == 0
        if (listener := self._listener) is None:
            return
        if error is None:
            listener(Acked(token))
        elif isinstance(error, Rejected):
            listener(Refused(token, reason, str(error)))
        elif isinstance(error, Unauthorized):
            listener(Denied(token, str(error)))
        if over:
            listener(Lost(self._failure))

    def _answered_aside(self, answer: Future[Any]) -> None:
        with self._lock:
            self._aside -= 1
        if (error := answer.exception()) is not None:
            self._aside_lost(str(error))

    def _aside_lost(self, why: str) -> None:
        self._aside_failed += 1
        if worth_logging(self._aside_failed):
            log.warning("A health, metrics or reply message was not sent. %s (%d so far)", why, self._aside_failed)

    def _arrived(self, topic: str, payload: bytes) -> None:
        if (listener := self._listener) is not None:
            listener(Received(topic, payload))

    def _unsubscribed(self) -> None:
        """The nucleus has ended a subscription: a new connection subscribes anew, if this one is not over anyway."""
        self._lost("The nucleus ended the subscription to commands.")

    def _lost(self, why: str) -> None:
        self._failure = why
        if (listener := self._listener) is not None:
            listener(Lost(why))
