"""Tokens: what a component shows the nucleus to say who it is, its `SVCUID`."""

from __future__ import annotations

import secrets


class Tokens:
    """One token per component. A token stands until the next is issued; none is ever written down."""

    def __init__(self) -> None:
        self._components: dict[str, str] = {}

    def issue(self, component: str) -> str:
        """Return a new token for a component. What it had before is worth nothing any more."""
        self.revoke(component)
        # Letters and digits only: the SDK puts it between quotation marks without looking.
        token = secrets.token_hex(16).upper()
        self._components[token] = component
        return token

    def revoke(self, component: str) -> None:
        """Take a component's token away, if it has one."""
        for token in [token for token, owner in self._components.items() if owner == component]:
            del self._components[token]

    def authenticate(self, token: str) -> str | None:
        """Return the component that a token stands for, or None."""
        return self._components.get(token)
