"""Documents: reading YAML (and so JSON), bounded, with one error for every failure; writing; what their parts share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import yaml
from msgspec import Meta, Struct

from lisiere.errors import Rejected

MAX_BYTES = 1 << 20

# Makes a path of a document absolute; the second argument is where the document has it, for the error.
Absolute = Callable[[str, str], str]
Seconds = Annotated[float, Meta(gt=0, le=1e6)]


class Part(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What all parts of a configuration share: unknown keys are errors. Type checkers want the rest said at each."""


def read_text(file: Path) -> str:
    """Return a file's text.

    Raises:
        Rejected: it cannot be read, is larger than 1 MiB, or is not in UTF-8.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise Rejected(f"{file} is larger than {MAX_BYTES} bytes.")
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise Rejected(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise Rejected(f"{file} is not YAML or JSON in UTF-8: {error}") from error


def read_yaml(file: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        Rejected: it cannot be read, is larger than 1 MiB, or is not YAML in UTF-8.
    """
    text = read_text(file)
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML lets out whatever its constructors run into: ValueError, KeyError, …
        raise Rejected(f"{file} is not YAML: {error}") from error


def write_durably(file: Path, data: bytes) -> None:
    """Replace a file's content, whole or not at all: what is renamed into place has been synced.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    aside = file.with_name(f"{file.name}.new")
    with aside.open("wb") as output:
        output.write(data)
        output.flush()
        os.fsync(output.fileno())
    aside.replace(file)
