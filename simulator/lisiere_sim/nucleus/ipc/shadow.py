"""GetThingShadow, UpdateThingShadow, DeleteThingShadow and ListNamedShadowsForThing."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from lisiere_sim.nucleus.access import Access, Service
from lisiere_sim.nucleus.call import Call, IpcError, Operation
from lisiere_sim.nucleus.shadows import Shadows

_SERVICE: Service = "aws.greengrass.ShadowManager"
_THING = re.compile(r"[a-zA-Z0-9:_-]{1,128}")
_NAME = re.compile(r"[$a-zA-Z0-9:_-]{1,64}")
_PAGE = 25
_PAGE_MAX = 100


class ShadowOperations:
    """What components do with shadows, which stay on this machine.

    Args:
        publish: hands a document to the components that have subscribed to a topic. As the shadow manager does, changes
            are told below `$aws/things/THING/shadow[/name/NAME]`, on `update/accepted`, `update/delta` and
            `delete/accepted`.
    """

    def __init__(self, shadows: Shadows, access: Access, publish: Callable[[str, bytes], None]) -> None:
        self._shadows = shadows
        self._access = access
        self._publish = publish

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "GetThingShadow": self._get,
            "UpdateThingShadow": self._update,
            "DeleteThingShadow": self._delete,
            "ListNamedShadowsForThing": self._list,
        }

    async def _get(self, call: Call) -> dict[str, Any]:
        thing, name, _ = self._asked(call)
        return {"payload": base64.b64encode(msgspec.json.encode(self._shadows.get(thing, name))).decode()}

    async def _update(self, call: Call) -> dict[str, Any]:
        thing, name, topic = self._asked(call)
        try:
            payload = base64.b64decode(call.request["payload"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            raise IpcError("InvalidArgumentsError", "UpdateThingShadow takes a payload, in base64.") from None
        accepted = self._shadows.update(thing, name, payload)
        said = msgspec.json.encode(accepted)
        self._publish(f"{topic}/update/accepted", said)
        if "desired" in accepted["state"]:
            self._tell_delta(thing, name, f"{topic}/update/delta", accepted)
        return {"payload": base64.b64encode(said).decode()}

    def _tell_delta(self, thing: str, name: str, topic: str, accepted: dict[str, Any]) -> None:
        document = self._shadows.get(thing, name)
        if "delta" not in document["state"]:
            return
        said: dict[str, Any] = {
            key: accepted[key] for key in ("version", "timestamp", "clientToken") if key in accepted
        }
        said |= {"state": document["state"]["delta"], "metadata": document["metadata"]["delta"]}
        self._publish(topic, msgspec.json.encode(said))

    async def _delete(self, call: Call) -> dict[str, Any]:
        thing, name, topic = self._asked(call)
        deleted = self._shadows.delete(thing, name)
        self._publish(f"{topic}/delete/accepted", msgspec.json.encode(deleted))
        return {"payload": ""}

    async def _list(self, call: Call) -> dict[str, Any]:
        thing, _, _ = self._asked(call)
        size = call.request.get("pageSize", _PAGE)
        if type(size) is not int or not 1 <= size <= _PAGE_MAX:
            raise IpcError("InvalidArgumentsError", f"pageSize must be a whole number from 1 to {_PAGE_MAX}.")
        # The token is the last name of the page before.
        after = call.request.get("nextToken") or ""
        if not isinstance(after, str) or (after and not _NAME.fullmatch(after)):
            raise IpcError("InvalidArgumentsError", "nextToken is not one that ListNamedShadowsForThing gave.")
        names = [name for name in self._shadows.names(thing) if name > after]
        said = {"results": names[:size], "timestamp": time.time()}
        return {**said, "nextToken": names[size - 1]} if len(names) > size else said

    def _asked(self, call: Call) -> tuple[str, str, str]:
        """Return the thing, the shadow's name and its topic, if the component may do this."""
        thing, name = call.request.get("thingName"), call.request.get("shadowName") or ""
        if not isinstance(thing, str) or not _THING.fullmatch(thing):
            raise IpcError("InvalidArgumentsError", f"{call.operation} takes the name of a thing as thingName.")
        if not isinstance(name, str) or (name and not _NAME.fullmatch(name)):
            raise IpcError("InvalidArgumentsError", "shadowName must have 1 to 64 of a-z, A-Z, 0-9, $, :, _ and -.")
        topic = f"$aws/things/{thing}/shadow" + (f"/name/{name}" if name else "")
        self._access.check(call.component, _SERVICE, call.operation, topic)
        return thing, name, topic
