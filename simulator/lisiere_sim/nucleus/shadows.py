"""Device shadows: documents with a desired and a reported state, versions and times, as AWS IoT has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lisiere_sim.nucleus.call import IpcError, levels_of
from lisiere_sim.nucleus.keep import set_aside, write_whole

# AWS IoT's limits: bytes of a state without its metadata, levels below desired or reported, bytes of a client token.
SIZE_MAX = 8 * 1024
_LEVELS_MAX = 8
_TOKEN_MAX = 64
# Ours, so that the file stays small.
_SHADOWS_MAX = 1000
_SECTIONS = ("desired", "reported")


class _Shadow(msgspec.Struct):
    """One shadow. A deleted one keeps its version, so that a later one of its name goes on counting."""

    version: int = 0
    timestamp: int = 0
    state: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    deleted: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file: `lisiere.shadows/1`. By thing, then by name; the classic shadow's name is empty."""

    shadows: dict[str, dict[str, _Shadow]]
    schema: str = "lisiere.shadows/1"


class Shadows:
    """All shadows, in a file if there is one; each change is on disk when it returns.

    Args:
        file: where they are kept. Without one they are gone with the process.
        clock: gives Unix seconds.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._shadows: dict[str, dict[str, _Shadow]] = {}

    def load(self) -> str:
        """Read the file, if there is one. A damaged one is set aside; then a sentence for the log is returned."""
        if self._file is None or not self._file.exists():
            return ""
        try:
            self._shadows = msgspec.json.decode(self._file.read_bytes(), type=_File).shadows
        except (ValueError, RecursionError) as error:
            return set_aside(self._file, error, "there are no shadows until components report again")
        return ""

    def get(self, thing: str, name: str) -> dict[str, Any]:
        """Return a shadow's document: state with what `delta` is left to do, metadata, version and timestamp.

        Raises:
            IpcError: ResourceNotFoundError.
        """
        shadow = self._find(thing, name)
        state = {section: value for section, value in shadow.state.items() if value}
        metadata = {section: shadow.metadata[section] for section in state}
        delta = difference(state.get("desired", {}), state.get("reported", {}))
        if delta:
            state["delta"] = delta
            metadata["delta"] = _times_of(delta, metadata["desired"])
        return {
            "state": state,
            "metadata": metadata,
            "version": shadow.version,
            "timestamp": int(self._clock()),
        }

    def update(self, thing: str, name: str, payload: bytes) -> dict[str, Any]:
        """Merge a document into a shadow, which is made if there is none; null takes a key away.

        Returns:
            What was accepted: the state that was asked for, its metadata, the new version and the timestamp.

        Raises:
            IpcError: InvalidArgumentsError, or ConflictError when the document names another version.
        """
        asked = _checked(payload)
        shadow = self._shadows.get(thing, {}).get(name, _Shadow())
        wanted = asked.get("version")
        current = 0 if shadow.deleted else shadow.version
        if wanted is not None and wanted != current:
            raise IpcError("ConflictError", f"The shadow has version {current}, not {wanted}; get it and try again.")
        now = int(self._clock())
        before = {} if shadow.deleted else shadow.state
        times = {} if shadow.deleted else shadow.metadata
        state, metadata, accepted = dict(before), dict(times), {}
        for section, change in asked["state"].items():
            state[section] = _merged(before.get(section, {}), change or {}) if change is not None else {}
            accepted[section] = _stamped(change or {}, now)
            known = times.get(section, {}) if change is not None else {}
            metadata[section] = _times_of(state[section], _merged(known, accepted[section]))
        size = len(msgspec.json.encode(state))
        if size > SIZE_MAX:
            raise IpcError("InvalidArgumentsError", f"The shadow would have {size} bytes; it may have {SIZE_MAX}.")
        if name not in self._shadows.get(thing, {}) and sum(map(len, self._shadows.values())) >= _SHADOWS_MAX:
            raise IpcError("ServiceError", f"There are {_SHADOWS_MAX} shadows already.")
        self._shadows.setdefault(thing, {})[name] = _Shadow(shadow.version + 1, now, state, metadata)
        self._save()
        said = {"state": asked["state"], "metadata": accepted, "version": shadow.version + 1, "timestamp": now}
        return {**said, "clientToken": asked["clientToken"]} if "clientToken" in asked else said

    def delete(self, thing: str, name: str) -> dict[str, Any]:
        """Delete a shadow and return its last version and the time.

        Raises:
            IpcError: ResourceNotFoundError.
        """
        shadow = self._find(thing, name)
        now = int(self._clock())
        self._shadows[thing][name] = _Shadow(shadow.version + 1, now, deleted=True)
        self._save()
        return {"version": shadow.version, "timestamp": now}

    def names(self, thing: str) -> list[str]:
        """Return the names of a thing's named shadows, sorted."""
        return sorted(name for name, shadow in self._shadows.get(thing, {}).items() if name and not shadow.deleted)

    def _find(self, thing: str, name: str) -> _Shadow:
        shadow = self._shadows.get(thing, {}).get(name)
        if shadow is None or shadow.deleted:
            raise IpcError("ResourceNotFoundError", f"No shadow found: {thing} has no {name or 'classic shadow'}.")
        return shadow

    def _save(self) -> None:
        if self._file is not None:
            write_whole(self._file, msgspec.json.encode(_File(self._shadows)))


