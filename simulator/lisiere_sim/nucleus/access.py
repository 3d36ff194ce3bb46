"""Who may do what: the accessControl of the component that asks, read anew at each call."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lisiere_sim.nucleus.call import IpcError
from lisiere_sim.nucleus.configuration import ConfigurationStore
from lisiere_sim.nucleus.flavour import Flavour

Service = Literal[
    "aws.greengrass.ipc.mqttproxy",
    "aws.greengrass.ipc.pubsub",
    "aws.greengrass.ShadowManager",
    "aws.greengrass.SecretManager",
    "aws.greengrass.ipc.lifecycle",
    "aws.greengrass.Cli",
]

_SHOWN = 5
_ESCAPE = re.compile(r"\$\{(.)\}")


class Access:
    """Allows what a policy of the asking component allows, and nothing else.

    Args:
        thing: what `{iot:thingName}` in a resource stands for, if this nucleus fills it in.
    """

    def __init__(self, store: ConfigurationStore, thing: str, flavour: Flavour) -> None:
        self._store = store
        self._thing = thing
        self._fills_in = flavour.fills_in_configuration
        # Whose resources are topics, in which + and # mean what they mean in MQTT.
        self._topics = {"aws.greengrass.ipc.mqttproxy", *(["aws.greengrass.ipc.pubsub"] * flavour.pubsub_filters)}

    def check(self, component: str, service: Service, operation: str, resource: str) -> None:
        """Return if a component may do an operation (short name) on a resource: a topic, filter, shadow, ARN or name.

        Raises:
            IpcError: UnauthorizedError; it says what was asked, what was looked at, and what would allow it.
        """
        try:
            policies = self._store.read(component, ("accessControl", service))
        except KeyError:
            policies = {}
        full = f"aws.greengrass#{operation}"
        for _, operations, resources in _entries(policies):
            if (full in operations or "*" in operations) and any(
                covers(self._filled(pattern), resource, service in self._topics) for pattern in resources
            ):
                return
        raise IpcError("UnauthorizedError", self._refusal(component, service, full, resource, policies))

    def _filled(self, pattern: str) -> str:
        return pattern.replace("{iot:thingName}", self._thing) if self._fills_in else pattern

    def _refusal(self, component: str, service: str, operation: str, resource: str, policies: Any) -> str:
        looked_at = [
            f"{name} (operations {', '.join(operations) or 'none'}; resources {', '.join(resources) or 'none'})"
            for name, operations, resources in _entries(policies)
        ]
        if len(looked_at) > _SHOWN:
            looked_at = [*looked_at[:_SHOWN], f"{len(looked_at) - _SHOWN} more"]
        as_it_stands = not self._fills_in and any("{iot:" in text for text in looked_at)
        return (
            f"Principal {component} is not authorized to perform {service}:{operation} on resource {resource}. "
            f"Policies looked at in its accessControl: {'; '.join(looked_at) or f'none for {service}'}. "
            f"One with operations [{operation}] and resources [{resource}] would allow it."
            + (" Nucleus lite fills in no variables in a configuration: `+` or `*` has to stand there." * as_it_stands)
        )


def covers(pattern: str, resource: str, topics: bool) -> bool:
    """Return whether a resource of a policy covers what is asked for.

    `*` stands for any characters and `${c}` for the character c. In topics, `+` stands for one level and a last `#` for
    all that follow, and what is asked for may be a filter, which must lie within the pattern altogether.
    """
    return _expression(pattern, topics).fullmatch(resource) is not None


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str, topics: bool) -> re.Pattern[str]:
    levels = _split(pattern) if topics else [pattern]
    # What stands between the `*`.
    parts = [""]
    for number, level in enumerate(levels):
        between = "/" if number else ""
        if topics and level == "#" and number == len(levels) - 1:
            # `a/#` covers `a` too.
            parts[-1] += "(?:/.*)?" if number else ".*"
        elif topics and level == "+":
            parts[-1] += between + "[^/#]*"
        else:
            first, *others = _literals(level)
            parts[-1] += between + first
            parts += others
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    # Each part where it stands first, for good: were all places tried, some topics would take years. A group in a
    # look-ahead is tried once.
    middle = "".join(f"(?=(?P<g{number}>.*?{part}))(?P=g{number})" for number, part in enumerate(parts[1:-1]))
    return re.compile(f"{parts[0]}{middle}.*{parts[-1]}", re.DOTALL)


def _split(pattern: str) -> list[str]:
    """Cut at slashes, but not at an escaped one."""
    return [level.replace("\0", "${/}") for level in pattern.replace("${/}", "\0").split("/")]


def _literals(level: str) -> list[str]:
    """Return expressions for what stands between the `*` of a level."""
    said, place = [""], 0
    while place < len(level):
        escape = _ESCAPE.match(level, place)
        if escape:
            said[-1] += re.escape(escape[1])
            place = escape.end()
            continue
        if level[place] == "*":
            said.append("")
        else:
            said[-1] += re.escape(level[place])
        place += 1
    return said


def _entries(policies: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each policy's name, operations and resources; what is not as it should be counts as none."""
    if not isinstance(policies, Mapping):
        return
    for name, policy in policies.items():
        if isinstance(policy, Mapping):
            yield name, _strings(policy.get("operations")), _strings(policy.get("resources"))


def _strings(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
