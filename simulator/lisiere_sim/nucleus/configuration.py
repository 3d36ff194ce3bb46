"""The configuration of all components, as deployments and the components themselves have made it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from lisiere.errors import ConfigError
from lisiere_sim.nucleus.keep import set_aside, write_whole

KeyPath = tuple[str, ...]
# Called after a change with the path of what changed.
Watcher = Callable[[KeyPath], None]

# What nobody has set bears this time, so everything that is set is newer.
_DEFAULT = 0.0


@dataclass(slots=True)
class _Component:
    """One component's document, the defaults of its recipe, and when each leaf of the document was set (Unix s)."""

    document: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    stamps: dict[KeyPath, float] = field(default_factory=dict)


class ConfigurationStore:
    """Keeps every component's configuration, in a file if there is one; each change is on disk when it returns.

    A leaf is anything but a mapping with keys. Each bears the time at which it was set; an older write leaves it alone.
    Keys are taken as they are written; the classic nucleus compares some of them without their case.

    Args:
        file: where it is kept. Without one it is gone with the process.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._components: dict[str, _Component] = {}
        self._watchers: dict[str, list[tuple[KeyPath, Watcher]]] = {}

    def components(self) -> list[str]:
        """Return the names of all components that have a configuration."""
        return sorted(self._components)

    def read(self, component: str, path: KeyPath = ()) -> Any:
        """Return what stands at a path; not to be changed by who gets it.

        Raises:
            KeyError: there is no such component, or nothing at this path.
        """
        value: Any = self._components[component].document
        for key in path:
            if not isinstance(value, dict):
                raise KeyError(key)
            value = value[key]
        return value

    def defaults(self, component: str, document: Mapping[str, Any]) -> None:
        """Take what a recipe gives as DefaultConfiguration. What somebody has set stays as it is.

        What only the defaults before had given goes.
        """
        kept = self._components.setdefault(component, _Component())
        kept.defaults = copy.deepcopy(dict(document))
        with _Changes(self, component):
            for path in [path for path, at in kept.stamps.items() if at == _DEFAULT]:
                _remove(kept, path)
            _merge(kept, (), kept.defaults, _DEFAULT)

    def merge(self, component: str, path: KeyPath, value: Any, timestamp: float) -> tuple[KeyPath, ...]:
        """Merge a value at a path: mappings key by key, everything else replaces what stood there.

        Args:
            component: whose; it need not have a configuration yet.
            path: where the value goes; mappings that are missing on the way are made.
            value: what JSON knows; a mapping where the path is empty.
            timestamp: when this was wanted, Unix seconds.

        Returns:
            The paths that were left alone, since something newer stands there.

        Raises:
            ConfigError: the whole document would become something else than a mapping.
        """
        kept = self._components.setdefault(component, _Component())
        with _Changes(self, component):
            return tuple(_merge(kept, path, value, timestamp))

    def reset(self, component: str, pointers: Iterable[str]) -> None:
        """Set what stands at JSON pointers back to the default, or take it away where there is none.

        Args:
            component: whose.
            pointers: such as `/pipelines/dock`; the empty one is the whole document.

        Raises:
            ConfigError: one of them is no JSON pointer.
        """
        paths = [_pointer(pointer) for pointer in pointers]
        kept = self._components.setdefault(component, _Component())
        with _Changes(self, component):
            for path in paths:
                _remove(kept, path)
                default: Any = kept.defaults
                for key in path:
                    default = default.get(key, _MISSING) if isinstance(default, dict) else _MISSING
                if default is not _MISSING:
                    _merge(kept, path, default, _DEFAULT)

    def remove(self, component: str) -> None:
        """Forget a component altogether."""
        if self._components.pop(component, None) is not None:
            self.save()

    def snapshot(self, component: str) -> object:
        """Return all there is of a component, for `restore`."""
        return copy.deepcopy(self._components.get(component, _Component()))

    def restore(self, component: str, snapshot: object) -> None:
        """Go back to a snapshot; watchers are told what that changes."""
        if not isinstance(snapshot, _Component):
            raise TypeError("restore() takes what snapshot() has returned")
        kept = self._components.setdefault(component, _Component())
        with _Changes(self, component):
            copied = copy.deepcopy(snapshot)
            kept.document, kept.defaults, kept.stamps = copied.document, copied.defaults, copied.stamps

    def watch(self, component: str, path: KeyPath, callback: Watcher) -> Callable[[], None]:
        """Have something called after each change at, below or above a path. Returns what ends that."""
        entry = (path, callback)
        self._watchers.setdefault(component, []).append(entry)

        def unwatch() -> None:
            watchers = self._watchers.get(component, [])
            if entry in watchers:
                watchers.remove(entry)

        return unwatch

    def load(self) -> str:
        """Read the file, if there is one. A damaged one is set aside.

        Returns:
            A sentence for the log when it was damaged, else an empty one.
        """
        if self._file is None or not self._file.exists():
            return ""
        try:
            saved = msgspec.json.decode(self._file.read_bytes(), type=_File)
            self._components = {name: _whole(part) for name, part in saved.components.items()}
        except (ValueError, RecursionError) as error:
            return set_aside(self._file, error, "the configuration starts from the recipes' defaults")
        return ""

    def save(self) -> None:
        """Write the file whole or not at all. Each change does so by itself."""
        if self._file is None:
            return
        saved = _File(
            {
                name: _Part(part.document, part.defaults, list(part.stamps.items()))
                for name, part in self._components.items()
            }
        )
        write_whole(self._file, msgspec.json.encode(saved))

    def _changed(self, component: str, before: dict[KeyPath, Any]) -> None:
        self.save()
        after = dict(_leaves(self._components[component].document))
        changed = [path for path in {**before, **after} if before.get(path, _MISSING) != after.get(path, _MISSING)]
        for watched, callback in list(self._watchers.get(component, ())):
            for path in changed:
                if path[: len(watched)] == watched or watched[: len(path)] == path:
                    callback(path)


class _Changes:
    """What is done to one component's document inside this is saved and told to the watchers at its end."""

    def __init__(self, store: ConfigurationStore, component: str) -> None:
        self._store = store
        self._component = component
        self._before: dict[KeyPath, Any] = {}

    def __enter__(self) -> None:
        self._before = dict(_leaves(self._store.read(self._component)))

    def __exit__(self, kind: object, *rest: object) -> None:
        self._store._changed(self._component, self._before)


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    document: dict[str, Any]
    defaults: dict[str, Any]
    stamps: list[tuple[KeyPath, float]]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """The file: `lisiere.configuration/1`."""

    components: dict[str, _Part]
    schema: str = "lisiere.configuration/1"


