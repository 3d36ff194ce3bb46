"""Commands: what comes on `cmd/<name>` and is answered on `reply/<name>`.

Whatever comes is bounded, and what cannot be answered is counted under a name. Nothing here is kept across a restart.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from lisiere.clock import Clock, parse_ts, rfc3339
from lisiere.errors import Rejected
from lisiere.health import worth_logging
from lisiere.sync.envelope import CommandMessage, ReplyMessage
from lisiere.sync.topics import Topics

log = logging.getLogger(__name__)

_PAYLOAD_MAX_BYTES = 8192
_WAITING_MAX = 16

# What answers a command, given its payload. It may raise Rejected, which the reply then says.
Answers = Mapping[str, Callable[[bytes], Struct]]


class Commands:
    """Takes commands on one thread and answers them on another.

    Args:
        device: the device's name.
        topics: the device's topics.
        clock: for expiry and stamps.
        answers: what answers each command, by its name.
        wake: called when there is something to `work` on.
    """

    def __init__(self, device: str, topics: Topics, clock: Clock, answers: Answers, wake: Callable[[], None]) -> None:
        self._device = device
        self._topics = topics
        self._clock = clock
        self._answers = answers
        self._wake = wake
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def counts(self) -> dict[str, int]:
        """Return what became of the commands so far, by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def received(self, topic: str, payload: bytes) -> None:
        """Take one message; returns at once."""
        name = self._topics.command(topic)
        if len(payload) > _PAYLOAD_MAX_BYTES:
            self._drop("oversized", f"A command has {len(payload)} bytes; {_PAYLOAD_MAX_BYTES} are allowed.")
        elif len(self._waiting) >= _WAITING_MAX:
            self._drop("too_many", f"A command was left out, because {_WAITING_MAX} wait already.")
        else:
            self._waiting.append((name, payload))
            self._wake()

    def work(self, reply: Callable[[str, bytes], object]) -> None:
        """Answer what waits.

        Args:
            reply: sends a payload to a topic.
        """
        while self._waiting:
            name, payload = self._waiting.popleft()
            try:
                command = msgspec.json.decode(payload, type=CommandMessage)
                late = command.expires is not None and self._clock.now() > parse_ts(command.expires)
            except (msgspec.DecodeError, Rejected, RecursionError):
                self._drop("malformed", 'A command is JSON like {"id": "…", "expires": "2026-01-31T07:36:16Z"}.')
                continue
            if late:
                self._drop("expired", "A command came after it had expired.")
                continue
            known = self._answers.get(name)
            if known is None and ("/" in name or not name):
                self._drop("unknown", "A command came on a topic that is none.")
                continue
            answer: Struct | None = None
            why = f"There is no such command; there are {', '.join(sorted(self._answers))}."
            if known is not None:
                try:
                    answer = known(payload)
                except Rejected as error:
                    why = str(error)
            self._count("unknown" if known is None else "answered" if answer is not None else "rejected")
            message = ReplyMessage(
                id=command.id,
                device=self._device,
                ts=rfc3339(self._clock.now()),
                command=name,
                done=answer is not None,
                why=None if answer is not None else why,
                answer=answer,
            )
            reply(self._topics.reply(name), msgspec.json.encode(message))

    def _count(self, what: str) -> int:
        with self._lock:
            self._counts[what] += 1
            return self._counts[what]

    def _drop(self, what: str, sentence: str) -> None:
        times = self._count(what)
        if worth_logging(times):
            log.warning("%s (%s, %d so far)", sentence, what, times)
