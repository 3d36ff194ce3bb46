"""PublishToTopic and SubscribeToTopic: messages between the components of one nucleus."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from lisiere_sim.nucleus.access import Access, Service
from lisiere_sim.nucleus.call import Call, IpcError, Operation, Stream
from lisiere_sim.nucleus.flavour import Flavour

_TOPIC_BYTES = 256
_SERVICE: Service = "aws.greengrass.ipc.pubsub"
_EVENT = "SubscriptionResponseMessage"


@dataclass(frozen=True, slots=True)
class _Subscription:
    component: str
    levels: tuple[str, ...]
    others_only: bool
    stream: Stream


class PubSub:
    """Hands messages from component to component; nothing is kept for who is not there."""

    def __init__(self, access: Access, flavour: Flavour) -> None:
        self._access = access
        self._flavour = flavour
        # In the order in which they were made: dict as an ordered set.
        self._subscriptions: dict[int, _Subscription] = {}
        self._next = 0

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"PublishToTopic": self._publish, "SubscribeToTopic": self._subscribe}

    def publish(self, topic: str, payload: bytes) -> None:
        """Hand out bytes in the nucleus' own name."""
        message = {"message": base64.b64encode(payload).decode(), "context": {"topic": topic}}
        self._hand_out(topic, {"binaryMessage": message}, "")

    def _hand_out(self, topic: str, event: dict[str, Any], sender: str) -> None:
        levels = tuple(topic.split("/"))
        for subscription in list(self._subscriptions.values()):
            if subscription.others_only and subscription.component == sender:
                continue
            if matches(subscription.levels, levels):
                subscription.stream.send(_EVENT, event)

    async def _publish(self, call: Call) -> dict[str, Any]:
        topic = topic_of(call, "topic")
        if "+" in topic or "#" in topic:
            raise IpcError("InvalidArgumentsError", f"{topic} has a wildcard, so nothing can be published on it.")
        self._access.check(call.component, _SERVICE, call.operation, topic)
        message = call.request.get("publishMessage")
        kinds = [kind for kind in ("jsonMessage", "binaryMessage") if isinstance(message, dict) and message.get(kind)]
        if not isinstance(message, dict) or len(kinds) != 1 or not isinstance(message[kinds[0]], dict):
            raise IpcError("InvalidArgumentsError", "publishMessage must have either a jsonMessage or a binaryMessage.")
        content = message[kinds[0]].get("message")
        # A subscriber's SDK would end its subscription over anything else.
        if not (isinstance(content, dict) if kinds[0] == "jsonMessage" else _is_base64(content)):
            wanted = "an object" if kinds[0] == "jsonMessage" else "base64"
            raise IpcError("InvalidArgumentsError", f"The {kinds[0]} has no message that is {wanted}.")
        self._hand_out(topic, {kinds[0]: {"message": content, "context": {"topic": topic}}}, call.component)
        return {}

    async def _subscribe(self, call: Call) -> dict[str, Any]:
        topic = topic_of(call, "topic")
        levels = tuple(topic.split("/"))
        if "#" in levels[:-1]:
            raise IpcError("InvalidArgumentsError", f"{topic} has # before its last level.")
        self._access.check(call.component, _SERVICE, call.operation, topic)
        mode = call.request.get("receiveMode") or "RECEIVE_ALL_MESSAGES"
        if mode not in ("RECEIVE_ALL_MESSAGES", "RECEIVE_MESSAGES_FROM_OTHERS"):
            raise IpcError("InvalidArgumentsError", f"No receiveMode is {mode}.")
        self._next += 1
        number = self._next
        others_only = mode == "RECEIVE_MESSAGES_FROM_OTHERS" and self._flavour.receive_modes
        self._subscriptions[number] = _Subscription(call.component, levels, others_only, call.stream)
        call.stream.on_close(lambda: self._subscriptions.__delitem__(number))
        return {"topicName": topic}


def _is_base64(content: Any) -> bool:
    try:
        base64.b64decode(content, validate=True)
    except (TypeError, ValueError):
        return False
    return isinstance(content, str)


def topic_of(call: Call, key: str) -> str:
    """Return the topic that a request names.

    Raises:
        IpcError: InvalidArgumentsError, when it names none or too long a one.
    """
    topic = call.request.get(key)
    if not isinstance(topic, str) or not topic or len(topic.encode()) > _TOPIC_BYTES or "\0" in topic:
        raise IpcError("InvalidArgumentsError", f"{call.operation} takes a {key} of 1 to {_TOPIC_BYTES} bytes.")
    return topic


def matches(pattern: tuple[str, ...], topic: tuple[str, ...]) -> bool:
    """Return whether a topic's levels match a filter's as MQTT has it: `+` is one level, `#` all that follow."""
    for number, level in enumerate(pattern):
        if level == "#":
            return True
        if number >= len(topic) or (level != "+" and level != topic[number]):
            return False
    return len(pattern) == len(topic)