_MISSING: Any = object()


def _whole(part: _Part) -> _Component:
    stamps = dict(part.stamps)
    if stamps.keys() != dict(_leaves(part.document)).keys():
        raise ValueError("its leaves and their times do not belong together")
    return _Component(part.document, part.defaults, stamps)


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield each leaf with its path; an empty mapping is a leaf, but for the document itself."""
    if isinstance(value, dict) and (value or not path):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    else:
        yield path, value


def _merge(kept: _Component, path: KeyPath, value: Any, timestamp: float) -> list[KeyPath]:
    """Merge a value into a document and return the paths at which something newer stood."""
    if isinstance(value, Mapping):
        if value:
            return [left for key, part in value.items() for left in _merge(kept, (*path, key), part, timestamp)]
        if not path or any(other != path for other in _below(kept, path)):
            return []
    if not path:
        raise ConfigError("A component's configuration must be a mapping.")
    above = (path[:length] for length in range(1, len(path)))
    in_the_way = [*(other for other in above if other in kept.stamps), *_below(kept, path)]
    if any(kept.stamps[other] > timestamp for other in in_the_way):
        return [path]
    for other in in_the_way:
        _remove(kept, other)
    parent = kept.document
    for key in path[:-1]:
        parent = parent.setdefault(key, {})
    parent[path[-1]] = copy.deepcopy(value)
    kept.stamps[path] = timestamp
    return []


def _remove(kept: _Component, path: KeyPath) -> None:
    """Take away what stands at a path, and the mappings above it that this leaves empty."""
    for other in _below(kept, path):
        del kept.stamps[other]
        parents = [kept.document]
        for key in other[:-1]:
            parents.append(parents[-1][key])
        for parent, key in zip(reversed(parents), reversed(other), strict=True):
            del parent[key]
            if parent:
                break


def _below(kept: _Component, path: KeyPath) -> list[KeyPath]:
    """Return the leaves at and below a path, without a look at all the others: there may be very many."""
    value: Any = kept.document
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return []
        value = value[key]
    return [other for other, _ in _leaves(value, path)]


def _pointer(pointer: str) -> KeyPath:
    if pointer and not pointer.startswith("/"):
        raise ConfigError(f"{pointer!r} is no JSON pointer: it must be empty or start with a slash.")
    return tuple(key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:])
