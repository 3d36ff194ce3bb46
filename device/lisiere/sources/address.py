"""Addresses of cameras: without their passwords, for messages; and apart from them, for requests."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit


def shown(url: str) -> str:
    """Return an address without a password: this goes into logs and health messages."""
    scheme, slashes, rest = url.partition("//")
    before, mark, _ = rest.rpartition("@")
    if mark and "?" in before:  # in a password or in a parameter: it cannot be told which
        return f"{scheme}//…"
    # Up to the last `@`, because passwords may hold `/` and `@`; and cameras take passwords as parameters too.
    return scheme + slashes + re.sub(r"\?.*", "", rest.removeprefix(before + mark), flags=re.S)


def shown_within(text: str) -> str:
    """Return a text, such as a program's last words, whose addresses have no passwords and no parameters."""
    return re.sub(r"\w+://\S+", lambda found: shown(found[0]), text)


def apart(url: str) -> tuple[str, str, str]:
    """Return an http address without name and password, the name, and the password; empty where there is none."""
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    bare = urlunsplit((parts.scheme, where, parts.path or "/", parts.query, ""))
    return bare, unquote(parts.username or ""), unquote(parts.password or "")
