"""GetConfiguration, UpdateConfiguration and SubscribeToConfigurationUpdate."""

from __future__ import annotations

from typing import Any

import msgspec

from lisiere_sim.nucleus.call import Call, IpcError, Operation, levels_of
from lisiere_sim.nucleus.configuration import ConfigurationStore, KeyPath

# A component may not give itself rights.
_PROTECTED = "accessControl"
_LEVELS_MAX = 32
_SIZE_MAX = 1024 * 1024


class ConfigurationOperations:
    """What components do with configuration: read anybody's, change their own."""

    def __init__(self, store: ConfigurationStore) -> None:
        self._store = store

    def operations(self) -> dict[str, Operation]:
        """Return the operations by name."""
        return {
            "GetConfiguration": self._get,
            "UpdateConfiguration": self._update,
            "SubscribeToConfigurationUpdate": self._subscribe,
        }

    async def _get(self, call: Call) -> dict[str, Any]:
        component, path = _asked(call)
        value = self._find(component, path)
        # The nuclei give a leaf in a mapping with its own key.
        return {"componentName": component, "value": value if isinstance(value, dict) else {path[-1]: value}}

    async def _update(self, call: Call) -> dict[str, Any]:
        _, path = _asked(call)
        value, timestamp = call.request.get("valueToMerge"), call.request.get("timestamp")
        if not isinstance(value, dict):
            raise IpcError("InvalidArgumentsError", "UpdateConfiguration takes a mapping as valueToMerge.")
        if not isinstance(timestamp, int | float) or isinstance(timestamp, bool):
            raise IpcError("InvalidArgumentsError", "UpdateConfiguration takes Unix time in seconds as timestamp.")
        if _PROTECTED in (path[:1] or value):
            raise IpcError("InvalidArgumentsError", f"A component cannot change its {_PROTECTED}; a deployment can.")
        if self._is_leaf(call.component, path):
            where = f"/{'/'.join(path)}"
            raise IpcError("InvalidArgumentsError", f"{where} is no mapping; keyPath must name the one that has it.")
        self._check_size(call.component, path, value)
        if self._store.merge(call.component, path, value, float(timestamp)):
            raise IpcError(
                "FailedUpdateConditionCheckError",
                f"/{'/'.join(path)} of {call.component} was set later than this update's timestamp, so it stays.",
            )
        return {}

    async def _subscribe(self, call: Call) -> dict[str, Any]:
        component, path = _asked(call)
        self._find(component, path)

        def tell(changed: KeyPath) -> None:
            event = {"componentName": component, "keyPath": list(changed)}
            call.stream.send("ConfigurationUpdateEvents", {"configurationUpdateEvent": event})

        call.stream.on_close(self._store.watch(component, path, tell))
        return {}

    def _check_size(self, component: str, path: KeyPath, value: Any) -> None:
        levels = len(path) + levels_of(value)
        if levels > _LEVELS_MAX:
            raise IpcError("InvalidArgumentsError", f"A configuration may have {_LEVELS_MAX} levels, not {levels}.")
        try:
            before = self._store.read(component)
        except KeyError:
            before = {}
        size = len(msgspec.json.encode([before, path, value]))
        if size > _SIZE_MAX:
            raise IpcError("InvalidArgumentsError", f"A configuration may have {_SIZE_MAX} bytes, not {size}.")

    def _find(self, component: str, path: KeyPath) -> Any:
        try:
            return self._store.read(component, path)
        except KeyError:
            raise IpcError(
                "ResourceNotFoundError", f"Key not found: the configuration of {component} has no /{'/'.join(path)}."
            ) from None

    def _is_leaf(self, component: str, path: KeyPath) -> bool:
        try:
            return not isinstance(self._store.read(component, path), dict)
        except KeyError:
            return False


def _asked(call: Call) -> tuple[str, KeyPath]:
    component = call.request.get("componentName") or call.component
    path = call.request.get("keyPath") or []
    if not isinstance(component, str) or not isinstance(path, list) or not all(isinstance(key, str) for key in path):
        raise IpcError(
            "InvalidArgumentsError", f"{call.operation} takes a name as componentName and a list of keys as keyPath."
        )
    return component, tuple(path)
