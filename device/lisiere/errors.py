"""The one tree of errors that Lisière raises.

Each class says what the caller can do about it, which is the only thing worth telling errors apart by::

    LisiereError
    ├── ConfigError      the configuration is wrong: mend it at `path` and start again
    ├── Rejected         a model, archive, image or message must not be used: leave it out
    ├── Retryable        a camera or a broker is away: the supervisor tries again, with backoff
    └── Permanent        trying again cannot help: stop this unit and say so

Nothing else is raised on purpose across a module boundary. Whatever is dropped is counted under a name.
"""

from __future__ import annotations


class LisiereError(Exception):
    """Base of every error raised on purpose. Its text is a whole sentence fit to show a user."""


class ConfigError(LisiereError):
    """The configuration or command line is wrong. `path` names the place, such as `$.pipelines[0].model`, if any."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class Rejected(LisiereError):
    """A model, archive, image or message that must not be used. Nothing of it has been loaded."""


class Retryable(LisiereError):
    """Something outside is away for now. Only the supervisor retries it."""


class Permanent(LisiereError):
    """Trying again cannot help. The unit stops; the others go on."""