def difference(desired: Mapping[str, Any], reported: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the desired state is not reported so; lists are compared whole."""
    found: dict[str, Any] = {}
    for key, value in desired.items():
        other = reported.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            part = difference(value, other)
            if part:
                found[key] = part
        elif key not in reported or value != other:
            found[key] = value
    return found


def _checked(payload: bytes) -> dict[str, Any]:
    if len(payload) > SIZE_MAX * 2:
        raise IpcError("InvalidArgumentsError", f"The document has {len(payload)} bytes; it may have {SIZE_MAX}.")
    try:
        asked = msgspec.json.decode(payload, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise IpcError("InvalidArgumentsError", f"The payload is not a JSON object: {error}.") from None
    state = asked.get("state")
    if not isinstance(state, dict) or not state:
        raise IpcError("InvalidArgumentsError", "The document lacks a state with desired or reported.")
    unknown = sorted(set(asked) - {"state", "version", "clientToken"})
    if unknown or set(state) - set(_SECTIONS):
        wrong = ", ".join([*unknown, *sorted(f"state.{key}" for key in set(state) - set(_SECTIONS))])
        known = "state.desired, state.reported, version and clientToken"
        raise IpcError("InvalidArgumentsError", f"The document may have {known}, but not {wrong}.")
    version = asked.get("version", 0)
    if type(version) is not int or version < 0:
        raise IpcError("InvalidArgumentsError", "The document's version must be a whole number.")
    token = asked.get("clientToken", "")
    if not isinstance(token, str) or len(token.encode()) > _TOKEN_MAX:
        raise IpcError("InvalidArgumentsError", f"The clientToken must be a string of up to {_TOKEN_MAX} bytes.")
    for section, value in state.items():
        if value is not None and not isinstance(value, dict):
            raise IpcError("InvalidArgumentsError", f"state.{section} must be an object or null.")
        if levels_of(value) > _LEVELS_MAX:
            raise IpcError("InvalidArgumentsError", f"state.{section} has more than {_LEVELS_MAX} levels.")
    return asked


def _merged(before: Any, change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge key by key; null takes a key away, and lists are replaced whole."""
    merged = dict(before) if isinstance(before, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merged(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def _stamped(value: Any, now: int) -> Any:
    """Return the same form with `{"timestamp": …}` in the place of each value; what is null has none."""
    if isinstance(value, dict):
        return {key: _stamped(part, now) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_stamped(part, now) for part in value]
    return {"timestamp": now}


def _times_of(state: Mapping[str, Any], times: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the metadata what belongs to a state."""
    return {
        key: _times_of(value, times.get(key, {})) if isinstance(value, dict) else times.get(key, {})
        for key, value in state.items()
    }
