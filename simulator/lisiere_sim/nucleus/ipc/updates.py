"""SubscribeToComponentUpdates and DeferComponentUpdate: components say when an update suits them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from lisiere_sim.nucleus.call import Call, IpcError, Operation, Stream

_EVENT = "ComponentUpdatePolicyEvents"
# How long an update may be put off at once.
_DEFER_MAX_MS = 24 * 3600 * 1000


@dataclass(slots=True)
class _Asked:
    """One deployment's question to one component.

    Attributes:
        again: the loop's time at which to ask again, if it has deferred.
        agreed: whether it has answered that now is right.
        woken: set by its answer, or when nobody is left who could give one.
    """

    again: float | None = None
    agreed: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class ComponentUpdates:
    """Asks the components that have subscribed whether they may be updated now, and tells them when it is done."""

    def __init__(self) -> None:
        self._streams: dict[str, list[Stream]] = {}
        self._asked: dict[tuple[str, str], _Asked] = {}

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {"SubscribeToComponentUpdates": self._subscribe, "DeferComponentUpdate": self._defer}

    async def ask(self, deployment: str, components: Collection[str], timeout_s: float) -> list[str]:
        """Ask the components that have subscribed, and wait until each agrees or the time is over.

        Args:
            deployment: its id.
            components: which are about to be updated or removed.
            timeout_s: `componentUpdatePolicy.timeoutInSeconds`: how long each may leave the question unanswered.
                Whoever defers is asked again as often as it defers.

        Returns:
            The components that did not answer in time, in order.
        """
        names = [name for name in components if self._streams.get(name)]
        late = await asyncio.gather(*(self._ask(deployment, name, timeout_s) for name in names))
        return [name for name, is_late in zip(names, late, strict=True) if is_late]

    def done(self, deployment: str, components: Collection[str]) -> None:
        """Tell the components that have subscribed that a deployment is over."""
        for name in components:
            for stream in list(self._streams.get(name, ())):
                stream.send(_EVENT, {"postUpdateEvent": {"deploymentId": deployment}})

    async def _ask(self, deployment: str, component: str, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        key = (deployment, component)
        try:
            while self._streams.get(component):
                asked = self._asked[key] = _Asked()
                event = {"deploymentId": deployment, "isGgcRestarting": False}
                for stream in list(self._streams[component]):
                    stream.send(_EVENT, {"preUpdateEvent": event})
                if not await _set_within(asked.woken, timeout_s):
                    return True
                # Meanwhile it may think again, or go away.
                while asked.woken.is_set() and self._streams.get(component):
                    if asked.agreed or asked.again is None:
                        return False
                    asked.woken.clear()
                    await _set_within(asked.woken, asked.again - loop.time())
        finally:
            self._asked.pop(key, None)
        return False

    async def _subscribe(self, call: Call) -> dict[str, Any]:
        streams = self._streams.setdefault(call.component, [])
        streams.append(call.stream)

        def gone() -> None:
            streams.remove(call.stream)
            if not streams:
                self._streams.pop(call.component, None)
                # Nobody is left who could answer.
                for (_, component), asked in self._asked.items():
                    if component == call.component:
                        asked.woken.set()

        call.stream.on_close(gone)
        return {}

    async def _defer(self, call: Call) -> dict[str, Any]:
        deployment = call.request.get("deploymentId")
        after = call.request.get("recheckAfterMs", 0)
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= _DEFER_MAX_MS:
            raise IpcError("InvalidArgumentsError", f"recheckAfterMs must be a whole number from 0 to {_DEFER_MAX_MS}.")
        if not self._streams.get(call.component):
            raise IpcError(
                "InvalidArgumentsError", f"{call.component} has to subscribe to component updates before it defers one."
            )
        asked = self._asked.get((str(deployment), call.component))
        if asked is None or asked.woken.is_set():
            raise IpcError("InvalidArgumentsError", f"No question of deployment {str(deployment)[:100]} is open.")
        asked.agreed = after == 0
        asked.again = asyncio.get_running_loop().time() + after / 1000
        asked.woken.set()
        return {}


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except asyncio.TimeoutError:
        return False
    return True
