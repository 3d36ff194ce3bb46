"""Recipe variables such as `{artifacts:path}`. Braces that are none of ours stay: scripts are full of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

from lisiere.errors import ConfigError

# Not after a `$`: `${work:-here}` is the shell's.
_VARIABLE = re.compile(r"(?<!\$)\{(?:([\w.-]+):)?([A-Za-z]\w*):([^{}\s]+)\}")
_KNOWN = {
    "configuration": None,  # any JSON pointer
    "artifacts": ("path", "decompressedPath"),
    "work": ("path",),
    "kernel": ("rootPath",),
    "iot": ("thingName",),
}


def check(text: str, path: str) -> None:
    """Make sure that every variable in a text is one that Greengrass knows.

    Raises:
        ConfigError: a variable is misspelt.
    """
    for found in _VARIABLE.finditer(text):
        component, space, key = found.groups()
        keys = _KNOWN.get(space, ())
        if space in _KNOWN and (keys is None and key.startswith("/")):
            continue
        if keys and key in keys:
            continue
        meant = [f"{{{one}:{name}}}" for one, names in _KNOWN.items() for name in names or ("/json/pointer",)]
        here = f"{{{space}:{key}}}"
        close = difflib.get_close_matches(here, meant, 1, 0.75)
        if component is None and space not in _KNOWN and not close:
            continue  # `{a:b}` of some script
        hint = f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(meant)}."
        raise ConfigError(f"There is no variable `{found[0]}`{hint}", path)


def check_braces(text: str, path: str) -> None:
    """Make sure that a text has no `{` but those of variables, since nucleus lite takes every one for such.

    Raises:
        ConfigError: it has.
    """
    left = _VARIABLE.sub("", text)
    if "{" in left:
        place = left.index("{")
        raise ConfigError(
            f"Nucleus lite takes every `{{` for the beginning of a variable, and fails at {left[place : place + 9]!r}. "
            "Write this without braces, or put it into a file of the artifact.",
            path,
        )


def interpolate(text: str, value: Callable[[str | None, str, str], str | None]) -> str:
    """Return a text with its variables replaced.

    Args:
        text: a script, or the value of a `Setenv`.
        value: component (None: the own one), namespace and key -> value, or None to leave it as it stands.
    """

    def replace(found: re.Match[str]) -> str:
        component, space, key = found.groups()
        if space not in _KNOWN:
            return found[0]
        new = value(component, space, key)
        return found[0] if new is None else new

    return _VARIABLE.sub(replace, text)
