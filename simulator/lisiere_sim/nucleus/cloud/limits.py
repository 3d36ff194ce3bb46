"""What AWS IoT Core allows one connection. Where it would cut the connection or be silent, this says why instead.

Source: "AWS IoT Core endpoints and quotas", message broker and protocol limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from lisiere.errors import LisiereError

_BASIC_INGEST = "$aws/rules/"  # up to and with the rule's name it counts as no part of the topic
_RESERVED = "$aws/"  # topics of AWS's own services: shadows, jobs; they have limits of their own
_TOPIC_BYTES_MAX = 65_535  # MQTT's own, which cannot be switched off
_CUTS = "IoT Core would close the connection over it"


class Refused(LisiereError):
    """A publish or subscribe that is not done. `reason` is the name that it is counted under."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is allowed; None switches a limit off. The defaults are AWS IoT Core's.

    Attributes:
        payload_bytes: of one message.
        publishes_per_s, bytes_per_s: of one connection, averaged over a second.
        topic_bytes, topic_slashes: of a topic or filter, without what reserved topics begin with.
        subscriptions: of one connection.
    """

    payload_bytes: int | None = 128 * 1024
    publishes_per_s: float | None = 100.0
    bytes_per_s: float | None = 512 * 1024.0
    topic_bytes: int | None = 256
    topic_slashes: int | None = 7
    subscriptions: int | None = 50

    def check_publish(self, topic: str, payload: bytes) -> None:
        """Make sure that a message may be published.

        Raises:
            Refused: it may not; nothing of it has been sent.
        """
        if "#" in topic or "+" in topic:
            raise Refused("wildcard", f"{_short(topic)} has a wildcard, which only filters may have.")
        self._check_topic(topic)
        if self.payload_bytes is not None and len(payload) > self.payload_bytes:
            raise Refused(
                "payload_too_large",
                f"The payload has {len(payload)} bytes; IoT Core takes {self.payload_bytes}, and {_CUTS}.",
            )

    def check_filter(self, text: str) -> None:
        """Make sure that a topic filter may be subscribed to.

        Raises:
            Refused: it may not.
        """
        levels = text.split("/")
        for at, level in enumerate(levels):
            if ("+" in level and level != "+") or ("#" in level and (level != "#" or at + 1 < len(levels))):
                raise Refused(
                    "invalid_filter",
                    f"{_short(text)} is no topic filter: + stands for one whole level, and # for all at the end.",
                )
        self._check_topic(text)

    def _check_topic(self, topic: str) -> None:
        try:
            size = len(topic.encode())
        except UnicodeEncodeError:
            raise Refused("invalid_topic", f"{_short(topic)} is no UTF-8, which MQTT asks of a topic.") from None
        if not topic or "\0" in topic or size > _TOPIC_BYTES_MAX:
            raise Refused("invalid_topic", f"A topic has 1 to {_TOPIC_BYTES_MAX} bytes, and none of them is NUL.")
        if topic.startswith("$"):
            if not topic.startswith(_RESERVED):
                raise Refused("reserved_topic", f"{_short(topic)} is reserved: topics with $ are AWS's, and {_CUTS}.")
            if not topic.startswith(_BASIC_INGEST):
                return
            rule, _, topic = topic.removeprefix(_BASIC_INGEST).partition("/")
            size -= len(_BASIC_INGEST) + len(rule.encode()) + 1
        if self.topic_bytes is not None and size > self.topic_bytes:
            raise Refused(
                "topic_too_long", f"{_short(topic)} has {size} bytes; IoT Core takes {self.topic_bytes}, and {_CUTS}."
            )
        if self.topic_slashes is not None and topic.count("/") > self.topic_slashes:
            raise Refused(
                "topic_too_deep",
                f"{_short(topic)} has {topic.count('/')} slashes; IoT Core takes {self.topic_slashes}, and {_CUTS}.",
            )


UNLIMITED = Limits(None, None, None, None, None, None)


class Bucket:
    """A rate with a second's worth of burst. Times are the caller's, in seconds of a clock that never goes back."""

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._level = per_s or 0.0
        self._at: float | None = None

    def wait_s(self, now: float, amount: float) -> float:
        """How long until `amount` may be taken; 0 when it may be now. More than a burst waits for a full bucket."""
        if self._per_s is None:
            return 0.0
        if self._at is not None:
            self._level = min(self._per_s, self._level + (now - self._at) * self._per_s)
        self._at = now
        return max(0.0, (min(amount, self._per_s) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        """Take it, after `wait_s` has said 0."""
        self._level -= amount


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that matches `narrow` matches `wide`; both are valid filters (or topics)."""
    ours, theirs = wide.split("/"), narrow.split("/")
    if theirs[0].startswith("$") and ours[0] in ("+", "#"):
        return False  # MQTT 3.1.1, 4.7.2: wildcards at the start match no topic with $
    for at, level in enumerate(ours):
        if level == "#":
            return True
        if at >= len(theirs) or theirs[at] == "#" or (level != "+" and level != theirs[at]):
            return False
    return len(ours) == len(theirs)


def _short(topic: str) -> str:
    return repr(topic if len(topic) <= 60 else f"{topic[:60]}…")
