"""Who wants which of IoT Core's messages, and the fewest filters at the broker that bring them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from lisiere.errors import Retryable
from lisiere_sim.nucleus.cloud.limits import covers
from lisiere_sim.nucleus.cloud.mqtt import Connection

OnMessage = Callable[[str, bytes], None]

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscriber of one filter."""

    filter: str
    callback: OnMessage


class Subscriptions:
    """Subscribers share what is asked of the broker: a filter that another one covers is not asked for.

    Attributes:
        upstream: the filters that the present connection is subscribed to.
    """

    def __init__(self) -> None:
        self.upstream: set[str] = set()
        self._all: list[Subscription] = []
        self._turn = asyncio.Lock()

    def add(self, subscription: Subscription) -> None:
        """Take one in; `reconcile` tells the broker."""
        self._all.append(subscription)

    def remove(self, subscription: Subscription) -> bool:
        """Take one out and return whether it was there; `reconcile` tells the broker."""
        if subscription not in self._all:
            return False
        self._all.remove(subscription)
        return True

    def needed(self) -> set[str]:
        """Return the fewest filters that cover all."""
        filters = {one.filter for one in self._all}
        return {text for text in filters if not any(wide != text and covers(wide, text) for wide in filters)}

    def dispatch(self, topic: str, payload: bytes) -> bool:
        """Hand a message to everybody whose filter it matches, and return whether there was anybody."""
        claimed = [one for one in self._all if covers(one.filter, topic)]
        for one in claimed:
            one.callback(topic, payload)
        return bool(claimed)

    async def reconcile(self, link: Connection | None) -> None:
        """Subscribe at the broker to what is needed, then give up what no longer is.

        Raises:
            Retryable: the connection is gone.
        """
        async with self._turn:
            if link is None or link.lost.done():
                raise Retryable("There is no connection to IoT Core.")
            if new := sorted(self.needed() - self.upstream):
                refused = await link.subscribe(new)
                if link.lost.done():
                    raise Retryable("The connection to IoT Core is gone.")
                self.upstream |= set(new) - set(refused)
                for text in refused:
                    _log.warning("IoT Core: the broker does not grant a subscription to %r.", text)
            if old := sorted(self.upstream - self.needed()):
                self.upstream -= set(old)
                await link.unsubscribe(old)
